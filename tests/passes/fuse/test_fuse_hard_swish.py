"""fuse-hard-swish: x * clip(x + 3, 0, 6) / 6 in its spellings."""

from __future__ import annotations

import pytest
from onnxedge_passes.fuse.activation.fuse_hard_swish import FuseHardSwish

HEAD = "g (float[N, 8] x) => (float[N, 8] y)"
CONSTANTS = "<float three = {3}, float zero = {0}, float six = {6}, float sixth = {0.16666667}, float four = {4}>"

SPELLINGS = {
    "divided last": "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)",
    "divided first": "a = Add(three, x) c = Clip(a, zero, six) d = Div(c, six) y = Mul(d, x)",
    "multiplied": "a = Add(x, three) c = Clip(a, zero, six) m = Mul(c, sixth) y = Mul(x, m)",
    "Relu and Min": "a = Add(x, three) r = Relu(a) c = Min(r, six) m = Mul(x, c) y = Div(m, six)",
    "HardSigmoid": "c = HardSigmoid<alpha=0.16666667, beta=0.5>(x) y = Mul(x, c)",
}


@pytest.mark.parametrize("body", SPELLINGS.values(), ids=SPELLINGS)
def test_fuses(check, body: str) -> None:
    check(FuseHardSwish(), f"{HEAD} {CONSTANTS} {{ {body} }}", f"{HEAD} {{ y = HardSwish(x) }}", target="generic")


@pytest.mark.parametrize(
    "body",
    [
        "a = Add(x, four) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)",
        "a = Add(x, three) c = Clip(a, zero) m = Mul(x, c) y = Div(m, six)",
        "c = HardSigmoid(x) y = Mul(x, c)",
    ],
    ids=["shifted by 4", "no upper bound", "the default slope"],
)
def test_stays(check, body: str) -> None:
    assert check(FuseHardSwish(), f"{HEAD} {CONSTANTS} {{ {body} }}") == []


def test_old_opsets_are_said(check) -> None:
    reasons = check(FuseHardSwish(), f"{HEAD} {CONSTANTS} {{ {SPELLINGS['divided last']} }}", opset=13)
    assert reasons == ["HardSwish not fused: target ort-cpu has no kernel for it at this opset"]
