"""Dead code: what no output depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass, RemoveUnusedNodesPass

from onnxedge.api import Context, Pass, Result, graphs_of, release_captured, subgraphs, unordered, use_count


@dataclass(frozen=True, kw_only=True)
class DeadCode(Pass):
    """Remove nodes, their optional outputs, initializers and local functions that no output depends on.

    Before: ``y, mask = Dropout(x); z = Exp(x)`` with ``y`` exported
    After:  ``y = Dropout(x)``

    Left alone: graph inputs, used or not; initializers that are graph inputs; nodes with one output in use.
    accuracy: exact. Source: ``onnx_ir.passes.common``, and subgraphs' initializers.
    """

    name: ClassVar[str] = "dead-code"

    def run(self, model: ir.Model, context: Context) -> Result:
        """Remove dead nodes first, then the initializers and functions that only they needed."""
        rewrites = _remove_nodes(model)
        for graph in graphs_of(model):
            for value in list(graph.initializers.values()):
                if not (use_count(value) or value.is_graph_output() or value.is_graph_input()):
                    del graph.initializers[value.name or ""]
                    rewrites += 1
        functions = len(model.functions)
        if functions:
            RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
        return Result(rewrites=rewrites + functions - len(model.functions))


def _remove_nodes(model: ir.Model) -> int:
    """Remove dead nodes; where one with subgraphs goes, what only they read is dead, too."""
    rewrites = 0
    while not all(_is_tidy(node) for graph in graphs_of(model) for node in unordered(graph)):
        before = _size(model)
        control = [node for graph in graphs_of(model) for node in graph if any(subgraphs(node))]
        RemoveUnusedNodesPass()(model)
        rewrites += before - _size(model)
        if not [value for node in control if node.graph is None for value in release_captured(node)]:
            break
    return rewrites


def _is_tidy(node: ir.Node) -> bool:
    """Tell whether the pass of onnx_ir, which looks at much more, has nothing to do at a node."""
    if not node.outputs or node.op_type == "BatchNormalization" or (node.inputs and node.inputs[-1] is None):
        return False
    return all(use_count(value) or value.is_graph_output() for value in node.outputs)


def _size(model: ir.Model) -> int:
    """Count all that may go: initializers, nodes, and what a node names as inputs and outputs."""
    return sum(
        len(graph.initializers) + sum(1 + len(node.inputs) + sum(bool(v.name) for v in node.outputs) for node in graph)
        for graph in graphs_of(model)
    )
