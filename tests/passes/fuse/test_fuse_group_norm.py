"""fuse-group-norm: PyTorch's export of GroupNorm, and Reshapes that are not groups."""

from __future__ import annotations

import pytest
from conftest import parse
from onnxedge_passes.fuse.norm.fuse_group_norm import FuseGroupNorm

HEAD = "g (float[N, 4, 3, 3] x) => (float[N, 4, 3, 3] y)"
CONSTANTS = (
    "<int64[3] s = {0, 2, -1}, int64[4] back = {-1, 4, 3, 3}, float[2] one = {1, 1}, float[2] zero = {0, 0},"
    " float[4, 1, 1] k = {1, 2, 3, 4}, float[1, 4, 1, 1] c = {0, 1, 2, 3}, float[3] row = {1, 2, 3}>"
)
INNER = "r = Reshape(x, s) n = InstanceNormalization<epsilon=0.001>(r, one, zero)"
BODY = f"{INNER} b = Reshape(n, back) o = Mul(b, k) y = Add(o, c)"
NEW = {"opset": 21, "ir_version": 10}


def fused(parameters: str) -> str:
    return f"{HEAD} {parameters} {{ y = GroupNormalization<num_groups=2, epsilon=0.001>(x, k, c) }}"


def test_fuses(check) -> None:
    after = fused("<float[4] k = {1, 2, 3, 4}, float[4] c = {0, 1, 2, 3}>")
    check(FuseGroupNorm(), f"{HEAD} {CONSTANTS} {{ {BODY} }}", after, target="generic", **NEW)


def test_without_parameters(check) -> None:
    body = f"{INNER} y = Reshape(n, back)"
    after = fused("<float[4] k = {1, 1, 1, 1}, float[4] c = {0, 0, 0, 0}>")
    text = f"{HEAD} {CONSTANTS} {{ {body.replace('y = Reshape(n, back)', 'z = Reshape(n, back) y = Relu(z)')} }}"
    after = after.replace("{ y =", "{ z =").replace("(x, k, c) }", "(x, k, c) y = Relu(z) }")
    check(FuseGroupNorm(), text, after, target="generic", **NEW)


@pytest.mark.parametrize(
    "body",
    [
        "r = Reshape(x, s) n = InstanceNormalization(r, one, one) b = Reshape(n, back) y = Mul(b, k)",
        f"{INNER} y = Relu(n)",
    ],
    ids=["a beta for each group", "no Reshape behind"],
)
def test_stays(check, body: str) -> None:
    head = HEAD.replace("=> (float[N, 4, 3, 3] y)", "=> (float[A, B, C] y)") if "Relu" in body else HEAD
    assert check(FuseGroupNorm(), f"{head} {CONSTANTS} {{ {body} }}", target="generic", **NEW) == []


def test_a_row_of_constants_stays_behind(check) -> None:
    body = f"{INNER} b = Reshape(n, back) y = Mul(b, row)"
    after = fused("<float[4] k = {1, 1, 1, 1}, float[4] c = {0, 0, 0, 0}, float[3] row = {1, 2, 3}>")
    after = after.replace("{ y =", "{ b =").replace("(x, k, c) }", "(x, k, c) y = Mul(b, row) }")
    check(FuseGroupNorm(), f"{HEAD} {CONSTANTS} {{ {body} }}", after, target="generic", **NEW)


def test_old_opsets_and_onnx_runtime_are_said(check) -> None:
    text = f"{HEAD} {CONSTANTS} {{ {BODY} }}"
    reason = "group normalization not fused: the operator with one gamma a channel comes with opset 21"
    assert check(FuseGroupNorm(), text, target="generic", opset=18) == [reason]
    reason = "group normalization not fused: the runtime is faster with the nodes"
    assert check(FuseGroupNorm(), text, **NEW) == [reason]


def test_an_output_exported_twice(applied) -> None:
    model = parse(f"{HEAD} {CONSTANTS} {{ {BODY} }}", **NEW)
    model.graph.outputs.append(model.graph.outputs[0])
    result, reasons = applied(FuseGroupNorm(), model, "generic")
    assert (result.rewrites, reasons) == (0, ["group normalization not fused: its output is exported twice"])
