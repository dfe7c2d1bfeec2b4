"""Other ways to write a pass: an onnx-graphsurgeon script, or onnxscript rewrite rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir

from onnxedge.model.edit import replace_content
from onnxedge.model.io import from_proto
from onnxedge.model.serialize import to_proto
from onnxedge.passes import Context, Pass, Result


@dataclass(frozen=True, kw_only=True)
class GraphSurgeonPass(Pass):
    """Edit a model as a ``gs.Graph``, the way TensorRT users' scripts do; subclasses write :meth:`edit`.

    What onnx-graphsurgeon 0.6 drops on its way is put back: metadata of the model, of nodes and of values, doc strings,
    functions, producer and IR version. The model's weights are in memory twice while the pass runs.
    """

    def edit(self, graph: Any, context: Context) -> int:
        """Edit a ``onnx_graphsurgeon.Graph`` in place and return the number of rewrites.

        ``cleanup()`` and ``toposort()`` are called afterwards.
        """
        raise NotImplementedError(f"pass {type(self).__name__} has no edit method")

    def run(self, model: ir.Model, context: Context) -> Result:
        """Hand the model over, take it back, restore what was lost."""
        import onnx_graphsurgeon as gs

        before = to_proto(model)
        graph = gs.import_onnx(before)
        rewrites = self.edit(graph, context)
        if rewrites:
            graph.cleanup().toposort()
            after = gs.export_onnx(graph, do_type_check=False)
            restore_facts(before, after)
            replace_content(model, from_proto(after))
        return Result(rewrites=rewrites)


@dataclass(frozen=True, kw_only=True)
class PatternPass(Pass):
    """Apply onnxscript rewrite rules; subclasses write :meth:`rules`.

    onnxscript tries each rule on each node (14 us a node and rule): fine for a few rules and thousands of nodes.
    """

    def rules(self, context: Context) -> Sequence[Any]:
        """Return ``onnxscript.rewriter.RewriteRule`` objects, in the order in which they are tried."""
        raise NotImplementedError(f"pass {type(self).__name__} has no rules method")

    def run(self, model: ir.Model, context: Context) -> Result:
        """Apply the rules to the main graph, its subgraphs and the local functions."""
        from onnxscript.rewriter import RewriteRuleSet

        return Result(rewrites=RewriteRuleSet(list(self.rules(context))).apply_to_model(model))


def restore_facts(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Copy what describes a model, its nodes and values, but does not compute, to a rewritten model.

    Nodes and values are found again by name; what has no name, or a name twice, has no facts to find.
    """
    for field in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
        setattr(after, field, getattr(before, field))
    for kind in ("metadata_props", "functions"):
        del getattr(after, kind)[:]
        getattr(after, kind).extend(getattr(before, kind))
    known = {entry.domain for entry in after.opset_import}
    after.opset_import.extend(entry for entry in before.opset_import if entry.domain not in known)
    old, new = before.graph, after.graph
    new.doc_string = old.doc_string
    new.metadata_props.extend(old.metadata_props)
    new.quantization_annotation.extend(old.quantization_annotation)
    for kind in ("node", "input", "output", "value_info", "initializer"):
        twins = _by_name(getattr(old, kind))
        for item in getattr(new, kind):
            twin = twins.get(item.name)
            if twin is not None:
                item.doc_string = item.doc_string or twin.doc_string
                del item.metadata_props[:]
                item.metadata_props.extend(twin.metadata_props)
            if twin is not None and kind in ("input", "output"):
                item.type.CopyFrom(twin.type)


def _by_name(items: Sequence[Any]) -> dict[str, Any]:
    counts = Counter(item.name for item in items)
    return {item.name: item for item in items if item.name and counts[item.name] == 1}
