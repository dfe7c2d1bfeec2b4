"""Types and shapes of values, one node at a time, so that folding and shape inference can take turns.

``onnx.shape_inference`` on whole models merges what it infers with what the file declares, and declared inner shapes
are often wrong; here only graph inputs, constants and operators without a schema are believed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable

import onnx
import onnx_ir as ir
from onnx.shape_inference import InferenceError, infer_node_outputs

from onnxedge.api import Array, constant_tensor, is_standard

_DATA_LIMIT = 1024  #: constants of at most so many elements are shown to shape inference
Dims = list[int | str | None]


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
        self._types: dict[ir.Value, onnx.TypeProto] = {}
        self._schemas: dict[str, onnx.defs.OpSchema | None] = {}
        self._imports = [onnx.helper.make_opsetid("", opset)]
        self._seen: dict[Hashable, list[onnx.TypeProto | None] | None] = {}

    def declare(self, value: ir.Value, *, with_shape: bool = True) -> None:
        """Believe what the graph says about a value, its type alone where the shape may vary (a loop's variable)."""
        if not isinstance(value.type, ir.TensorType):
            return
        dims = None
        if with_shape and value.shape is not None:
            dims = [d if isinstance(d, int) else d.value for d in value.shape]
        self._types[value] = onnx.helper.make_tensor_type_proto(int(value.type.dtype), dims)

    def of(self, value: ir.Value) -> onnx.TypeProto.Tensor | None:
        """Return the tensor type of a value, None where it is unknown or no tensor."""
        known = self._types.get(value)
        if known is None:
            tensor = constant_tensor(value)
            if tensor is None:
                return None
            known = onnx.helper.make_tensor_type_proto(int(tensor.dtype), tensor_dims(tensor))
            self._types[value] = known
        return known.tensor_type

    def dims(self, value: ir.Value) -> Dims | None:
        """Return the dimensions of a value: int, symbol, or None where unknown; None for an unknown rank."""
        kind = self.of(value)
        if kind is None or not kind.HasField("shape"):
            return None
        return [d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in kind.shape.dim]

    def static(self, value: ir.Value) -> tuple[tuple[int, ...], ir.DataType] | None:
        """Return shape and dtype of a value whose dimensions are all known."""
        kind, dims = self.of(value), self.dims(value)
        if kind is None or dims is None:
            return None
        sizes = tuple(d for d in dims if isinstance(d, int))
        return (sizes, ir.DataType(kind.elem_type)) if len(sizes) == len(dims) else None

    def refine(self, value: ir.Value, dims: Dims) -> None:
        """Fill in dimensions that were found by other means; None where they are not known."""
        kind, have = self.of(value), self.dims(value)
        if kind is None or (have is not None and len(have) != len(dims)):
            return
        merged = [new if old is None else old for old, new in zip(have or dims, dims, strict=True)]
        if merged != have:
            proto = onnx.helper.make_tensor_type_proto(kind.elem_type, merged)
            self._types[value] = proto
            if not value.is_graph_output():
                _write(value, proto.tensor_type, merged)

    def infer(self, node: ir.Node) -> None:
        """Infer the types of a node's outputs and write them into the graph, but for the graph's own outputs."""
        inferred = self._infer(node)
        for value, kind in zip(node.outputs, inferred or [None] * len(node.outputs), strict=True):
            if kind is None:
                if inferred is None:
                    self.declare(value)
            elif kind.HasField("tensor_type"):
                self._types[value] = kind
                if not value.is_graph_output():
                    _write(value, kind.tensor_type, self.dims(value))
            elif isinstance(value.type, ir.TensorType):  # onnx_ir's shape inference takes a sequence for its element
                value.type, value.shape = ir.serde.deserialize_type_proto_for_type(kind), None

    def _infer(self, node: ir.Node) -> list[onnx.TypeProto | None] | None:
        schema = self._schema(node)
        if schema is None or _is_hazard(node):
            return None
        kinds: dict[str, onnx.TypeProto] = {}
        data: dict[str, ir.TensorProtocol] = {}
        key: list[Hashable] = [node.op_type, *(bool(value.name) for value in node.outputs), len(node.outputs)]
        for value in node.inputs:
            if value is None:
                key.append(None)
                continue
            if self.of(value) is None:
                return None
            name = value.name or ""
            kinds[name] = self._types[value]
            tensor = self._small(value)
            if tensor is not None:
                data[name] = tensor
            key.append((self._types[value].SerializeToString(), value if tensor is not None else None))
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
    ) -> list[onnx.TypeProto | None] | None:
        """Return what onnx says of a node's outputs, in order."""
        try:
            proto = ir.serde.serialize_node(node)
            shown = {name: ir.serde.serialize_tensor(tensor) for name, tensor in data.items()}
            found = infer_node_outputs(schema, proto, kinds, shown, opset_imports=self._imports)
            return [found.get(value.name or "") for value in node.outputs]
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


def tensor_dims(tensor: ir.TensorProtocol) -> list[int]:
    """Return the dimensions of a constant tensor."""
    return [d for d in tensor.shape if isinstance(d, int)]


def _is_hazard(node: ir.Node) -> bool:
    """Tell whether inference needs more than the node, or never returns: onnx 1.23 hangs on Einsum with ``...``."""
    if any(a.is_ref() or a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return True
    return node.op_type == "Einsum" and "..." in node.attributes.get_string("equation", "...")


def _write(value: ir.Value, kind: onnx.TypeProto.Tensor, dims: Dims | None) -> None:
    value.type = ir.TensorType(ir.DataType(kind.elem_type))
    if dims is None:
        return
    have = value.shape if value.shape is not None and len(value.shape) == len(dims) else dims
    known = [d if isinstance(d, int) else None for d in have]
    value.shape = ir.Shape([mine if mine is not None else old for mine, old in zip(dims, known, strict=True)])
