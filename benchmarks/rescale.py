"""Spread the channels of trained nets over orders of magnitude, the float answers unchanged, and print what int8 loses.

    OMP_NUM_THREADS=1 python benchmarks/rescale.py [--spread 3] [words...]

A positive factor that is multiplied into a channel where a linear operator makes it, and divided out where the next
ones read it, changes nothing in floats as long as only positively homogeneous operators lie between. Nets come like
that from training, from folded batch normalizations above all. Here factors are drawn log-uniformly over ``spread``
orders of magnitude, one for each channel, wherever the graph allows it: behind Relu, through pooling, through the
gates of squeeze-and-excite, along linear bottlenecks and the residual sums between them. Behind a hard swish or SiLU
nothing can be scaled: these are not homogeneous, and no int8 scheme has to bear it there.

Accuracy is top-1 on data that nothing was calibrated on; where a model has no labels the float model's answers count.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

import onnxedge
from onnxedge.api import Array, Session, constant, load, set_constant, to_proto

ROOT = Path(__file__).resolve().parents[1]
ZOO = Path(os.environ.get("ONNXEDGE_ZOO", ROOT.parent / "shared" / "zoo"))
CALIBRATION, LIMIT = 128, 1017
PASSING = ("Relu", "LeakyRelu", "Identity", "MaxPool", "AveragePool", "GlobalAveragePool")
TARGETS = ("ort-cpu", "generic")  #: the second rounds all that it can, whether it pays or not
GATES = ("Sigmoid", "HardSigmoid")


@dataclass
class Line:
    """Channels that go together: the nodes that make them and those that read them."""

    makers: dict[ir.Node, None]
    readers: dict[ir.Node, None]


def lines(model: ir.Model) -> Iterator[Line]:
    """Yield the lines of a graph of convolutions that a factor per channel can run along."""
    seen: set[ir.Value] = set()
    for node in model.graph:
        if node.op_type != "Conv" or node.outputs[0] in seen:
            continue
        line = Line({}, {})
        values = [node.outputs[0]]
        inside: set[ir.Value] = set()
        whole = True
        while values:
            value = values.pop()
            if value in inside:
                continue
            inside.add(value)
            found = _step(value, line)
            whole &= found is not None
            values += found or []
        seen |= inside
        if whole and line.readers:
            yield line


def _step(value: ir.Value, line: Line) -> list[ir.Value] | None:
    """Return the values next to one on its line, None where the line cannot be scaled."""
    maker = value.producer()
    if maker is None or value.is_graph_output():
        return None
    more: list[ir.Value | None] = []
    if maker.op_type == "Conv" and constant(maker.inputs[1]) is not None:
        line.makers[maker] = None
    elif maker.op_type in PASSING:
        more.append(maker.inputs[0])
    elif maker.op_type == "Add":
        more += maker.inputs
    elif maker.op_type == "Mul":
        more += [v for v in maker.inputs if not _is_gate(v)]
    else:
        return None
    for use in value.uses():
        if use.node.op_type == "Conv" and use.idx == 0:
            line.readers[use.node] = None
        elif use.node.op_type in (*PASSING, "Add") or _is_gated(use.node, use.idx):
            more.append(use.node.outputs[0])
        else:
            return None
    if any(v is None or v.producer() is None for v in more):
        return None
    return [v for v in more if v is not None]


def _is_gated(node: ir.Node, index: int) -> bool:
    return node.op_type == "Mul" and _is_gate(node.inputs[1 - index])


def _is_gate(value: ir.Value | None) -> bool:
    maker = value.producer() if value is not None else None
    return maker is not None and maker.op_type in GATES


def spread_channels(model: ir.Model, orders: float, seed: int = 0) -> int:
    """Scale channels by factors over some orders of magnitude, in place; return how many are scaled."""
    rng, count = np.random.default_rng(seed), 0
    for line in list(lines(model)):
        sizes = {_weight(node).shape[0] for node in line.makers}
        if len(sizes) != 1:
            continue
        channels = sizes.pop()
        factor = (10.0 ** rng.uniform(-orders / 2, orders / 2, channels)).astype(np.float32)
        for node in line.makers:
            _multiply(node, 1, factor.reshape(-1, 1, 1, 1))
            if len(node.inputs) > 2 and node.inputs[2] is not None:
                _multiply(node, 2, factor)
        for node in line.readers:
            groups, weight = node.attributes.get_int("group", 1) or 1, _weight(node)
            read = factor.reshape(groups, -1).repeat(weight.shape[0] // groups, axis=0)  # [Co, Ci/G]
            _multiply(node, 1, 1.0 / read[:, :, None, None])
        count += channels
    return count


def _weight(node: ir.Node) -> Array:
    array = constant(node.inputs[1])
    assert array is not None
    return array


def _multiply(node: ir.Node, index: int, factor: Array) -> None:
    array = constant(node.inputs[index])
    assert array is not None
    set_constant(node, index, (array * factor).astype(np.float32))


def plain(model: ir.Model, x: Array, name: str, *, per_channel: bool) -> ir.Model:
    """Return the model as ONNX Runtime's quantize_static makes it with min-max."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = iter([{name: x[i : i + 1]} for i in range(len(x))])

        def get_next(self) -> dict[str, Array] | None:
            return next(self.feeds, None)

    with tempfile.TemporaryDirectory() as folder:
        first, other = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(to_proto(model), first)
        types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantize_static(str(first), str(other), Reader(), per_channel=per_channel, **types)
        return load(other)


@dataclass(frozen=True)
class Case:
    """A trained net with samples to calibrate on and to measure on."""

    name: str
    path: Path
    calibration: Array
    x: Array
    y: Array | None


def cases() -> Iterator[Case]:
    """Yield the nets that are there."""
    fixtures = ROOT / "fixtures"
    kept, held = np.load(fixtures / "digits_train.npz"), np.load(fixtures / "digits_eval.npz")
    for name in ("digits_mobile", "digits_efficient", "digits_resnet"):
        x, y = held["x"].astype(np.float32), held["y"]
        yield Case(name, fixtures / f"{name}.onnx", kept["x"][:CALIBRATION].astype(np.float32), x, y)
    if not ZOO.exists():
        return
    kept, held = (np.load(ZOO / "data" / f"cifar10_{part}.npz") for part in ("train", "test"))
    first, other = _normalized(kept["x"][:CALIBRATION]), _normalized(held["x"][:LIMIT])
    for name in ("cifar10_resnet20_bn", "cifar10_resnet56_bn"):
        yield Case(name, ZOO / "models" / f"{name}.onnx", first, other, held["y"][:LIMIT])


def _normalized(images: Array) -> Array:
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return np.asarray(((images / 255 - mean) / std).transpose(0, 3, 1, 2), np.float32)


def answers(model: ir.Model, x: Array) -> Array:
    """Return logits, float [N, classes]."""
    session = Session(model)
    name = session.inputs[0].name
    return np.concatenate([next(iter(session.run({name: x[i : i + 64]}).values())) for i in range(0, len(x), 64)])


def _row(case: Case, spread: float, way: str, first: Array, found: Array) -> str:
    labels = case.y if case.y is not None else first.argmax(axis=1)
    right = 100 * float((found.argmax(axis=1) == labels).mean())
    lost = 100 * float((first.argmax(axis=1) == labels).mean()) - right
    noise = float(((first - found) ** 2).mean()) / float(first.var())
    same = 100 * float((first.argmax(axis=1) == found.argmax(axis=1)).mean())
    sqnr = -10 * np.log10(max(noise, 1e-20))
    return f"| {case.name} | {spread:g} | {way} | {right:.2f} | {lost:+.2f} | {same:.2f} | {sqnr:.1f} |"


def measure(case: Case, spread: float) -> Iterator[str]:
    """Yield the rows of one net at one spread."""
    model = onnxedge.optimize(load(case.path), "fold,fuse", measure=False).model
    first = answers(model, case.x)
    count = spread_channels(model, spread) if spread else 0
    name = Session(model).inputs[0].name
    yield _row(case, spread, f"float, {count} channels scaled", first, answers(model, case.x))
    for per_channel in (False, True):
        how = "per channel" if per_channel else "per tensor"
        found = plain(model, case.calibration, name, per_channel=per_channel)
        yield _row(case, spread, f"quantize_static, min-max, {how}", first, answers(found, case.x))
    with tempfile.TemporaryDirectory() as folder:
        calib = Path(folder) / "calib.npz"
        np.savez(calib, **{name: case.calibration})
        for target in TARGETS:
            for options in ("equalize=off,smooth=off", ""):
                done = onnxedge.optimize(model, f"int8({options})", calib=calib, target=target, measure=False)
                nodes = sum(node.op_type == "QuantizeLinear" for node in done.model.graph)
                way = f"onnxedge, {target}{', ' if options else ''}{options}: {nodes} Q"
                yield _row(case, spread, way, first, answers(done.model, case.x))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spread", type=float, nargs="*", default=[0.0, 3.0], help="orders of magnitude")
    parser.add_argument("words", nargs="*", help="nets whose name holds one of these")
    arguments = parser.parse_args()
    print("| net | orders | weights | top-1, % | lost, points | as float, % | SQNR, dB |")
    print("|---|---|---|---|---|---|---|")
    for case in cases():
        if not arguments.words or any(word in case.name for word in arguments.words):
            for spread in arguments.spread:
                for row in measure(case, spread):
                    print(row, flush=True)


if __name__ == "__main__":
    main()
