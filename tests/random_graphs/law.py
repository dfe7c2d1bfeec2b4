"""The law that random graphs are held to: ``fold`` keeps every bit, ``fuse`` keeps what rounding leaves."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from hostile.outputs import difference, session

from onnxedge.api import Context, Pass, refresh_scopes, to_proto
from onnxedge.model.io import from_proto
from onnxedge.registry import find_pass
from onnxedge.target import Target, load_packaged_target
from onnxedge.verify import infer_shapes
from random_graphs.build import feed_for
from random_graphs.graph import BINDINGS

NOISE = 16  #: units in the last place by which each value is disturbed, to learn how far rounding goes
SLACK = 8.0  #: times the largest effect of the disturbance that a rewrite may have
Outputs = list[Any]


class NotAccepted(Exception):
    """Say that ONNX Runtime does not run a model, so that nothing can be told from it."""


class Broken(AssertionError):
    """Say how a model broke the law."""


@dataclass(frozen=True)
class Example:
    """Hold a model, its three feeds, its outputs on each, and how far rounding alone moves them."""

    model: onnx.ModelProto
    feeds: Sequence[dict[str, Any]]
    outputs: Sequence[Outputs]
    disturbed: Sequence[Sequence[Outputs]]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Example:
        """Run a model.

        Raises:
            NotAccepted: the checker or the runtime refuses it.
        """
        feeds = [feed_for(model, binding) for binding in range(len(BINDINGS["N"]))]
        try:
            onnx.checker.check_model(model)
            outputs = _run(model, feeds)
            disturbed = [_run(_disturb(model, seed), feeds) for seed in range(3)]
        except Exception as err:  # the checker's and the runtime's exceptions share no base
            raise NotAccepted(str(err)) from err
        return cls(model, feeds, outputs, disturbed)


def _run(model: onnx.ModelProto, feeds: Sequence[dict[str, Any]]) -> list[Outputs]:
    runner = session(model.SerializeToString())
    return [runner.run(None, feed) for feed in feeds]


def _disturb(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """Return a model that multiplies each float that a node of the main graph makes by nearly one."""
    rng = np.random.default_rng(seed)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kinds = _float_kinds(model)
    nodes: list[onnx.NodeProto] = []
    outputs = {value.name for value in model.graph.output}
    renamed: dict[str, str] = {}
    for node in model.graph.node:
        new = onnx.NodeProto()
        new.CopyFrom(node)
        nodes.append(new)
        for index, name in enumerate(node.output):
            if name not in kinds:
                continue
            new.output[index] = renamed[name] = f"{name}~"
            factor = np.asarray(1 + NOISE * rng.choice([-1.0, -0.5, 0.5, 1.0]) * np.finfo(kinds[name]).eps, kinds[name])
            weight = f"{name}~1"
            copy.graph.initializer.append(onnx.numpy_helper.from_array(factor, weight))
            nodes.append(onnx.helper.make_node("Mul", [new.output[index], weight], [name]))
    del outputs
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    if copy.ir_version < 4:
        copy.ir_version = 4
    return copy


def _float_kinds(model: onnx.ModelProto) -> dict[str, np.dtype[Any]]:
    """Return the float values of the main graph that nodes make, with their types."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=False)
    kinds = {}
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if kind.kind == "f":
            kinds[value.name] = kind
    made = {name for node in model.graph.node if node.op_type != "Constant" for name in node.output if name}
    return {name: kind for name, kind in kinds.items() if name in made}


def check(example: Example, targets: Sequence[str] = ("ort-cpu",)) -> list[str]:
    """Run the families over a model, and compare.

    Returns:
        What was rewritten, one line for each family and target.

    Raises:
        Broken: with the family, and what it broke.
    """
    told = []
    for target in targets:
        folded, line = _applied(example.model, "fold", target)
        told.append(line)
        _compare(example, folded, "fold", exact=not _has_half(example.model))
        fused, line = _applied(folded, "fuse", target)
        told.append(line)
        _compare(example, fused, "fuse", exact=False)
    return told


def _applied(model: onnx.ModelProto, name: str, target: str) -> tuple[onnx.ModelProto, str]:
    """Return the model behind a pass, which must be valid and have nothing left to do."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = from_proto(copy)
    step: Pass = find_pass(name)()  # type: ignore[assignment]
    try:
        result = _pass_over(graph, step, target)
        proto = to_proto(graph)
        onnx.checker.check_model(proto)
        again = _pass_over(graph, step, target)
    except Exception as err:  # a pass may raise anything, and must not
        raise Broken(f"{name}: {type(err).__name__}: {err}") from err
    if again.rewrites:
        raise Broken(f"{name}: a second run rewrites again: {again.summary or again.rewrites}")
    if _interface(proto) != _interface(model):
        raise Broken(f"{name}: another interface")
    return proto, f"{name} on {target}: {result.summary or result.rewrites}"


def _pass_over(graph: Any, step: Pass, target: str) -> Any:
    infer_shapes(graph)
    refresh_scopes(graph)
    context = Context(_target(target), None, original=graph.clone())
    context.begin(step.name)
    result = step.run(graph, context)
    if graph.ir_version < 4 and any(not value.is_graph_input() for value in graph.graph.initializers.values()):
        graph.ir_version = 4
    return result


@functools.cache
def _target(name: str) -> Target:
    return load_packaged_target("onnxedge.targets", name)  # type: ignore[arg-type]


def _interface(model: onnx.ModelProto) -> list[tuple[str, int]]:
    inside = {tensor.name for tensor in model.graph.initializer}
    values = [*(v for v in model.graph.input if v.name not in inside), *model.graph.output]
    return [(value.name, value.type.tensor_type.elem_type) for value in values]


def _has_half(model: onnx.ModelProto) -> bool:
    """Tell whether a model computes in 16 bits: the CPU runtime does so in 32, and rounds where nodes meet."""
    return b"float16" in str(_float_kinds(model).values()).encode() or any(
        value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16 for value in model.graph.input
    )


def _compare(example: Example, model: onnx.ModelProto, name: str, *, exact: bool) -> None:
    try:
        results = _run(model, example.feeds)
    except Exception as err:  # the runtime's exceptions share no base
        raise Broken(f"{name}: the model does not run any more: {err}") from err
    for binding, (before, after) in enumerate(zip(example.outputs, results, strict=True)):
        if exact:
            told = difference(before, after, exact=True)
        else:
            told = _beyond_rounding(before, after, [outputs[binding] for outputs in example.disturbed])
        if told:
            raise Broken(f"{name}: binding {binding}: {told}")


def _beyond_rounding(before: Outputs, after: Outputs, disturbed: Sequence[Outputs]) -> str:
    """Return how outputs differ by more than rounding in the model itself explains, as the disturbed runs show it."""
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        if old.dtype != new.dtype or old.shape != new.shape:
            return f"output {index}: {old.dtype}{list(old.shape)} became {new.dtype}{list(new.shape)}"
        noisy = [outputs[index] for outputs in disturbed]
        if any(other.shape != old.shape for other in noisy):
            continue
        if old.dtype.kind != "f":
            if all(np.array_equal(old, other) for other in noisy) and not np.array_equal(old, new):
                return f"output {index}: not equal"
            continue
        told = _floats(old, new, noisy)
        if told:
            return f"output {index}: {told}"
    return ""


def _floats(old: Any, new: Any, noisy: Sequence[Any]) -> str:
    finite = np.isfinite(old)
    if any(not np.array_equal(np.isfinite(other), finite) for other in noisy):
        return ""  # on the brink of an overflow or a pole
    if not np.array_equal(old[~finite], new[~finite], equal_nan=True) or not np.isfinite(new[finite]).all():
        return "other values are not finite"
    if not finite.any():
        return ""
    wide = old[finite].astype(np.float64)
    effect = max(float(np.abs(other[finite].astype(np.float64) - wide).max()) for other in noisy)
    scale = float(np.abs(wide).max())
    allowed = SLACK * effect + 4 * NOISE * float(np.finfo(old.dtype).eps) * scale + 1e-30
    error = float(np.abs(new[finite].astype(np.float64) - wide).max())
    return f"differs by {error:.3g} at {scale:.3g}, rounding explains {allowed:.3g}" if error > allowed else ""
