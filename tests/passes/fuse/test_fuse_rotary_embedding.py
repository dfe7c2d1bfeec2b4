"""fuse-rotary-embedding: halves and neighbours, layouts, positions of the batch, and turns of another kind."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnxedge_passes.fuse.fuse_rotary_embedding import FuseRotaryEmbedding

from onnxedge.api import Session

HEAD = "g (float[B, 2, T, 4] x, float[{b}, T, 2] f) => (float[B, 2, T, 4] y)"
NUMBERS = (
    "int64[1] zero = {0}, int64[1] two = {2}, int64[1] end = {9223372036854775807}, int64[1] last = {-1},"
    " int64[1] one = {1}, int64[4] pairs = {0, 0, 0, 4}"
)
ANGLES = "e = Concat<axis=-1>(f, f) c = Cos(e) s = Sin(e) cos = Unsqueeze(c, one) sin = Unsqueeze(s, one)"
HALVES = "lo = Slice(x, zero, two, last) hi = Slice(x, two, end, last) n = Neg(hi) r = Concat<axis=-1>(n, lo)"
PARTS = "lo, hi = Split<axis=-1>(x) n = Neg(hi) r = Concat<axis=-1>(n, lo)"
SUM = "u = Mul(x, cos) w = Mul(r, sin) y = Add(u, w)"


def kinds(model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.fixture
def fused(applied):
    """Return a function that fuses a text, compares outputs, and returns the operators left and the reasons given."""

    def run(text: str, target: str, opset: int = 17) -> tuple[list[str], list[str]]:
        head = f'<ir_version: {8 if opset < 23 else 11}, opset_import: ["": {opset}, "com.microsoft": 1]>'
        proto = onnx.parser.parse_model(f"{head} {text}")
        model = ir.serde.deserialize_model(proto)
        before = model.clone()
        reasons = applied(FuseRotaryEmbedding(), model, target)[1]
        first, second = Session(before, level="disable"), Session(model, level="disable")
        for seed, (batch, tokens) in enumerate(((2, 3), (1, 1), (3, 5))):
            rng = np.random.default_rng(seed)
            named = {"B": batch, "T": tokens}
            feed = {
                spec.name: rng.standard_normal([d if isinstance(d, int) else named[str(d)] for d in spec.shape]).astype(
                    np.float32
                )
                for spec in first.inputs
            }
            for mine, other in zip(first.run(feed).values(), second.run(feed).values(), strict=True):
                np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5)
        assert applied(FuseRotaryEmbedding(), model, target)[0].rewrites == 0
        return kinds(model), reasons

    return run


@pytest.mark.parametrize(("target", "opset"), [("ort-cpu", 17), ("ort-cuda", 17), ("generic", 23)])
@pytest.mark.parametrize("batch", ["1", "B"])
@pytest.mark.parametrize("turn", [HALVES, PARTS], ids=["Slice", "Split"])
def test_fuses(fused, turn: str, batch: str, target: str, opset: int) -> None:
    if opset > 17:
        turn = turn.replace("Split<axis=-1>", "Split<axis=-1, num_outputs=2>")
    text = f"{HEAD.format(b=batch)} <{NUMBERS}> {{ {ANGLES} {turn} {SUM} }}"
    left, reasons = fused(text, target, opset)
    assert reasons == []
    assert left.count("RotaryEmbedding") == 1
    assert not {"Neg", "Mul", "Add"} & set(left)


def test_tokens_before_heads(fused) -> None:
    head = "g (float[B, T, 2, 4] x, float[1, T, 2] f) => (float[B, T, 2, 4] y)"
    text = f"{head} <{NUMBERS}> {{ {ANGLES.replace('one)', 'two)')} {HALVES} {SUM} }}"
    assert fused(text, "ort-cpu")[0].count("RotaryEmbedding") == 1


def test_heads_are_moved_behind_the_kernel(fused) -> None:
    head = "g (float[B, T, 8] a, float[1, T, 2] f) => (float[B, 2, T, 4] y)"
    text = (
        f"{head} <{NUMBERS}, int64[4] hs = {{0, 0, 2, 4}}>"
        f" {{ h = Reshape(a, hs) x = Transpose<perm=[0, 2, 1, 3]>(h) {ANGLES} {HALVES} {SUM} }}"
    )
    left = fused(text, "ort-cpu")[0]
    assert left[-3:] == ["RotaryEmbedding", "Reshape", "Transpose"]
    assert left.count("Transpose") == 1


NEIGHBOURS = (
    "even = Slice(x, zero, end, last, two) odd = Slice(x, one, end, last, two) n = Neg(odd)"
    " nu = Unsqueeze(n, last) eu = Unsqueeze(even, last) st = Concat<axis=-1>(nu, eu) r = Reshape(st, pairs)"
)


def test_neighbours(fused) -> None:
    head = "g (float[B, 2, 3, 4] x) => (float[B, 2, 3, 4] y)"
    tables = [
        f"float[3, 4] {name} = {{{', '.join(str(i // 2 * step) for i in range(12))}}}"
        for name, step in (("cos", 0.1), ("sin", 0.2))
    ]
    text = f"{head} <{NUMBERS}, {', '.join(tables)}> {{ {NEIGHBOURS} {SUM} }}"
    assert fused(text, "ort-cpu")[0] == ["RotaryEmbedding"]


OTHERS = {
    "another order": HALVES.replace("(n, lo)", "(lo, n)"),
    "no sign": HALVES.replace("Neg(hi)", "Identity(hi)"),
    "another value": HALVES.replace("Slice(x, two", "Slice(z, two").replace("lo = ", "z = Exp(x) lo = "),
}


@pytest.mark.parametrize("turn", OTHERS.values(), ids=OTHERS)
def test_stays(fused, turn: str) -> None:
    left, reasons = fused(f"{HEAD.format(b='1')} <{NUMBERS}> {{ {ANGLES} {turn} {SUM} }}", "ort-cpu")
    assert "RotaryEmbedding" not in left
    assert reasons == []


def test_halves_that_differ_are_said(fused) -> None:
    angles = ANGLES.replace("Concat<axis=-1>(f, f)", "Concat<axis=-1>(f, g)").replace("e =", "g = Exp(f) e =")
    reasons = fused(f"{HEAD.format(b='1')} <{NUMBERS}> {{ {angles} {HALVES} {SUM} }}", "ort-cpu")[1]
    assert reasons == ["rotary embedding not fused: cos and sin are not known to be equal for both features of a pair"]


def test_no_kernel_is_said(fused) -> None:
    reasons = fused(f"{HEAD.format(b='1')} <{NUMBERS}> {{ {ANGLES} {HALVES} {SUM} }}", "generic")[1]
    assert reasons == ["rotary embedding not fused: target generic has no kernel for it at this opset"]
