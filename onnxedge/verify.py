"""Is a model valid, and does it still compute what it computed: structure, interface, numbers."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxedge.errors import OnnxEdgeError, first_line
from onnxedge.metrics import sqnr_db
from onnxedge.model.edit import constant
from onnxedge.model.io import EMBED_LIMIT_BYTES, to_proto, weight_bytes
from onnxedge.passes import Accuracy

Array = np.ndarray[Any, Any]
Outputs = Sequence[Mapping[str, Array]]

#: Largest error, as a share of the largest output, that float arithmetic in another order explains, by dtype.
ROUNDING = {"float16": 2e-2, "float32": 1e-3, "float64": 1e-6}
#: A model that rounds to integers inside may move by whole steps; its error is held to this SQNR instead, dB.
QUANTIZED_SQNR_DB = 25.0
#: Share of integer outputs (classes, indices) that rounding may change.
INTEGER_CHANGES = 0.01

logger = logging.getLogger(__name__)


class Broken(OnnxEdgeError):
    """Say how a model breaks what it promised: invalid, another interface, or other numbers."""


@dataclass(frozen=True)
class Difference:
    """Hold how far outputs are apart: largest absolute error, and SQNR in dB (infinite where equal)."""

    max_abs_diff: float
    sqnr_db: float


#: Elements of a shape computation above which onnx's data propagation is not asked: it computes every one of them.
PROPAGATED_ELEMENTS = 4096


def infer_shapes(model: ir.Model) -> None:
    """Fill in the types and shapes that follow from the inputs; what cannot be inferred stays as it was.

    Only tensors: onnx_ir 1.1 turns the type of a sequence into that of a tensor when it merges what onnx inferred.
    """
    from onnx_ir.passes.common import ShapeInferencePass

    if not _is_inferable(model):
        return
    before = {id(value): value.type for graph in model.graphs() for node in graph for value in node.outputs}
    _forget_generated(model)
    try:
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=not _data_grows(model))(model)
    except Exception as err:  # onnx's inference raises types of its own; the model is unchanged then
        logger.info("shape inference failed: %s", first_line(err))
    _restore_types(model, before)


#: How onnx names the dimensions that it cannot tell; it counts from 0 in each inference.
_GENERATED = re.compile(r"unk__\d+")


def _forget_generated(model: ir.Model) -> None:
    """Drop the names that an earlier inference gave: the next one may give them to other dimensions."""
    for graph in model.graphs():
        for value in (value for node in graph for value in node.outputs):
            shape = value.shape
            if shape is not None and any(_GENERATED.fullmatch(str(dim)) for dim in shape):
                value.shape = ir.Shape([None if _GENERATED.fullmatch(str(dim)) else dim for dim in shape])


_SEQUENCES = frozenset(
    {
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceMap",
        "SplitToSequence",
        "Optional",
    }
)
_CARRIERS = frozenset({"Identity", "OptionalGetElement", "If", "Loop", "Scan"})


def _restore_types(model: ir.Model, before: Mapping[int, ir.TypeProtocol | None]) -> None:
    """Give back the types of values that are no tensors; twice, since a body's outputs decide what a Loop gives."""
    sequences: set[int] = set()
    for node in (node for _ in range(2) for graph in model.graphs() for node in graph):
        made = node.op_type in _SEQUENCES or (
            node.op_type in _CARRIERS and any(id(v) in sequences for v in _sources(node))
        )
        for value in node.outputs:
            was = before[id(value)]
            if made or (was is not None and not isinstance(was, ir.TensorType)):
                sequences.add(id(value))
                value.type = was


def _sources(node: ir.Node) -> list[ir.Value | None]:
    bodies = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
    return [*node.inputs, *(value for body in bodies for value in body.outputs)]


def _data_grows(model: ir.Model) -> bool:
    """Tell whether a chain of Concats multiplies what it is given, as in a doubling bomb."""
    sizes: dict[int, int] = {}
    for graph in model.graphs():
        for node in graph:
            if node.op_type == "Concat":
                size = sum(sizes.get(id(value), 1) for value in node.inputs)
                if size > PROPAGATED_ELEMENTS:
                    return True
                sizes[id(node.outputs[0])] = size
            elif node.op_type in ("Identity", "Cast", "Add", "Mul", "Gather", "Unsqueeze", "Squeeze"):
                sizes[id(node.outputs[0])] = max((sizes.get(id(value), 1) for value in node.inputs), default=1)
            elif node.op_type == "ConstantOfShape" and (shape := constant(node.inputs[0])) is not None:
                sizes[id(node.outputs[0])] = math.prod(int(size) for size in shape)
            elif node.op_type in ("Range", "Tile", "Expand", "ConstantOfShape"):
                sizes[id(node.outputs[0])] = PROPAGATED_ELEMENTS
    return False


def _is_inferable(model: ir.Model) -> bool:
    """Tell whether onnx's shape inference is known to end: Einsum with a repeated index never returns in 1.23."""
    return not any(_repeats_index(node) for graph in model.graphs() for node in graph if node.op_type == "Einsum")


def _repeats_index(einsum: ir.Node) -> bool:
    equation = einsum.attributes.get("equation")
    terms = equation.as_string().split("->")[0].split(",") if equation is not None else []
    letters = (term.strip().replace(".", "") for term in terms)
    return any(len(set(term)) < len(term) for term in letters)


def check_structure(model: ir.Model, before: ir.Model) -> None:
    """Check that a model is valid and has the interface of the model before.

    Raises:
        Broken: with the first thing found.
    """
    for kind, old, new in (
        ("input", before.graph.inputs, model.graph.inputs),
        ("output", before.graph.outputs, model.graph.outputs),
    ):
        _check_interface(kind, old, new)
    if weight_bytes(model) > EMBED_LIMIT_BYTES:
        return  # the checker reads one message of at most 2 GiB; the runtime reads the file
    try:
        onnx.checker.check_model(to_proto(model))
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as err:
        raise Broken(f"the model is not valid any more: {first_line(err)}") from err
    for key in before.metadata_props:
        if key not in model.metadata_props:
            raise Broken(f"metadata {key!r} is gone")


def _check_interface(kind: str, old: Sequence[ir.Value], new: Sequence[ir.Value]) -> None:
    names, now = [v.name for v in old], [v.name for v in new]
    if names != now:
        raise Broken(f"{kind}s changed from {names} to {now}")
    for was, value in zip(old, new, strict=True):
        if was.dtype is not None and value.dtype != was.dtype:
            raise Broken(f"{kind} {was.name!r} changed from {was.dtype} to {value.dtype}")
        if was.shape is None or value.shape is None:
            continue
        dims, now_dims = list(was.shape), list(value.shape)
        pairs = list(zip(dims, now_dims, strict=False))
        if len(dims) != len(now_dims) or any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs):
            raise Broken(f"{kind} {was.name!r} changed shape from {dims} to {now_dims}")
        if kind == "input" and any(not isinstance(a, int) and isinstance(b, int) for a, b in pairs):
            raise Broken(f"input {was.name!r}: a free dimension was fixed: {dims} to {now_dims}")


def check_numbers(before: Outputs, after: Outputs, promise: Accuracy, *, quantized: bool = False) -> Difference:
    """Hold the outputs behind a pass to its promise.

    Args:
        before, after: one mapping of output name to array for each feed.
        promise: ``exact``, ``rounding`` or ``lossy``; lossy outputs need only stay finite and keep their shapes.
        quantized: the model has integer steps inside, which another rounding may move by whole steps.

    Raises:
        Broken: the promise is not kept.
    """
    worst, noise, signal = 0.0, 0.0, 0.0
    for old_outputs, new_outputs in zip(before, after, strict=True):
        for name, old in old_outputs.items():
            if name not in new_outputs:
                raise Broken(f"output {name!r} is gone")
            new = new_outputs[name]
            _check_shape_and_finite(name, old, new)
            if promise == "exact":
                _check_exact(name, old, new)
            elif promise == "rounding":
                _check_rounding(name, old, new, quantized)
            if isinstance(old, np.ndarray) and old.dtype.kind == "f" and old.size:
                finite = np.isfinite(old)
                error = np.abs(old[finite].astype(np.float64) - new[finite])
                worst = max(worst, float(error.max(initial=0.0)))
                noise += float((error**2).sum())
                signal += float((old[finite].astype(np.float64) ** 2).sum())
    return Difference(worst, float("inf") if noise == 0 else 10 * float(np.log10(max(signal, 1e-300) / noise)))


def _check_shape_and_finite(name: str, old: Array, new: Array) -> None:
    if not isinstance(old, np.ndarray):
        if type(old) is not type(new):
            raise Broken(f"output {name!r} is of another type")
        return
    if old.shape != new.shape or old.dtype != new.dtype:
        raise Broken(f"output {name!r}: {old.dtype}{list(old.shape)} became {new.dtype}{list(new.shape)}")
    if old.dtype.kind == "f" and bool((np.isfinite(old) & ~np.isfinite(new)).any()):
        raise Broken(f"output {name!r} has values that are not finite any more")


def _check_exact(name: str, old: Array, new: Array) -> None:
    if not isinstance(old, np.ndarray):
        equal = bool(np.all(np.array_equal(np.asarray(old, object), np.asarray(new, object))))
    else:
        equal = np.array_equal(old, new, equal_nan=old.dtype.kind == "f")
    if not equal:
        raise Broken(f"output {name!r} is not bit-equal{_apart(old, new)}")


def _apart(old: Array, new: Array) -> str:
    if not isinstance(old, np.ndarray) or old.dtype.kind not in "fiu" or not old.size:
        return ""
    return f": differs by up to {np.nanmax(np.abs(old.astype(np.float64) - new)):.3g}"


def _check_rounding(name: str, old: Array, new: Array, quantized: bool) -> None:
    if not isinstance(old, np.ndarray) or not old.size:
        return
    if old.dtype.kind != "f":
        changed = float(np.mean(old != new))
        if changed > INTEGER_CHANGES:
            raise Broken(f"output {name!r}: {changed:.1%} of the values changed")
        return
    finite = np.isfinite(old)
    if not np.array_equal(old[~finite], new[~finite], equal_nan=True):
        raise Broken(f"output {name!r}: values that were not finite changed")
    if not finite.any():
        return
    a, b = old[finite].astype(np.float64), new[finite].astype(np.float64)
    if quantized:
        if (ratio := sqnr_db(a, b)) < QUANTIZED_SQNR_DB:
            raise Broken(f"output {name!r}: SQNR {ratio:.1f} dB, more than rounding explains")
        return
    scale = max(float(np.abs(a).max()), 1e-30)
    error = float(np.abs(a - b).max())
    if error > max(ROUNDING.get(str(old.dtype), 1e-3) * scale, 1e-7):
        raise Broken(
            f"output {name!r} differs by {error:.3g} at a magnitude of {scale:.3g}, more than rounding explains"
        )
