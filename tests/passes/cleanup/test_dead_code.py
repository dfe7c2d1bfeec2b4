"""dead-code: what no output depends on goes, the interface stays."""

from __future__ import annotations

import pytest
from conftest import apply, parse
from onnxedge_passes.cleanup.dead_code import DeadCode


def test_nodes_and_initializers(check) -> None:
    check(
        DeadCode(),
        "g (float[3] x, float[3] unused) => (float[3] y) <float[3] w = {1, 2, 3}>"
        " { a = Mul(x, w) b = Exp(a) y = Relu(x) }",
        "g (float[3] x, float[3] unused) => (float[3] y) { y = Relu(x) }",
    )


def test_a_node_with_one_used_output_stays(check) -> None:
    check(DeadCode(), "g (float[4] x) => (float[2] y) <int64[2] s = {2, 2}> { a, b = Split<axis=0>(x, s) y = Relu(b) }")


def test_an_overridable_initializer_stays(check) -> None:
    check(DeadCode(), "g (float[3] x, float[3] w = {1, 2, 3}) => (float[3] y) { y = Relu(x) }")


def test_what_only_a_branch_reads_stays(check) -> None:
    check(
        DeadCode(),
        "g (bool c, float[3] x) => (float[3] y) { r = Relu(x) y = If(c) <then_branch = t () => (float[3] a)"
        " { a = Neg(r) }, else_branch = e () => (float[3] b) { b = Abs(x) }> }",
    )


@pytest.mark.parametrize(
    ("text", "outputs"),
    [
        (
            "g (float[3,4] x, float[4] s) => (float[3,4] y) { y, mean, deviation = LayerNormalization(x, s) }",
            ["y"],
        ),
        (
            "g (float[2,1,1] x, float[1,4,1] w, float[1,4,1] r) => (float[1,1,1] h)"
            " { y, h, c = LSTM<hidden_size=1>(x, w, r) }",
            ["", "h"],
        ),
        ("g (float[3,4] x, int64[1] k) => (float[3,n] y) { y, indices = TopK(x, k) }", None),
    ],
    ids=["last", "in front of one in use", "required"],
)
def test_optional_outputs_that_nobody_reads_go(text: str, outputs: list[str] | None) -> None:
    model = parse(text)
    result, _ = apply(DeadCode(), model)
    assert bool(result.rewrites) == (outputs is not None)
    assert [value.name for value in model.graph[0].outputs] == (outputs or ["y", "indices"])
