"""How time and memory grow with the size of a graph, and what 3 GiB of weights take.

    python benchmarks/scale.py                          # all kinds at 10,000 and 100,000 nodes, and the large model
    python benchmarks/scale.py identity readers         # some kinds
    python benchmarks/scale.py --nodes 10000 --nodes 20000
    python benchmarks/scale.py large --gib 3            # only the large model
    python benchmarks/scale.py --numeric                # with verification and measuring, as a user runs it

Each run is a process of its own that reads a file and writes one; its CPU seconds count, since other processes on the
machine do not change them much. Without ``--numeric`` the passes run with structure checks alone. The last column but
one is CPU time per node over that of the smallest size.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROW = np.array([1e-3, 2e-3, 3e-3, 4e-3], np.float32)


def graph(nodes: Sequence[onnx.NodeProto], tensors: Sequence[TensorProto] = (), width: int = 4) -> onnx.ModelProto:
    """Return a model from ``x`` to ``y``, both float32 [N, width]."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width]) for name in "xy")
    body = helper.make_graph(nodes, "scale", [x], [y], tensors)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def chain(
    count: int,
    operator: Callable[[int], tuple[str, list[str]]],
    tensors: Sequence[TensorProto] = (),
    *,
    first: str = "x",
    ending: Sequence[onnx.NodeProto] = (),
) -> onnx.ModelProto:
    """Return a chain; ``operator`` gives the operator and the further inputs of each node."""
    nodes, value = [], first
    for index in range(count - len(ending)):
        op_type, more = operator(index)
        last = "end" if ending else "y"
        made = last if index == count - len(ending) - 1 else f"v{index}"
        nodes.append(helper.make_node(op_type, [value, *more], [made], name=f"n{index}"))
        value = made
    return graph([*nodes, *ending], tensors)


def row(name: str, array: np.ndarray = ROW) -> TensorProto:
    """Return a constant."""
    return numpy_helper.from_array(array, name)


def add(count: int) -> onnx.ModelProto:
    """Additions of one constant, which stay."""
    return chain(count, lambda i: ("Add", ["c"]), [row("c")])


def weights(count: int) -> onnx.ModelProto:
    """Additions of a constant each."""
    tensors = [row(f"c{i}", ROW + np.float32(i)) for i in range(count)]
    return chain(count, lambda i: ("Add", [f"c{i}"]), tensors)


def activations(count: int) -> onnx.ModelProto:
    """Relu and Sigmoid in turns."""
    return chain(count, lambda i: ("Relu" if i % 2 else "Sigmoid", []))


def identity(count: int) -> onnx.ModelProto:
    """Nodes that all go but one."""
    return chain(count, lambda i: ("Identity" if i != count // 2 else "Neg", []))


def foldable(count: int) -> onnx.ModelProto:
    """Nodes that do not depend on the input."""
    end = helper.make_node("Add", ["x", "end"], ["y"])
    return chain(count, lambda i: ("Relu" if i % 2 else "Sigmoid", []), [row("c")], first="c", ending=[end])


def shape(count: int) -> onnx.ModelProto:
    """Arithmetic on the input's shape, which stays unknown."""
    head = helper.make_node("Shape", ["x"], ["s"])
    cast = helper.make_node("Cast", ["end"], ["f"], to=TensorProto.FLOAT)
    total = helper.make_node("ReduceSum", ["f"], ["t"], keepdims=0)
    end = helper.make_node("Add", ["x", "t"], ["y"])
    one = row("one", np.array([1], np.int64))
    model = chain(
        count - 1, lambda i: ("Sub" if i % 2 else "Add", ["one"]), [one], first="s", ending=[cast, total, end]
    )
    model.graph.node.insert(0, head)
    return model


def expressions(count: int) -> onnx.ModelProto:
    """Squares, products and sums, which rules look at again and again."""
    kinds = (("Mul", None), ("Add", "c"), ("Mul", "d"), ("Add", "c"))

    def operator(index: int) -> tuple[str, list[str]]:
        op_type, constant = kinds[index % 4]
        return op_type, [constant or (f"v{index - 1}" if index else "x")]

    return chain(count, operator, [row("c"), row("d", np.array(0.999, np.float32))])


def readers(count: int) -> onnx.ModelProto:
    """Values with a quarter of all nodes as readers: one that stays, and a Concat that reads one value as often."""
    branches = count // 4
    nodes = [helper.make_node("Relu", ["x"], ["hub"]), helper.make_node("Identity", ["hub"], ["twin"])]
    for index in range(branches):
        op_type = "Identity" if index % 2 else "Neg"
        nodes.append(helper.make_node(op_type, ["twin"], [f"a{index}"], name=f"a{index}"))
        nodes.append(helper.make_node("Sigmoid", [f"a{index}"], [f"b{index}"], name=f"b{index}"))
        nodes.append(helper.make_node("Add", [f"b{index}", "twin"], [f"c{index}"], name=f"c{index}"))
    nodes.append(helper.make_node("Concat", [f"c{index}" for index in range(branches)], ["wide"], axis=0))
    nodes.append(helper.make_node("ReduceMax", ["wide"], ["most"], axes=[0], keepdims=1))
    value = "most"
    for index in range(count - len(nodes) - 1):
        nodes.append(helper.make_node("Add", [value, "twin"], [f"d{index}"], name=f"d{index}"))
        value = f"d{index}"
    nodes.append(helper.make_node("Identity", [value], ["y"]))
    return graph(nodes)


KINDS: dict[str, Callable[[int], onnx.ModelProto]] = {
    kind.__name__: kind for kind in (add, weights, activations, identity, foldable, shape, expressions, readers)
}


def large(folder: Path, gib: float) -> Path:
    """Write a transformer's feed-forward layers with raw normalization, their weights in three files."""
    width, layers = 2048, max(1, round(gib * 2**30 / (2 * 4 * 4 * 2048 * 2048)))
    rng = np.random.default_rng(0)
    block = (rng.standard_normal((width, 4 * width)) * 0.02).astype(np.float32)
    tensors = [row("two", np.float32(2)), row("tiny", np.float32(1e-5))]
    nodes: list[onnx.NodeProto] = []
    files = [(folder / f"part{index}.bin").open("wb") for index in range(3)]

    def node(op_type: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op_type, inputs, [output], name=f"node/{output}", **attributes))
        return output

    def weight(name: str, array: np.ndarray, part: int) -> str:
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        entries = (("location", f"part{part}.bin"), ("offset", files[part].tell()), ("length", array.nbytes))
        for key, value in entries:
            tensor.external_data.add(key=key, value=str(value))
        files[part].write(array.tobytes())
        tensors.append(tensor)
        return name

    value = "x"
    for index in range(layers):
        at, part = f"layer{index}/", index % 3
        mean = node("ReduceMean", [value], at + "mean", axes=[-1])
        centred = node("Sub", [value, mean], at + "centred")
        variance = node("ReduceMean", [node("Pow", [centred, "two"], at + "square")], at + "variance", axes=[-1])
        deviation = node("Sqrt", [node("Add", [variance, "tiny"], at + "sum")], at + "deviation")
        gamma, beta = (weight(at + name, block[row, :width], part) for row, name in enumerate(("gamma", "beta")))
        scaled = node("Mul", [node("Div", [centred, deviation], at + "normal"), gamma], at + "scaled")
        normal = node("Add", [scaled, beta], at + "norm")
        wide = node("MatMul", [normal, weight(at + "up", block, part)], at + "wide")
        bias = weight(at + "bias", block.reshape(-1)[: 4 * width], part)
        active = node("Relu", [node("Add", [wide, bias], at + "biased")], at + "active")
        narrow = node("MatMul", [active, weight(at + "down", block.reshape(4 * width, width), part)], at + "narrow")
        last = "y" if index == layers - 1 else at + "out"
        value = node("Add", [node("Identity", [narrow], at + "same"), value], last)
    for file in files:
        file.close()
    path = folder / "large.onnx"
    onnx.save(graph(nodes, tensors, width), path)
    return path


def child(source: str, output: str, numeric: str) -> None:
    """Optimize one file and print what it took, in a process of its own."""
    import onnxedge

    start, wall = time.process_time(), time.perf_counter()
    if numeric == "numeric":
        report = onnxedge.optimize(source, "fold,fuse", output=output).report
    else:
        report = onnxedge.optimize(source, "fold,fuse", output=output, verify="structure", measure=False).report
    print(
        json.dumps(
            {
                "cpu": time.process_time() - start,
                "wall": time.perf_counter() - wall,
                "before": report.before.nodes,
                "after": report.after.nodes,
                "status": ",".join(record.status for record in report.passes),
                "unmeasured": report.unmeasured,
                "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    )


def measured(source: Path, folder: Path, *, numeric: bool, limit: float) -> dict[str, object] | str:
    """Run a child and return what it printed, or why there is nothing."""
    how = "numeric" if numeric else "structure"
    command = [sys.executable, __file__, "--child", str(source), str(folder / "out.onnx"), how]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return f"over {limit:g} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["failed"])[-1][:120]
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print the table, a row at a time."""
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:5])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join((*KINDS, 'large'))}")
    parser.add_argument("--nodes", action="append", type=int, help="sizes; the ratio is to the first")
    parser.add_argument("--gib", type=float, default=3.0, help="weights of the large model")
    parser.add_argument("--numeric", action="store_true", help="verify by running, and measure")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds a run may take")
    arguments = parser.parse_args()
    kinds = arguments.kinds or [*KINDS, "large"]
    print("| kind | nodes | left | CPU s | wall s | us/node | ratio | peak RSS, MiB |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in (kind for kind in kinds if kind in KINDS):
            base = 0.0
            sizes = arguments.nodes or ([2_000, 20_000] if kind == "readers" else [10_000, 100_000])
            for count in sizes:
                source = folder / "model.onnx"
                onnx.save(KINDS[kind](count), source)
                found = measured(source, folder, numeric=arguments.numeric, limit=arguments.limit)
                base = line(kind, count, found, base)
        if "large" in kinds:
            source = large(folder, arguments.gib)
            found = measured(source, folder, numeric=True, limit=arguments.limit)
            line(f"{arguments.gib:g} GiB of weights", 0, found, 0.0)


def line(kind: str, count: int, found: dict[str, object] | str, base: float) -> float:
    """Print a row and return the CPU time per node that later ones are compared with."""
    if isinstance(found, str):
        print(f"| {kind} | {count} | - | {found} | | | | |", flush=True)
        return base
    count = count or int(str(found["before"]))
    cpu, wall, peak = (float(str(found[key])) for key in ("cpu", "wall", "peak"))
    each = cpu / count * 1e6
    ratio = f"{each / base:.2f}" if base else "1"
    print(
        f"| {kind} | {count} | {found['after']} | {cpu:.1f} | {wall:.1f} | {each:.0f} | {ratio} | {peak / 2**20:.0f} |",
        flush=True,
    )
    return base or each


if __name__ == "__main__":
    main()
