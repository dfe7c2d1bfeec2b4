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
    at_hand,
    constant,
    constant_tensor,
    graphs_of,
    is_standard,
    operator,
    replace_uses,
    scope_of,
    subgraphs,
    unique_name,
    weight_bytes,
)
from onnxedge_passes.cleanup.common_subexpressions import is_random
from onnxedge_passes.cleanup.constants.evaluate import Evaluator
from onnxedge_passes.cleanup.constants.growth import BATCH_BYTES, PLAIN, QUANTIZERS, Bounded, Growth
from onnxedge_passes.cleanup.constants.isolated import Isolated
from onnxedge_passes.cleanup.constants.knowledge import Knowledge
from onnxedge_passes.cleanup.constants.needless import is_same_view, skip_expands, twin_of
from onnxedge_passes.cleanup.constants.operands import settle_operand
from onnxedge_passes.cleanup.control.splice import captured
from onnxedge_passes.cleanup.shapes.inference import tensor_dims
from onnxedge_passes.cleanup.shapes.known import INTEGERS, fits
from onnxedge_passes.cleanup.shapes.symbolic import Expr
from onnxedge_passes.cleanup.worklist import Refused, input_at, retire

_BUDGET = "onnxedge.fold_budget"  #: key in the model's metadata of this process
_LEARNED = "onnxedge.fold_learned"  #: the same
_FLOOR_BYTES = 2 << 10  #: growth that is allowed to the smallest model
_TEXT = frozenset({"RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"})


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
        nests: dict[int, Knowledge] = {}
        for graph in list(graphs_of(model)):
            scope = scope_of(graph)
            knowledge = nests.setdefault(id(scope), Knowledge(model, graph))
            folding = _Folding(self, graph, model, context, budget, knowledge)
            rewrites += folding.run()
            budget = folding.growth.budget
        model.meta[_BUDGET] = budget
        model.meta[_LEARNED] = any(knowledge.types.learned for knowledge in nests.values())
        return Result(rewrites=rewrites)


def learned_types(model: ir.Model) -> bool:
    """Tell whether the last run on a model, whatever it rewrote, wrote types or shapes that did not stand there."""
    return bool(model.meta.get(_LEARNED))


class _Folding:
    """One graph on its way: ``arrays`` of folded values that do not stand in the graph yet, ``pending`` nodes."""

    def __init__(
        self,
        options: FoldConstants,
        graph: ir.Graph,
        model: ir.Model,
        context: Context,
        budget: int,
        knowledge: Knowledge,
    ) -> None:
        self.options, self.graph, self.model, self.context, self.known = options, graph, model, context, knowledge
        self.types, self.arrays, self.held = knowledge.types, knowledge.arrays, knowledge.folded
        self.evaluator = Evaluator(opset=knowledge.opset, ir_version=model.ir_version, isolated=self._isolated)
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
        self._replace(value, at_hand(tensor))
        self.graph.remove(node, safe=True)
        self.rewrites += 1

    def _visit(self, node: ir.Node) -> None:
        if self.pending and any(value is not None and self._is_small_pending(value) for value in node.inputs):
            self._flush()
        exported = any(value.is_graph_output() for value in node.outputs)
        found = self.known.propagate(node)
        self.rewrites += settle_operand(node, self.known)
        self.known.infer(node)
        self.rewrites += skip_expands(node, self.known.sizes)
        if self._skips(node):
            retire(node)
            self.rewrites += 1
            return
        if any(array is not None for array in found) and self._note(node, found, exported):
            return
        if not exported and self._is_foldable(node):
            self.pending.append(node)
            self.folded[id(node)] = self.held[id(node)] = node

    def _skips(self, node: ir.Node) -> bool:
        """Let the readers of a view that changes nothing read its input; tell whether they do.

        That of a constant is folded, or exported, and then the constant must not become the output.
        """
        source = input_at(node, 0)
        if source is None or not is_same_view(node, self.known) or self._is_known(source):
            return False
        return replace_uses(node.outputs[0], source)

    def _note(self, node: ir.Node, found: list[Array | None], exported: bool) -> bool:
        """Take over the integers that are known of a node's outputs; True where the node need not be looked at more."""
        settled = True
        for value, array in zip(node.outputs, found, strict=False):
            kind = self.types.of(value)
            dtype = ir.DataType(kind.elem_type) if kind is not None else None
            if array is None or dtype not in INTEGERS or not fits(array, dtype):
                settled = False
                continue
            self.known.elements[value] = array
            if any(isinstance(item, Expr) for item in array.ravel()):
                settled = False
            elif not exported:
                self.arrays[id(value)] = array.astype(dtype.numpy())
        if settled and not exported and len(found) == len(node.outputs):
            self.folded[id(node)] = self.held[id(node)] = node
            return True
        return len(node.outputs) == 1 and node.outputs[0] in self.known.elements and self._is_repeated(node)

    def _is_repeated(self, node: ir.Node) -> bool:
        """Let the readers of integers that another node computes already read those; False where none does."""
        twin = twin_of(node.outputs[0], self.known, self.computed)
        if twin is None or not replace_uses(node.outputs[0], twin):
            return False
        retire(node)
        self.rewrites += 1
        return True

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
        if is_random(node) or any(a.is_ref() for a in node.attributes.data.values()):
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
        return kind is not None and kind.elem_type in PLAIN

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
