"""Types and shapes of values, one node at a time, so that folding and shape inference can take turns.

``onnx.shape_inference`` on whole models merges what it infers with what the file declares, and declared inner shapes
are often wrong; here only graph inputs, constants and operators without a schema are believed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import onnx
import onnx_ir as ir
from onnx.shape_inference import InferenceError, infer_node_outputs

from onnxedge.api import Array, constant_tensor, is_standard, operator

_DATA_LIMIT = 1024  #: constants of at most so many elements are shown to shape inference
Dims = list[int | str | None]


@dataclass(frozen=True, eq=False)
class Kind:
    """Hold a type, one object for all values that have it, so that it is taken apart once and equal by identity.

    Attributes:
        proto: of a tensor, a sequence or anything else.
        tensor: what it says of a tensor; None for anything else.
        dims: of a tensor whose rank is known.
        static: shape and dtype of a tensor whose dimensions are all known.
    """

    proto: onnx.TypeProto
    tensor: onnx.TypeProto.Tensor | None = None
    dims: Dims | None = None
    static: tuple[tuple[int, ...], ir.DataType] | None = None


class Types:
    """Hold the tensor type of each value that is known, and infer those of a node's outputs.

    Values are held, not their ``id``: a value that is dropped on the way may leave its ``id`` to a new one.

    Args:
        opset: version of the default domain.
        computed: returns the array of a value that was folded and does not stand in the graph yet, or None.
    """

    def __init__(self, opset: int, computed: Callable[[ir.Value], Array | None]) -> None:
        self._opset = opset
        self._computed = computed
        self._types: dict[ir.Value, Kind] = {}
        self._kinds: dict[bytes, Kind] = {}
        self._schemas: dict[str, onnx.defs.OpSchema | None] = {}
        self._imports = [onnx.helper.make_opsetid("", opset)]
        self._seen: dict[Hashable, list[Kind | None] | None] = {}
        self.learned = False  #: whether anything was written into the graph that did not stand there

    def declare(self, value: ir.Value, *, with_shape: bool = True) -> None:
        """Believe what the graph says about a value, its type alone where the shape may vary (a loop's variable)."""
        if not isinstance(value.type, ir.TensorType):
            return
        dims = None
        if with_shape and value.shape is not None:
            dims = [d if isinstance(d, int) else d.value for d in value.shape]
        self._types[value] = self._tensor(int(value.type.dtype), dims)

    def of(self, value: ir.Value) -> onnx.TypeProto.Tensor | None:
        """Return the tensor type of a value, None where it is unknown or no tensor."""
        known = self._of(value)
        return known.tensor if known is not None else None

    def dims(self, value: ir.Value) -> Dims | None:
        """Return the dimensions of a value: int, symbol, or None where unknown; None for an unknown rank."""
        known = self._of(value)
        return known.dims if known is not None else None

    def _of(self, value: ir.Value) -> Kind | None:
        known = self._types.get(value)
        if known is None and (tensor := constant_tensor(value)) is not None:
            known = self._types[value] = self._tensor(int(tensor.dtype), list(tensor_dims(tensor)))
        return known

    def _tensor(self, elem_type: int, dims: Dims | None) -> Kind:
        return self._kind(onnx.helper.make_tensor_type_proto(elem_type, dims))

    def _kind(self, proto: onnx.TypeProto) -> Kind:
        """Return the one object of a type."""
        key = proto.SerializeToString(deterministic=True)
        if key not in self._kinds:
            self._kinds[key] = _taken_apart(proto)
        return self._kinds[key]

    def static(self, value: ir.Value) -> tuple[tuple[int, ...], ir.DataType] | None:
        """Return shape and dtype of a value whose dimensions are all known."""
        known = self._of(value)
        return known.static if known is not None else None

    def refine(self, value: ir.Value, dims: Dims) -> None:
        """Fill in dimensions that were found by other means; None where they are not known."""
        kind, have = self.of(value), self.dims(value)
        if kind is None or (have is not None and len(have) != len(dims)):
            return
        merged = [new if old is None else old for old, new in zip(have or dims, dims, strict=True)]
        if merged != have:
            refined = self._types[value] = self._tensor(kind.elem_type, merged)
            if not value.is_graph_output():
                self.learned |= _write(value, refined)

    def infer(self, node: ir.Node) -> None:
        """Infer the types of a node's outputs and write them into the graph, but for the graph's own outputs."""
        inferred = self._infer(node)
        for index, value in enumerate(node.outputs):
            kind = inferred[index] if inferred is not None else None
            if kind is None:
                if inferred is None:
                    self.declare(value)
            elif kind.tensor is not None:
                self._types[value] = kind
                if not value.is_graph_output():
                    self.learned |= _write(value, kind)
            elif isinstance(value.type, ir.TensorType):  # onnx_ir's shape inference takes a sequence for its element
                value.type, value.shape = ir.serde.deserialize_type_proto_for_type(kind.proto), None

    def _infer(self, node: ir.Node) -> list[Kind | None] | None:
        schema = self._schema(node)
        if schema is None or _is_hazard(node):
            return None
        kinds: dict[str, onnx.TypeProto] = {}
        data: dict[str, ir.TensorProtocol] = {}
        key: list[Hashable] = [node.op_type, *(bool(value.name) for value in node.outputs), len(node.outputs)]
        reads_data = operator(node).kind != "elementwise"  # of these no shape depends on what an input holds
        for value in node.inputs:
            kind = self._of(value) if value is not None else None
            key.append(kind)
            if value is None:
                continue
            if kind is None:
                return None
            kinds[value.name or ""] = kind.proto
            tensor = self._small(value) if reads_data else None
            if tensor is not None:
                data[value.name or ""] = tensor
                key.append(value)
        if node.attributes:
            return self._ask(schema, node, kinds, data)
        same = tuple(key)
        if same not in self._seen:
            self._seen[same] = self._ask(schema, node, kinds, data)
        return self._seen[same]

    def _ask(
        self,
        schema: onnx.defs.OpSchema,
        node: ir.Node,
        kinds: dict[str, onnx.TypeProto],
        data: dict[str, ir.TensorProtocol],
    ) -> list[Kind | None] | None:
        """Return what onnx says of a node's outputs, in order."""
        try:
            proto = ir.serde.serialize_node(node)
            shown = {name: ir.serde.serialize_tensor(tensor) for name, tensor in data.items()}
            found = infer_node_outputs(schema, proto, kinds, shown, opset_imports=self._imports)
            protos = [found.get(value.name or "") for value in node.outputs]
            return [self._kind(made) if made is not None else None for made in protos]
        except (InferenceError, onnx.checker.ValidationError, ValueError, KeyError, RuntimeError, TypeError):
            return None  # an invalid node, or one that inference does not know: nothing is known of its outputs

    def _small(self, value: ir.Value) -> ir.TensorProtocol | None:
        array = self._computed(value)
        tensor = ir.Tensor(array) if array is not None else constant_tensor(value)
        if tensor is None or tensor.dtype == ir.DataType.STRING or math.prod(tensor.shape) > _DATA_LIMIT:  # type: ignore[arg-type]
            return None
        return tensor

    def _schema(self, node: ir.Node) -> onnx.defs.OpSchema | None:
        if not is_standard(node):
            return None
        if node.op_type not in self._schemas:
            try:
                self._schemas[node.op_type] = onnx.defs.get_schema(node.op_type, self._opset)
            except onnx.defs.SchemaError:
                self._schemas[node.op_type] = None
        return self._schemas[node.op_type]


def _taken_apart(proto: onnx.TypeProto) -> Kind:
    if not proto.HasField("tensor_type"):
        return Kind(proto)
    tensor = proto.tensor_type
    if not tensor.HasField("shape"):
        return Kind(proto, tensor)
    dims: Dims = [d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in tensor.shape.dim]
    sizes = tuple(d for d in dims if isinstance(d, int))
    return Kind(proto, tensor, dims, (sizes, ir.DataType(tensor.elem_type)) if len(sizes) == len(dims) else None)


def tensor_dims(tensor: ir.TensorProtocol) -> list[int]:
    """Return the dimensions of a constant tensor."""
    return [d for d in tensor.shape if isinstance(d, int)]


def _is_hazard(node: ir.Node) -> bool:
    """Tell whether inference needs more than the node, or never returns: onnx 1.23 hangs on Einsum with ``...``."""
    attributes = node.attributes.data.values()  # the mapping's own views are slow
    if any(a.is_ref() or a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in attributes):
        return True
    return node.op_type == "Einsum" and "..." in node.attributes.get_string("equation", "...")


def _write(value: ir.Value, kind: Kind) -> bool:
    """Say in the graph what a value is, where it does not stand there yet; tell whether it did not."""
    assert kind.tensor is not None
    new = type(value.type) is not ir.TensorType or value.type.dtype != kind.tensor.elem_type
    if new:
        value.type = ir.TensorType(ir.DataType(kind.tensor.elem_type))
    if kind.dims is None:
        return new
    have = [d if isinstance(d, int) else d.value for d in value.shape] if value.shape is not None else None
    known = have if have is not None and len(have) == len(kind.dims) else kind.dims
    dims = [old if mine is None and isinstance(old, int) else mine for mine, old in zip(kind.dims, known, strict=True)]
    if dims == have:
        return new
    value.shape = ir.Shape(dims)
    return True
