"""Constant folding: what does not depend on the inputs is computed once, here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Array,
    Context,
    Pass,
    Result,
    add_initializer,
    constant,
    constant_tensor,
    graphs_of,
    is_standard,
    operator,
    scope_of,
    set_constant,
    unique_name,
    weight_bytes,
)
from onnxedge_passes.cleanup.common_subexpressions import is_random
from onnxedge_passes.cleanup.evaluate import evaluate
from onnxedge_passes.cleanup.inference import Types, tensor_dims
from onnxedge_passes.cleanup.known import Dim, propagate
from onnxedge_passes.cleanup.worklist import input_at, retire

_BUDGET = "onnxedge.fold_budget"  #: key in the model's metadata of this process
_FLOOR_BYTES = 2 << 10  #: growth that is allowed to the smallest model
_BATCH_BYTES = 64 << 20  #: results that one session computes
_MAX_WORK = 1e11  #: multiplications, by the product of output and largest input, that folding one node may take
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_KINDS = "FLOAT DOUBLE FLOAT16 INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 UINT64 BOOL"
_PLAIN = frozenset(kind for kind in ir.DataType if kind.name in _KINDS.split(" "))  #: what numpy and the runtime share


@dataclass(frozen=True, kw_only=True)
class FoldConstants(Pass):
    """Compute nodes whose inputs are constant, and integers that follow from known dimensions.

    Before: ``s = Shape(x); n = Gather(s, 1); y = Reshape(x, Concat(-1, n))`` with ``x: float[N, 64, 1, 1]``
    After:  ``y = Reshape(x, [-1, 64])``

    Shapes are inferred on the way. Nodes are evaluated by ONNX Runtime with no optimization, after their size is known.
    Of a Reshape's computed shape that keeps dynamic dimensions, those become ``0`` (copied) or ``-1`` where that means
    the same. Constant nodes become initializers. Subgraphs and local functions are visited.
    Left alone: results that may be larger than the bounds, random operators, nodes with subgraphs, other domains,
    division of integers by 0 or -1, exported values, DequantizeLinear (weights kept small), values that a caller may
    override.
    accuracy: exact. Source: own.
    """

    name: ClassVar[str] = "fold-constants"
    max_constant_bytes: int = 1 << 20  #: a node that needs more bytes than this beyond what it frees is not folded
    max_growth: float = 0.1  #: share of the model's weight bytes that all folding together may add
    dequantize: bool = False  #: fold DequantizeLinear of constants too: larger, float weights

    def run(self, model: ir.Model, context: Context) -> Result:
        """Fold graph by graph, outer graphs first."""
        budget = model.meta.get(_BUDGET)  # what earlier runs left of it, so that running twice folds nothing more
        if budget is None:
            budget = max(int(self.max_growth * weight_bytes(model)), _FLOOR_BYTES)
        rewrites = 0
        for graph in list(graphs_of(model)):
            folding = _Folding(self, graph, model, context, budget)
            rewrites += folding.run()
            budget = folding.budget
        model.meta[_BUDGET] = budget
        return Result(rewrites=rewrites)


class _Folding:
    """One graph on its way: ``arrays`` of folded values that do not stand in the graph yet, ``pending`` nodes."""

    def __init__(self, options: FoldConstants, graph: ir.Graph, model: ir.Model, context: Context, budget: int) -> None:
        self.options, self.graph, self.model, self.context, self.budget = options, graph, model, context, budget
        imports = scope_of(graph).opset_imports
        self.opset = imports.get("", imports.get("ai.onnx", 0))
        self.arrays: dict[int, Array] = {}
        self.folded: dict[int, ir.Node] = {}
        self.pending: list[ir.Node] = []
        self.pending_bytes = 0
        self.elements: dict[ir.Value, Array] = {}
        self.types = Types(self.opset, lambda value: self.arrays.get(id(value)))
        self.rewrites = 0
        symbols = [d.value for value in model.graph.inputs for d in value.shape or () if isinstance(d, ir.SymbolicDim)]
        self.ambiguous = {name for name in symbols if name is None or symbols.count(name) > 1}

    def run(self) -> int:
        is_main = self.graph is self.model.graph
        for value in self.graph.inputs:
            self.types.declare(value, with_shape=is_main)
        for node in list(self.graph):
            if node.op_type == "Constant" and is_standard(node):
                self._lift(node)
                continue
            self._declare_outer(node)
            if is_standard(node):
                self._visit(node)
            else:
                self.types.infer(node)
        self._flush()
        self._place()
        return self.rewrites

    def _declare_outer(self, node: ir.Node) -> None:
        """Take over what the enclosing graph knows of the values that a subgraph reads from it."""
        for value in node.inputs:
            if value is not None and self.types.of(value) is None and value.graph is not self.graph:
                producer = value.producer()
                if producer is None or producer.graph is not self.graph:
                    self.types.declare(value, with_shape=False)

    def _lift(self, node: ir.Node) -> None:
        value = node.outputs[0]
        tensor = constant_tensor(value)
        if tensor is None or value.is_graph_output() or scope_of(self.graph).is_function:
            self.types.infer(node)
            return
        self._replace(value, tensor)
        self.graph.remove(node, safe=True)
        self.rewrites += 1

    def _visit(self, node: ir.Node) -> None:
        if any(value is not None and self._is_small_pending(value) for value in node.inputs):
            self._flush()
        exported = any(value.is_graph_output() for value in node.outputs)
        found = propagate(node, self._elements, self.types.dims, lambda name: name not in self.ambiguous)
        if node.op_type == "Reshape":
            self._settle_reshape(node)
        self.types.infer(node)
        if found is not None and not exported:
            self.elements[node.outputs[0]] = found
            if not any(isinstance(item, Dim) for item in found.ravel()) and self._settle(node, found):
                return
        if not exported and self._is_foldable(node):
            self.pending.append(node)
            self.folded[id(node)] = node

    def _elements(self, value: ir.Value) -> Array | None:
        if value in self.elements:
            return self.elements[value]
        array = self.arrays.get(id(value))
        if array is None:
            tensor = constant_tensor(value)
            if tensor is None or tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32) or tensor.nbytes > 512:
                return None
            array = tensor.numpy()
        return array.astype(object) if array.dtype.kind == "i" else None

    def _settle(self, node: ir.Node, found: Array) -> bool:
        """Note the value of a node whose elements are all known; False where they do not fit its type."""
        kind = self.types.of(node.outputs[0])
        if kind is None or kind.elem_type not in (ir.DataType.INT64, ir.DataType.INT32):
            return False
        dtype = ir.DataType(kind.elem_type).numpy()
        limits = np.iinfo(dtype)
        if any(not limits.min <= item <= limits.max for item in found.ravel()):
            return False
        self.arrays[id(node.outputs[0])] = found.astype(dtype)
        self.folded[id(node)] = node
        return True

    def _settle_reshape(self, node: ir.Node) -> None:
        """Write the computed shape of a Reshape as a constant where its dynamic dimensions can be said by 0 and -1."""
        data, shape = input_at(node, 0), input_at(node, 1)
        found = self.elements.get(shape) if shape is not None else None
        if data is None or found is None or found.ndim != 1 or node.attributes.get_int("allowzero", 0) != 0:
            return
        have = self.types.dims(data) or []
        target: list[int | None] = []
        for axis, item in enumerate(found.tolist()):
            if isinstance(item, int):
                if item == 0 and not (axis < len(have) and have[axis] == 0):
                    return  # a zero that was computed copies a dimension: left to the runtime
                target.append(item)
            else:
                same = axis < len(have) and item in (Dim(have[axis]), Dim((id(data), axis)))
                target.append(0 if same else None)
        if target.count(None) == 1 and all(d is None or d > 0 for d in target):
            target = [-1 if d is None else d for d in target]
        if None not in target and any(isinstance(item, Dim) for item in found.tolist()):
            assert shape is not None
            set_constant(node, 1, np.array(target, np.int64))
            retire(shape.producer())
            self.rewrites += 1

    def _is_small_pending(self, value: ir.Value) -> bool:
        """Tell whether a value waits to be computed and is an integer that shapes may depend on."""
        producer = value.producer()
        if producer is None or id(producer) not in self.folded or id(value) in self.arrays:
            return False
        kind = self.types.static(value)
        return kind is not None and kind[1] in (ir.DataType.INT64, ir.DataType.INT32) and math.prod(kind[0]) <= 1024

    def _is_known(self, value: ir.Value | None) -> bool:
        if value is None or id(value) in self.arrays:
            return True
        producer = value.producer()
        return (producer is not None and id(producer) in self.folded) or constant_tensor(value) is not None

    def _is_foldable(self, node: ir.Node) -> bool:
        if not node.inputs or not all(self._is_known(value) for value in node.inputs):
            return False
        if is_random(node) or any(a.is_ref() for a in node.attributes.values()):
            return False
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            return False
        if any(value is not None and not self._is_plain(value) for value in node.inputs):
            return False
        if not self._is_rounded_alike(node):
            self.context.note(node, "not folded: the runtime may keep more digits than float16 inside the graph")
            return False
        if node.op_type in _QUANTIZERS and not self.options.dequantize:
            self.context.note(node, "not folded: weights behind it stay small; fold(dequantize=true) folds them")
            return False
        if node.op_type in ("Div", "Mod") and not self._is_safe_divisor(node.inputs[1]):
            self.context.note(node, "not folded: integer division by 0 or -1")
            return False
        return self._fits(node)

    def _is_plain(self, value: ir.Value) -> bool:
        kind = self.types.of(value)
        return kind is not None and ir.DataType(kind.elem_type) in _PLAIN

    def _is_rounded_alike(self, node: ir.Node) -> bool:
        """Tell whether a node gives the same bits alone as among others.

        Without float16 kernels ONNX Runtime computes in float32 and leaves out the rounding between two nodes.
        """
        kinds = [self.types.of(value) for value in (*node.inputs, *node.outputs) if value is not None]
        if all(kind is None or kind.elem_type != ir.DataType.FLOAT16 for kind in kinds):
            return True
        return operator(node).kind in ("movement", "shape", "source") or node.op_type in ("Cast", "Identity")

    def _is_safe_divisor(self, value: ir.Value | None) -> bool:
        if value is None:
            return True
        kind = self.types.of(value)
        if kind is None or ir.DataType(kind.elem_type).is_floating_point():
            return True
        if id(value) not in self.arrays and constant_tensor(value) is None:
            self._flush()
        array = self.arrays.get(id(value), constant(value))
        return array is not None and not ((array == 0) | (array == -1)).any()

    def _fits(self, node: ir.Node) -> bool:
        made = sum(self._result_bytes(node, value) for value in node.outputs if value.name)
        if math.isinf(made):
            self.context.note(node, "not folded: the size of its result is not known before it is computed")
            return False
        read = [value for value in dict.fromkeys(node.inputs) if value is not None]
        sizes = {id(value): self._bytes(value) for value in read}
        freed = sum(sizes[id(value)] for value in read if self._is_freed_by(value, node))
        growth = int(made) - freed if node.op_type not in _QUANTIZERS else 0  # asked for by ``dequantize``
        if growth > min(self.options.max_constant_bytes, self.budget):
            limit = "max_constant_bytes" if growth > self.options.max_constant_bytes else "max_growth"
            self.context.note(node, f"not folded: it would add more bytes than {limit} allows")
            return False
        if made * max(sizes.values(), default=0) / 16 > _MAX_WORK:
            self.context.note(node, "not folded: it takes too long to compute here")
            return False
        self.budget -= max(growth, 0) if growth > 0 else 0
        self.pending_bytes += int(made)
        if self.pending_bytes > _BATCH_BYTES:
            self._flush()
        return True

    def _result_bytes(self, node: ir.Node, value: ir.Value) -> float:
        """Return the bytes of an output, an upper bound where they depend on data, infinity where neither is known."""
        kind = self.types.static(value)
        if kind is not None:
            return math.prod(kind[0]) * kind[1].itemsize if kind[1] in _PLAIN else math.inf
        source = self.types.static(node.inputs[0]) if node.inputs[0] is not None else None
        if source is None or node.op_type not in ("NonZero", "Compress", "Unique"):
            return math.inf
        return math.prod(source[0]) * 8 * max(len(source[0]), 1)

    def _bytes(self, value: ir.Value) -> int:
        kind = self.types.static(value)
        return int(math.prod(kind[0]) * kind[1].itemsize) if kind is not None else 0

    def _is_freed_by(self, value: ir.Value, node: ir.Node) -> bool:
        if value.is_graph_output() or value.graph is not self.graph:
            return False
        return all(use.node is node for use in value.uses())

    def _flush(self) -> None:
        """Compute what is pending."""
        nodes, self.pending, self.pending_bytes = self.pending, [], 0
        arrays, reasons = evaluate(nodes, self.arrays, self.opset, self.model.ir_version)
        self.arrays.update(arrays)
        for node in nodes:
            if id(node) in reasons:
                del self.folded[id(node)]
                self.context.note(node, f"not folded: {reasons[id(node)]}")

    def _place(self) -> None:
        """Make initializers of the folded values that other nodes read, and remove the folded nodes."""
        for node in self.folded.values():
            self.rewrites += 1
            for value in node.outputs:
                if any(id(use.node) not in self.folded for use in value.uses()):
                    self._replace(value, ir.tensor(self.arrays[id(value)]))
        retire(*reversed(self.folded.values()))

    def _replace(self, value: ir.Value, tensor: ir.TensorProtocol) -> None:
        """Let the readers of a value read an initializer of its name; the old value gets another name."""
        name = value.name or "constant"
        value.name = unique_name(self.graph, f"{name}_folded")
        kind, shape = ir.TensorType(tensor.dtype), ir.Shape(tensor_dims(tensor))
        new = ir.Value(name=name, const_value=tensor, type=kind, shape=shape)
        value.replace_all_uses_with(add_initializer(self.graph, new))
