"""dead-code: what no output depends on goes, the interface stays."""

from __future__ import annotations

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
