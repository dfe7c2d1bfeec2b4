"""Constant folding: what does not depend on the inputs is computed once, here."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Array,
    Context,
    Result,
    add_initializer,
    constant,
    constant_tensor,
    graphs_of,
    is_standard,
    operator,
    replace_uses,
    scope_of,
    set_constant,
    subgraphs,
    unique_name,
    weight_bytes,
)
from onnxedge_passes.cleanup.common_subexpressions import is_random
from onnxedge_passes.cleanup.constants.evaluate import Evaluator
from onnxedge_passes.cleanup.constants.growth import BATCH_BYTES, PLAIN, QUANTIZERS, Bounded, Growth
from onnxedge_passes.cleanup.constants.isolated import Isolated
from onnxedge_passes.cleanup.constants.operands import operand_index, said_as_constant
from onnxedge_passes.cleanup.control.splice import captured
from onnxedge_passes.cleanup.shapes.inference import Types, tensor_dims
from onnxedge_passes.cleanup.shapes.known import INTEGERS, fits, propagate
from onnxedge_passes.cleanup.shapes.sizes import Sizes, broadcast
from onnxedge_passes.cleanup.shapes.symbolic import Expr
from onnxedge_passes.cleanup.worklist import Refused, input_at, node_opset, retire

_BUDGET = "onnxedge.fold_budget"  #: key in the model's metadata of this process
_LEARNED = "onnxedge.fold_learned"  #: the same
_FLOOR_BYTES = 2 << 10  #: growth that is allowed to the smallest model
_TEXT = frozenset({"RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"})
#: Operators that give the same bits whether an operand is expanded or broadcast.
_BROADCASTING = frozenset(
    {"Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mul", "Or", "Sub"}
    | {"Where", "Xor"}
)


@dataclass(frozen=True, kw_only=True)
class FoldConstants(Bounded):
    """Compute nodes whose inputs are constant, and integers that follow from known dimensions.

    Before: ``s = Shape(x); n = Gather(s, 1); y = Reshape(x, Concat(-1, n))`` with ``x: float[N, 64, 1, 1]``
    After:  ``y = Reshape(x, [-1, 64])``

    Shapes are inferred on the way. Nodes are evaluated by ONNX Runtime with no optimization, after their size is known;
    those that may crash, or take long or much memory, in a process of their own under a limit of memory and time.
    Of a Reshape's computed shape that keeps dynamic dimensions, those become ``0`` (copied) or ``-1`` where that means
    the same. Constant nodes become initializers. Subgraphs and local functions are visited.
    Left alone: results that may be larger than the bounds, random operators, nodes with subgraphs, other domains,
    integer division by 0, operators on text, exported values, DequantizeLinear (weights kept small), values that a
    caller may override.
    accuracy: exact. Source: own.
    """

    name: ClassVar[str] = "fold-constants"

    def run(self, model: ir.Model, context: Context) -> Result:
        """Fold graph by graph, outer graphs first."""
        budget = model.meta.get(_BUDGET)  # what earlier runs left of it, so that running twice folds nothing more
        if budget is None:
            budget = max(int(self.max_growth * weight_bytes(model)), _FLOOR_BYTES)
        rewrites = 0
        nests: dict[int, _Knowledge] = {}
        for graph in list(graphs_of(model)):
            scope = scope_of(graph)
            knowledge = nests.setdefault(id(scope), _Knowledge(model, graph))
            folding = _Folding(self, graph, model, context, budget, knowledge)
            rewrites += folding.run()
            budget = folding.growth.budget
        model.meta[_BUDGET] = budget
        model.meta[_LEARNED] = any(knowledge.types.learned for knowledge in nests.values())
        return Result(rewrites=rewrites)


def learned_types(model: ir.Model) -> bool:
    """Tell whether the last run on a model, whatever it rewrote, wrote types or shapes that did not stand there."""
    return bool(model.meta.get(_LEARNED))


class _Knowledge:
    """What is known of the values of a graph and of the graphs inside it, which read them too."""

    def __init__(self, model: ir.Model, graph: ir.Graph) -> None:
        imports = scope_of(graph).opset_imports
        self.opset = imports.get("", imports.get("ai.onnx", 0))
        self.arrays: dict[int, Array] = {}  #: folded values, by ``id``, that do not stand in the graph yet
        self.folded: dict[int, ir.Node] = {}  #: their nodes, held so that no other value takes over an ``id``
        self.elements: dict[ir.Value, Array] = {}
        symbols = [d.value for value in model.graph.inputs for d in value.shape or () if isinstance(d, ir.SymbolicDim)]
        own = {name for name in symbols if symbols.count(name) == 1}
        self.types = Types(self.opset, lambda value: self.arrays.get(id(value)))
        self.sizes = Sizes(self.types, own.__contains__ if graph is model.graph else lambda name: False)


class _Folding:
    """One graph on its way: ``arrays`` of folded values that do not stand in the graph yet, ``pending`` nodes."""

    def __init__(
        self,
        options: FoldConstants,
        graph: ir.Graph,
        model: ir.Model,
        context: Context,
        budget: int,
        knowledge: _Knowledge,
    ) -> None:
        self.options, self.graph, self.model, self.context = options, graph, model, context
        self.opset, self.arrays, self.elements = knowledge.opset, knowledge.arrays, knowledge.elements
        self.types, self.sizes = knowledge.types, knowledge.sizes
        self.held = knowledge.folded
        self.evaluator = Evaluator(opset=self.opset, ir_version=model.ir_version, isolated=self._isolated)
        self.folded: dict[int, ir.Node] = {}
        #: nodes that the runtime could not compute, and why: not tried again in the next round
        self.refused: dict[ir.Node, str] = context.analysis("fold-constants refused", dict)
        self.growth = Growth(options, graph, self.types, budget)
        self.pending: list[ir.Node] = []
        self.pending_bytes = 0
        self.computed: dict[Hashable, ir.Value] = {}  #: integers that are known in part, and the value that has them
        self.rewrites = 0

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
        self._fold_together()
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
        if self.pending and any(value is not None and self._is_small_pending(value) for value in node.inputs):
            self._flush()
        exported = any(value.is_graph_output() for value in node.outputs)
        found = propagate(node, self._elements, self.sizes.of)
        self._settle_operand(node)
        self.types.infer(node)
        self.sizes.infer(node, self._elements)
        for value in node.outputs:
            self._refine(value)
        self._skip_expands(node)
        if self._is_same_view(node) and replace_uses(node.outputs[0], node.inputs[0]):  # type: ignore[arg-type]
            retire(node)
            self.rewrites += 1
            return
        if any(array is not None for array in found) and self._note(node, found, exported):
            return
        if not exported and self._is_foldable(node):
            self.pending.append(node)
            self.folded[id(node)] = self.held[id(node)] = node

    def _skip_expands(self, node: ir.Node) -> None:
        """Let an operator that broadcasts read what was expanded for it, where its result keeps its shape."""
        if node.op_type not in _BROADCASTING:
            return
        for index, value in enumerate(node.inputs):
            expand = value.producer() if value is not None else None
            if expand is None or expand.op_type != "Expand" or not is_standard(expand) or expand.inputs[0] is None:
                continue
            result = self.sizes.of(node.outputs[0]) if node_opset(node) >= 7 else None
            if result is None:
                return
            rows = [self.sizes.of(v) for i, v in enumerate(node.inputs) if v is not None and i != index]
            rows.append(self.sizes.of(expand.inputs[0]))
            known = [row for row in rows if row is not None]
            if expand.graph is node.graph and len(known) == len(rows) and broadcast(known, node.outputs[0]) == result:
                node.replace_input_with(index, expand.inputs[0])
                retire(expand)
                self.rewrites += 1

    def _refine(self, value: ir.Value) -> None:
        """Tell the types what is known of the sizes: numbers, and dimensions with a name."""
        dims = self.types.dims(value)
        row = self.sizes.of(value) if dims is None or None in dims else None
        if row is not None:
            self.types.refine(value, [item.name() if isinstance(item, Expr) else item for item in row])

    def _is_same_view(self, node: ir.Node) -> bool:
        """Tell whether a node that keeps the order of the elements keeps the shape too, dynamic dimensions included."""
        if node.op_type not in ("Reshape", "Expand", "Flatten", "Tile", "Slice") or node.inputs[0] is None:
            return False
        row = self.sizes.of(node.outputs[0])
        if row is None or row != self.sizes.of(node.inputs[0]) or self._is_known(node.inputs[0]):
            return False  # of a constant it is folded, or exported, and then the constant must not become the output
        if node.op_type != "Slice" or input_at(node, 4) is None:
            return True
        steps = self._elements(node.inputs[4])  # type: ignore[arg-type]
        return steps is not None and all(isinstance(step, int) and step > 0 for step in steps.ravel())

    def _elements(self, value: ir.Value) -> Array | None:
        if value in self.elements:
            return self.elements[value]
        array = self.arrays.get(id(value))
        if array is None:
            tensor = constant_tensor(value)
            if tensor is None or tensor.dtype not in INTEGERS or tensor.nbytes > 512:
                return None
            array = tensor.numpy()
        return array.astype(object) if array.dtype.kind in "ib" else None

    def _note(self, node: ir.Node, found: list[Array | None], exported: bool) -> bool:
        """Take over the integers that are known of a node's outputs; True where the node need not be looked at more."""
        settled = True
        for value, array in zip(node.outputs, found, strict=False):
            kind = self.types.of(value)
            dtype = ir.DataType(kind.elem_type) if kind is not None else None
            if array is None or dtype not in INTEGERS or not fits(array, dtype):
                settled = False
                continue
            self.elements[value] = array
            if any(isinstance(item, Expr) for item in array.ravel()):
                settled = False
            elif not exported:
                self.arrays[id(value)] = array.astype(dtype.numpy())
        if settled and not exported and len(found) == len(node.outputs):
            self.folded[id(node)] = self.held[id(node)] = node
            return True
        return len(node.outputs) == 1 and node.outputs[0] in self.elements and self._is_repeated(node)

    def _is_repeated(self, node: ir.Node) -> bool:
        """Let the readers of integers that another node computes already read those; False where none does."""
        value = node.outputs[0]
        kind, array = self.types.of(value), self.elements[value]
        assert kind is not None
        if not any(isinstance(item, Expr) for item in array.ravel()):
            return False
        key = kind.elem_type, array.shape, tuple(array.ravel().tolist())
        twin = self.computed.get(key)
        producer = twin.producer() if twin is not None else None
        if twin is None or producer is None or producer.graph is not node.graph:
            self.computed[key] = value
            return False
        if not replace_uses(value, twin):
            return False
        retire(node)
        self.rewrites += 1
        return True

    def _settle_operand(self, node: ir.Node) -> None:
        """Write a computed shape as a constant where its dynamic dimensions can be said in another way."""
        index = operand_index(node)
        operand = input_at(node, index) if index is not None else None
        if index is None or operand is None or not node.inputs or node.inputs[0] is None:
            return
        found, sizes = self.elements.get(operand), self.sizes.of(node.inputs[0])
        if found is None or found.ndim != 1 or not any(isinstance(item, Expr) for item in found.tolist()):
            return
        target = said_as_constant(node, found.tolist(), sizes or [], self._elements)
        kind = self.types.of(operand)
        if target is None or kind is None:
            return
        set_constant(node, index, np.array(target, ir.DataType(kind.elem_type).numpy()))
        retire(operand.producer())
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
        if producer is not None and (id(producer) in self.folded or producer in self.growth.deferred):
            return True
        return constant_tensor(value) is not None

    def _is_foldable(self, node: ir.Node) -> bool:
        if not node.inputs or not all(self._is_known(value) for value in node.inputs):
            return False
        if is_random(node) or any(a.is_ref() for a in node.attributes.values()):
            return False
        if node in self.refused:
            self.context.note(node, self.refused[node])
            return False
        if any(subgraphs(node)):
            if all(self._is_known(value) for value in captured(node)):
                self.context.note(node, "not folded: constants that a subgraph computes are left to the runtime")
            return False
        if node.op_type in _TEXT:
            self.context.note(node, "not folded: operators on text are left to the runtime")
            return False
        if any(value is not None and not self._is_plain(value) for value in node.inputs):
            return False
        if not self._is_rounded_alike(node):
            self.context.note(node, "not folded: the runtime may keep more digits than float16 inside the graph")
            return False
        if node.op_type in QUANTIZERS and not self.options.dequantize:
            self.context.note(node, "not folded: weights behind it stay small; fold(dequantize=true) folds them")
            return False
        if node.op_type in ("Div", "Mod") and not self._is_defined(node):
            self.context.note(node, "not folded: integer division by 0, or of the least integer by -1")
            return False
        verdict = self.growth.judge(node)
        if isinstance(verdict, Refused):
            self.context.note(node, verdict.reason)
            return False
        if verdict:
            self._make_room(node)
        return verdict

    def _is_plain(self, value: ir.Value) -> bool:
        kind = self.types.of(value)
        return kind is not None and ir.DataType(kind.elem_type) in PLAIN

    def _is_rounded_alike(self, node: ir.Node) -> bool:
        """Tell whether a node gives the same bits alone as among others.

        Without float16 kernels ONNX Runtime computes in float32 and leaves out the rounding between two nodes.
        """
        kinds = [self.types.of(value) for value in (*node.inputs, *node.outputs) if value is not None]
        if all(kind is None or kind.elem_type != ir.DataType.FLOAT16 for kind in kinds):
            return True
        return operator(node).kind in ("movement", "shape", "source") or node.op_type in ("Cast", "Identity")

    def _is_defined(self, node: ir.Node) -> bool:
        """Tell whether a division of integers has a result; ONNX Runtime dies of the least integer by -1."""
        kind = self.types.of(node.inputs[1]) if node.inputs[1] is not None else None
        if kind is None or ir.DataType(kind.elem_type).is_floating_point():
            return True
        divisor = self._array(node.inputs[1])
        if divisor is None:
            return False
        if not divisor.all():
            return False
        data = self._array(node.inputs[0]) if divisor.dtype.kind == "i" and (divisor == -1).any() else None
        return data is None or not (data == np.iinfo(data.dtype).min).any()

    def _array(self, value: ir.Value | None) -> Array | None:
        """Return the elements of a constant or of a value that is folded; computes what is pending if it must."""
        if value is not None and id(value) not in self.arrays and constant_tensor(value) is None:
            self._flush()
        return self.arrays.get(id(value), constant(value))

    def _fold_together(self) -> None:
        """Fold deferred nodes that hang together where all of them add little: a weight cut up and put together."""
        for group, refused in self.growth.judge_deferred(self.folded.keys()):
            for node in group:
                if refused is not None:
                    self.context.note(node, refused.reason)
                    continue
                self._make_room(node)
                self.pending.append(node)
                self.folded[id(node)] = self.held[id(node)] = node

    def _make_room(self, node: ir.Node) -> None:
        """Compute what is pending where a node's results would make it too much for one session."""
        self.pending_bytes += self.growth.result_bytes(node)
        if self.pending_bytes > BATCH_BYTES:
            self._flush()

    def _isolated(self) -> Isolated:
        """Return the process of this pass that computes what may crash; it is started when it is first used."""
        memory, seconds = self.options.max_memory_bytes, self.options.max_seconds
        return self.context.analysis(f"isolated {memory} {seconds}", lambda: Isolated(memory, seconds))

    def _flush(self) -> None:
        """Compute what is pending."""
        nodes, self.pending, self.pending_bytes = self.pending, [], 0
        arrays, reasons = self.evaluator.evaluate(nodes, self.arrays)
        self.arrays.update(arrays)
        for node in nodes:
            if id(node) in reasons:
                del self.folded[id(node)]
                self.refused[node] = f"not folded: {reasons[id(node)]}"
                self.context.note(node, self.refused[node])

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
