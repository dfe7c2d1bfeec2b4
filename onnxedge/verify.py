"""Is a model valid, and does it still compute what it computed: structure, interface, numbers."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxedge.errors import OnnxEdgeError, first_line
from onnxedge.metrics import sqnr_db
from onnxedge.model.graph import constant, nest
from onnxedge.model.interface import Interface, Port
from onnxedge.model.skeleton import Skeleton
from onnxedge.passes import Accuracy

Array = np.ndarray[Any, Any]
Outputs = Sequence[Mapping[str, Array]]
Inferred = onnx.GraphProto | None

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
#: Nodes behind local functions above which onnx's inference is not asked.
INLINED_NODES = 200_000


def infer_shapes(model: ir.Model, skeleton: Skeleton | None = None) -> Inferred:
    """Fill in the types and shapes that follow from the inputs; what cannot be inferred stays as it was.

    Args:
        model: edited in place.
        skeleton: of the model, where the caller has it.

    Returns:
        What was found, for :func:`adopt` on a model that is made of the skeleton again; None where there is nothing.
    """
    if not _is_inferable(model):
        return None
    renamed = _forget_generated(model)
    return _infer(model, Skeleton(model) if skeleton is None or renamed else skeleton)


def _infer(model: ir.Model, skeleton: Skeleton) -> Inferred:
    try:
        inferred = onnx.shape_inference.infer_shapes(
            skeleton.proto(), check_type=False, strict_mode=False, data_prop=not _data_grows(model)
        )
    except Exception as err:  # onnx's inference raises types of its own; the model is unchanged then
        logger.info("shape inference failed: %s", first_line(err))
        return None
    adopt(model.graph, inferred.graph)
    return inferred.graph


def adopt(graph: ir.Graph, proto: onnx.GraphProto) -> None:
    """Take over what was inferred for a graph and the graphs nested in it."""
    kinds = {info.name: info.type for field in (proto.value_info, proto.output) for info in field}
    bodies: list[tuple[int, ir.Attr]] = []
    for index, node in enumerate(graph):
        for value in node.outputs:
            if (kind := kinds.get(value.name or "")) is not None:
                _adopt(value, kind)
        bodies.extend((index, a) for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH)
    for index, attribute in bodies:
        body, inner = attribute.as_graph(), next(a.g for a in proto.node[index].attribute if a.name == attribute.name)
        for value, info in zip(body.inputs, inner.input, strict=True):
            _adopt(value, info.type)
        adopt(body, inner)


def _adopt(value: ir.Value, kind: onnx.TypeProto) -> None:
    """Take over the type of a tensor; what was said to be a sequence, a map or optional stays that."""
    if not kind.HasField("tensor_type") or not (value.type is None or isinstance(value.type, ir.TensorType)):
        return
    tensor = kind.tensor_type
    if tensor.elem_type and (value.type is None or value.type.dtype != tensor.elem_type):
        value.type = ir.TensorType(ir.DataType(tensor.elem_type))
    if tensor.HasField("shape"):
        dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim]
        if value.shape is None or dims != [d if isinstance(d, int) else d.value for d in value.shape]:
            value.shape = ir.Shape(dims)


#: How onnx names the dimensions that it cannot tell; it counts from 0 in each inference.
_GENERATED = "unk__"


def _is_generated(dim: int | ir.SymbolicDim) -> bool:
    return not isinstance(dim, int) and str(dim.value or "").startswith(_GENERATED)


def _forget_generated(model: ir.Model) -> bool:
    """Drop the names that an earlier inference gave: the next one may give them to other dimensions.

    Returns:
        Whether there were any.
    """
    found = False
    for graph in nest(model.graph):
        for value in (value for node in graph for value in node.outputs):
            shape = value.shape
            if shape is not None and any(_is_generated(dim) for dim in shape):
                value.shape = ir.Shape([None if _is_generated(dim) else dim for dim in shape])
                found = True
    return found


def _data_grows(model: ir.Model) -> bool:
    """Tell whether a chain of Concats multiplies what it is given, as in a doubling bomb."""
    sizes: dict[int, int] = {}
    for graph in nest(model.graph):
        for node in graph:
            if node.op_type == "Concat":
                size = sum(sizes.get(id(value), 1) for value in node.inputs)
                if size > PROPAGATED_ELEMENTS:
                    return True
                sizes[id(node.outputs[0])] = size
            elif node.op_type in ("Identity", "Cast", "Add", "Mul", "Gather", "Unsqueeze", "Squeeze"):
                sizes[id(node.outputs[0])] = max((sizes.get(id(value), 1) for value in node.inputs), default=1)
            elif node.op_type == "ConstantOfShape" and (shape := constant(node.inputs[0])) is not None:
                size = math.prod(int(size) for size in shape)
                if size > PROPAGATED_ELEMENTS:
                    return True
                sizes[id(node.outputs[0])] = size
            elif node.op_type == "Range" and _is_long(node, model):
                return True
            elif node.op_type in ("Range", "Tile", "Expand", "ConstantOfShape"):
                sizes[id(node.outputs[0])] = PROPAGATED_ELEMENTS
    return False


def _is_long(node: ir.Node, model: ir.Model) -> bool:
    """Tell whether a Range may count further than inference should follow."""
    bounds = [constant(value) for value in node.inputs]
    if len(bounds) == 3 and all(bound is not None and bound.size == 1 for bound in bounds):
        start, limit, step = (float(bound.item()) for bound in bounds if bound is not None)
        return not step or not abs((limit - start) / step) <= PROPAGATED_ELEMENTS
    shapes = (value.shape for value in model.graph.inputs if value.shape is not None)
    return any(isinstance(dim, int) and dim > PROPAGATED_ELEMENTS**2 for shape in shapes for dim in shape)


def _is_inferable(model: ir.Model) -> bool:
    """Tell whether onnx's shape inference is known to end.

    In 1.23 Einsum with a repeated index never returns; local functions are followed into each call of each call.
    """
    if model.functions and inlined_count(model) > INLINED_NODES:
        return False
    return not any(_repeats_index(node) for graph in nest(model.graph) for node in graph if node.op_type == "Einsum")


def inlined_count(model: ir.Model) -> float:
    """Return how many nodes a model has when its local functions are inlined; infinity where one calls itself."""
    counts: dict[ir.OperatorIdentifier, float] = {}

    def of(nodes: Iterable[ir.Node]) -> float:
        total = 0.0
        for node in nodes:
            key = node.op_identifier()
            if key in model.functions and key not in counts:
                counts[key] = math.inf  # until it is known: a function that calls itself has no end
                counts[key] = of(model.functions[key].graph.all_nodes())
            total += counts.get(key, 1.0)
        return total

    try:
        return of(model.graph.all_nodes())
    except RecursionError:
        return math.inf


def _repeats_index(einsum: ir.Node) -> bool:
    equation = einsum.attributes.get("equation")
    terms = equation.as_string().split("->")[0].split(",") if equation is not None else []
    letters = (term.strip().replace(".", "") for term in terms)
    return any(len(set(term)) < len(term) for term in letters)


def check_structure(model: ir.Model, before: Interface, *, fixes_defaults: bool = False) -> tuple[Skeleton, Inferred]:
    """Check that a model is valid and has the interface of the model before, and infer its shapes on the way.

    Args:
        model: to check.
        before: that of the model that it was made from.
        fixes_defaults: inputs that have a default may be gone, as they may below IR version 4, where ONNX Runtime takes
            no value for them.

    Returns:
        The model's skeleton, and the shapes that were inferred since.

    Raises:
        Broken: with the first thing found.
    """
    inputs = before.inputs
    if fixes_defaults or before.ir_version < 4:
        kept = {value.name for value in model.graph.inputs}
        inputs = tuple(port for port in inputs if not port.has_default or port.name in kept)
    for kind, old, new in (
        ("input", inputs, model.graph.inputs),
        ("output", before.outputs, model.graph.outputs),
    ):
        _check_interface(kind, old, new)
    _forget_generated(model)
    try:
        skeleton = Skeleton(model)
        onnx.checker.check_model(skeleton.proto())
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as err:
        raise Broken(f"the model is not valid any more: {first_line(err)}") from err
    for key in sorted(before.metadata):
        if key not in model.metadata_props:
            raise Broken(f"metadata {key!r} is gone")
    return skeleton, _infer(model, skeleton) if _is_inferable(model) else None


def _check_interface(kind: str, old: Sequence[Port], new: Sequence[ir.Value]) -> None:
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
