"""fuse-elu, and spell-activations on the ELU family."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnxedge_passes.fuse.activation.fuse_elu import FuseElu
from onnxedge_passes.fuse.activation.spell_activations import SpellActivations

from onnxedge.api import Session

NUMBERS = "float z = {0}, float one = {1}, float a = {1.6732632}, float g = {1.050701}, float h = {0.5}"
HEAD = f"g (float[N, 4] x) => (float[N, 4] y) <{NUMBERS}>"
EXP = "e = Exp(x) m = Sub(e, one)"

SPELLINGS = {
    "Where": (f"c = Greater(x, z) {EXP} y = Where(c, x, m)", "Elu<alpha=1.0>"),
    "Where the other way": (f"c = LessOrEqual(x, z) {EXP} k = Mul(m, h) y = Where(c, k, x)", "Elu<alpha=0.5>"),
    "Relu and Min": ("r = Relu(x) n = Min(x, z) e = Exp(n) m = Sub(e, one) y = Add(r, m)", "Elu<alpha=1.0>"),
    "Max and Min": ("r = Max(x, z) n = Min(x, z) e = Exp(n) m = Sub(e, one) k = Mul(m, a) y = Add(k, r)",
                    "Elu<alpha=1.6732632>"),
    "Selu": (f"c = Greater(x, z) {EXP} k = Mul(m, a) s = Where(c, x, k) y = Mul(s, g)",
             "Selu<alpha=1.6732632, gamma=1.050701>"),
    "Celu": ("r = Relu(x) q = Div(x, h) e = Exp(q) m = Sub(e, one) k = Mul(m, h) n = Min(k, z) y = Add(r, n)",
             "Celu<alpha=0.5>"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "operator"), SPELLINGS.values(), ids=SPELLINGS)
def test_fuses(check, body: str, operator: str) -> None:
    check(FuseElu(), f"{HEAD} {{ {body} }}", f"{HEAD} {{ y = {operator}(x) }}", target="generic")


@pytest.mark.parametrize(
    "body",
    [
        f"c = Greater(x, one) {EXP} y = Where(c, x, m)",
        "c = Greater(x, z) e = Exp(x) m = Sub(e, h) y = Where(c, x, m)",
        "c = Greater(x, z) q = Mul(x, h) e = Exp(q) m = Sub(e, one) y = Where(c, x, m)",
        f"c = Less(x, z) {EXP} y = Where(c, x, m)",
    ],
    ids=["from 1 on", "a jump", "half as steep", "upside down"],
)
def test_other_functions_stay(check, body: str) -> None:
    assert check(FuseElu(), f"{HEAD} {{ {body} }}", target="generic") == []


def test_other_readers_are_named(check) -> None:
    text = f"{HEAD} {{ c = Greater(x, z) {EXP} s = Where(c, x, m) y = Mul(s, e) }}"
    assert check(FuseElu(), text, target="generic") == ["Elu not fused: a value inside it has other readers"]


def test_no_celu_before_opset_12(check) -> None:
    (reason,) = check(FuseElu(), f"{HEAD} {{ {SPELLINGS['Celu'][0]} }}", target="generic", opset=11)
    assert "no kernel" in reason


def test_onnx_runtime_is_given_what_it_is_faster_with(check) -> None:
    after = "n = Min(x, z) e = Exp(n) m = Sub(e, one) y = Max(x, m)"
    check(FuseElu(), f"{HEAD} {{ {SPELLINGS['Where'][0]} }}", f"{HEAD} {{ {after} }}")
    assert check(FuseElu(), f"{HEAD} {{ {SPELLINGS['Relu and Min'][0]} }}") == []


LARGE = "g (float[N, 4096] x) => (float[N, 4096] y)"


@pytest.mark.parametrize(
    "operator", ["Elu", "Elu<alpha=0.3>", "Elu<alpha=2.0>", "Selu", "Celu<alpha=0.3>", "Celu<alpha=2.0>"]
)
def test_large_ones_are_spelled(rewritten, operator: str) -> None:
    text = f"g (float[8192] x) => (float[8192] y) {{ y = {operator}(x) }}"
    before, _ = rewritten(FuseElu(), text)
    model, _ = rewritten(SpellActivations(), text)
    assert not {"Elu", "Selu", "Celu"} & {node.op_type for node in model.graph}
    samples = np.linspace(-20, 20, 8192, dtype=np.float32)
    samples[:6] = [np.nan, np.inf, -np.inf, 0.0, -1e-9, 3e38]
    _same(before, model, samples)


def _same(before: ir.Model, after: ir.Model, samples: np.ndarray) -> None:
    mine, other = (Session(model, level="disable").run({"x": samples})["y"] for model in (before, after))
    np.testing.assert_allclose(other, mine, rtol=1e-6, atol=2e-7)


def test_small_ones_and_other_targets_stay(check) -> None:
    check(SpellActivations(), f"{HEAD} {{ y = Elu(x) }}")
    check(SpellActivations(), f"{LARGE} {{ y = Elu(x) }}", target="generic")
    check(SpellActivations(), f"{LARGE} {{ y = Elu<alpha=-1.0>(x) }}")
