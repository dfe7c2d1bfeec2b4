"""Expressions are found however much of the graph before them is made of the same operators."""

from __future__ import annotations

import onnx.parser
import onnx_ir as ir
from onnxedge_passes.fuse.expression import expressions_around

_OPERATORS = frozenset({"Add", "Sub", "Mul", "ReduceMean", "Sqrt", "Reciprocal"})


def _normalization(source: str, result: str) -> str:
    """Return a layer normalization as TensorFlow spells it: 12 nodes, the last of which is near the source too."""
    n = result
    return f"""
        {n}m = ReduceMean<axes = [-1]>({source})  {n}d = Sub({source}, {n}m)  {n}s = Mul({n}d, {n}d)
        {n}v = ReduceMean<axes = [-1]>({n}s)  {n}e = Add({n}v, epsilon)  {n}q = Sqrt({n}e)  {n}r = Reciprocal({n}q)
        {n}g = Mul({n}r, gamma)  {n}a = Mul({source}, {n}g)  {n}b = Mul({n}m, {n}g)  {n}c = Sub(beta, {n}b)
        {result} = Add({n}a, {n}c)
    """


def test_the_far_end_is_found_behind_another_expression() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 13]>'
        "g (float[4,8] x, float[4,8] t) => (float[4,8] z)"
        " <float epsilon = {0.001}, float[1] gamma = {2}, float[1] beta = {3}> {"
        + _normalization("x", "y")
        + "w = Add(y, t)"
        + _normalization("w", "z")
        + "}"
    )
    graph = ir.from_proto(model).graph
    second = [node for node in graph if node.op_type == "Sqrt"][1]
    found = list(expressions_around(second, _OPERATORS, 20))
    assert ("w", 12) in [(expression.source.name, len(expression.nodes)) for expression in found]
    assert all(len(expression.nodes) <= 20 for expression in found)
