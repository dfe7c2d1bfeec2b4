"""Passes written for onnx-graphsurgeon and onnxscript run as passes, and lose nothing on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import onnx
import onnx.parser
import onnx_ir as ir

import onnxedge
from onnxedge.api import Context, GraphSurgeonPass, PatternPass
from onnxedge.model.io import from_proto
from onnxedge.model.serialize import to_proto

TEXT = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 4] y)
<float[4] w = {1.0, 2.0, 3.0, 4.0}>
{ a = Identity(x)  b = Mul(a, w)  c = Abs(b)  d = Abs(c)  y = Relu(d) }
"""


@dataclass(frozen=True, kw_only=True)
class DropIdentity(GraphSurgeonPass):
    """Remove Identity nodes, as a graphsurgeon script would."""

    name: ClassVar[str] = "drop-identity"

    def edit(self, graph: Any, context: Context) -> int:
        found = [node for node in graph.nodes if node.op == "Identity"]
        for node in found:
            for reader in list(node.outputs[0].outputs):
                reader.inputs = [node.inputs[0] if i is node.outputs[0] else i for i in reader.inputs]
            node.outputs.clear()
        return len(found)


@dataclass(frozen=True, kw_only=True)
class AbsAbs(PatternPass):
    """Write Abs(Abs(x)) as Abs(x)."""

    name: ClassVar[str] = "abs-abs"

    def rules(self, context: Context) -> Sequence[Any]:
        from onnxscript.rewriter import RewriteRule

        return [RewriteRule(lambda op, x: op.Abs(op.Abs(x)), lambda op, x: op.Abs(x))]


def described() -> onnx.ModelProto:
    model = onnx.parser.parse_model(TEXT)
    model.metadata_props.add(key="author", value="me")
    model.producer_name, model.doc_string, model.graph.doc_string = "exporter", "a model", "a graph"
    for number, node in enumerate(model.graph.node):
        node.name, node.doc_string = f"n{number}", f"doc {number}"
        node.metadata_props.add(key="layer", value=str(number))
    model.graph.input[0].metadata_props.add(key="unit", value="m")
    return model


def test_a_graphsurgeon_script_loses_nothing() -> None:
    before = described()
    result = onnxedge.optimize(before, [DropIdentity()], target="generic")
    assert result.report.passes[0].status == "applied"
    after = to_proto(result.model)
    assert [n.op_type for n in after.graph.node] == ["Mul", "Abs", "Abs", "Relu"]
    assert after.producer_name == "exporter"
    assert (after.doc_string, after.graph.doc_string) == ("a model", "a graph")
    assert [(n.name, n.doc_string, n.metadata_props[0].value) for n in after.graph.node] == [
        (f"n{i}", f"doc {i}", str(i)) for i in range(1, 5)
    ]
    assert after.graph.input[0].metadata_props[0].value == "m"
    assert after.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert next(p.value for p in after.metadata_props if p.key == "author") == "me"


def test_onnxscript_rules_run() -> None:
    result = onnxedge.optimize(described(), [AbsAbs()], target="generic")
    assert result.report.passes[0].rewrites == 1
    assert [n.op_type for n in result.model.graph] == ["Identity", "Mul", "Abs", "Relu"]


def test_a_function_survives_graphsurgeon(fixtures: Path) -> None:
    model = from_proto(onnx.load(fixtures / "local_function.onnx"))
    identity = ir.node("Identity", [model.graph.inputs[0]])
    first = model.graph[0]
    model.graph.insert_before(first, identity)
    first.replace_input_with(0, identity.outputs[0])
    result = onnxedge.optimize(model, [DropIdentity()], target="generic")
    assert result.report.passes[0].status == "applied"
    assert len(result.model.functions) == len(model.functions) > 0
