"""fuse-attention into GroupQueryAttention: causal masks of several exporters, groups of heads, and near misses."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from blocks import MERGE, fused, graph
from onnxedge_passes.fuse.attention import FuseAttention

from onnxedge.api import Session

SIZES = ", float[B, T, 32] q, float[B, T, 16] k, float[B, T, 16] v"
HEAD = f"g ({SIZES[2:]}{{more}}) => (float y)"
CONSTANTS = (
    "int64[4] hq = {0, 0, 4, 8}, int64[4] hk = {0, 0, 2, 8}, int64[3] mq = {0, 0, 32}, int64[4] rp = {0, 4, -1, 8},"
    " int64[5] e = {1, 1, 2, 1, 1}, int64 n0 = {0}, int64 n1 = {1}, int64[1] v0 = {0}, int64[1] v1 = {1},"
    " int64[1] two = {2}, float low = {-3.4028234663852886e38}, float zero = {0}, float inf = {-1}, float cap = {2.5},"
    " float weak = {-10000}"
)
KEYS = (
    " ks = Reshape(k, hk) kt = Transpose<perm=[0, 2, 1, 3]>(ks) ku = Unsqueeze(kt, two) ke = Expand(ku, e)"
    " kr = Reshape(ke, rp) kh = Transpose<perm=[0, 1, 3, 2]>(kr)"
    " vs = Reshape(v, hk) vt = Transpose<perm=[0, 2, 1, 3]>(vs) vu = Unsqueeze(vt, two) ve = Expand(vu, e)"
    " vh = Reshape(ve, rp)"
)
SPELLED = {
    "tiled": KEYS.replace("Expand(ku, e)", "Tile(ku, e)").replace("Expand(vu, e)", "Tile(vu, e)"),
    "gathered": (
        " ks = Reshape(k, hk) kt = Transpose<perm=[0, 2, 3, 1]>(ks) kh = Gather<axis=1>(kt, i)"
        " vs = Reshape(v, hk) vt = Transpose<perm=[0, 2, 1, 3]>(vs) vh = Gather<axis=1>(vt, i)"
    ),
}
LENGTHS = (
    "shape = Shape(q) ts = Gather(shape, v1) t1 = Squeeze(ts) line = Range(n0, t1, n1) row = Unsqueeze(line, v1)"
    " square = Concat<axis=0>(ts, ts)"
)


def block(mask: str, *, keys: str = KEYS, masked: str = "Add(t, m)") -> str:
    return (
        f"{LENGTHS} {mask} qs = Reshape(q, hq) qh = Transpose<perm=[0, 2, 1, 3]>(qs) {keys}"
        f" s = MatMul(qh, kh) t = Mul(s, c) w = {masked} p = Softmax<axis=-1>(w) oh = MatMul(p, vh)"
        f" {MERGE.replace('ms', 'mq')}"
    )


def model(body: str, *, more: str = "", opset: int = 17, constants: str = "", sizes: str = SIZES) -> ir.Model:
    head = HEAD.replace(SIZES[2:], sizes[2:])
    return graph(body, more=more, opset=opset, constants=CONSTANTS + constants, head=head)


MASKS = {
    "places compared": ("b = LessOrEqual(line, row) m = Where(b, zero, low)", "Add(t, m)"),
    "places of one more": ("r1 = Add(row, n1) b = Less(line, r1) m = Where(b, zero, low)", "Add(t, m)"),
    "filled in where it does not hold": ("b = Greater(line, row)", "Where(b, low, t)"),
    "an upper triangle": (
        "f = ConstantOfShape<value=float[1] {-1e38}>(square) m = Trilu<upper=1>(f, n1)",
        "Add(t, m)",
    ),
    "a lower triangle": (
        "f = ConstantOfShape<value=int64[1] {1}>(square) g = Cast<to=9>(f) b = Trilu<upper=0>(g) x = Not(b)",
        "Where(x, inf, t)",
    ),
    "four axes": (
        "a0 = Unsqueeze(line, v0) a1 = Unsqueeze(a0, v0) a2 = Unsqueeze(a1, v0) b0 = Transpose<perm=[0, 1, 3, 2]>(a2)"
        " l = LessOrEqual(a2, b0) eq = Equal(n0, n0) b = And(eq, l) m = Where(b, zero, inf)",
        "Add(t, m)",
    ),
    "numbers": ("g = Greater(line, row) f = Cast<to=1>(g) m = Mul(f, low)", "Add(t, m)"),
}


@pytest.mark.parametrize(("mask", "masked"), MASKS.values(), ids=MASKS)
def test_computed_masks(applied, mask: str, masked: str) -> None:
    body = block(mask, masked=masked)
    node, reasons = fused(model(body), applied, target="ort-cpu", expected="GroupQueryAttention")
    assert node is not None
    assert reasons == []
    assert [value.name for value in node.inputs[:3] if value is not None] == ["q", "k", "v"]
    assert node.inputs[3:5] == (None, None)
    assert [node.attributes.get_int(name) for name in ("num_heads", "kv_num_heads")] == [4, 2]
    assert len(node.outputs) == 1


@pytest.mark.parametrize("keys", SPELLED.values(), ids=SPELLED)
def test_repeated_keys(applied, keys: str) -> None:
    found = model(block(MASKS["places compared"][0], keys=keys), constants=", int64[4] i = {0, 0, 1, 1}")
    node, _ = fused(found, applied, target="ort-cpu", expected="GroupQueryAttention")
    assert node is not None
    assert node.attributes.get_int("kv_num_heads") == 2


def test_heads_that_alternate_are_no_groups(applied) -> None:
    found = model(block(MASKS["places compared"][0], keys=SPELLED["gathered"]), constants=", int64[4] i = {0, 1, 0, 1}")
    assert fused(found, applied, target="ort-cpu", expected=None)[0] is None


def test_the_standard_operator_is_causal_too(applied) -> None:
    body = block(*MASKS["places compared"][:1])
    node, _ = fused(model(body, opset=23), applied, target="generic", expected="Attention")
    assert node is not None
    assert (node.attributes.get_int("is_causal"), len(node.inputs)) == (1, 3)


def test_a_constant_triangle(applied) -> None:
    triangle = ", bool[1, 1, 3, 3] a = {1, 0, 0, 1, 1, 0, 1, 1, 1}"
    sizes = SIZES.replace("T", "3").replace("B", "2")
    body = block("", masked="Where(a, t, weak)")
    found = model(body, constants=triangle, sizes=sizes)
    node, _ = fused(found, applied, target="ort-cpu", expected="GroupQueryAttention")
    assert node is not None
    lengths = [value.const_value.numpy() for value in node.inputs[5:7] if value is not None and value.const_value]
    assert [array.tolist() for array in lengths] == [[2, 2], 3]
    assert {str(array.dtype) for array in lengths} == {"int32"}


@pytest.mark.parametrize(("batch", "tokens", "opset"), [("2", "T", 17), ("B", "3", 17), ("B", "T", 13)])
def test_sizes_that_are_known(applied, batch: str, tokens: str, opset: int) -> None:
    sizes = SIZES.replace("B", batch).replace("T", tokens)
    found = model(block(MASKS["places compared"][0]), sizes=sizes, opset=opset)
    node, _ = fused(found, applied, target="ort-cpu", expected="GroupQueryAttention")
    assert node is not None
    assert node.inputs[5] is not None
    assert node.inputs[5].dtype == ir.DataType.INT32


def test_blocks_share_their_lengths(applied) -> None:
    one = block(MASKS["places compared"][0])
    again = (
        " q2 = Reshape(y1, hq) q3 = Transpose<perm=[0, 2, 1, 3]>(q2) s2 = MatMul(q3, kh) t2 = Mul(s2, c)"
        " w2 = Add(t2, m) p2 = Softmax<axis=-1>(w2) o2 = MatMul(p2, vh) o3 = Transpose<perm=[0, 2, 1, 3]>(o2)"
        " y = Reshape(o3, mq)"
    )
    found = model(one.replace("y = ", "y1 = ") + again)
    assert applied(FuseAttention(), found, "ort-cpu")[0].rewrites == 2
    shapes = [node.inputs[0] for node in found.graph if node.op_type == "Shape"]
    assert {value.name for value in shapes if value is not None} == {"q"}


def test_as_many_key_heads(applied) -> None:
    keys = (
        " ks = Reshape(k, hq) kh = Transpose<perm=[0, 2, 3, 1]>(ks)"
        " vs = Reshape(v, hq) vh = Transpose<perm=[0, 2, 1, 3]>(vs)"
    )
    sizes = SIZES.replace("16", "32")
    body = block(MASKS["places compared"][0], keys=keys)
    node, _ = fused(model(body, sizes=sizes), applied, target="ort-cpu", expected="GroupQueryAttention")
    assert node is not None
    assert node.attributes.get_int("kv_num_heads") == 4


def test_half_precision_on_a_gpu(applied) -> None:
    sizes = SIZES.replace("float", "float16")
    body = block("b = LessOrEqual(line, row) m = Where(b, zh, lh)").replace("Mul(s, c)", "Mul(s, ch)")
    # 64511 and 14336 are the bits of -65504 and 0.5
    constants = ", float16 zh = {0}, float16 lh = {64511}, float16 ch = {14336}"
    found = model(body.replace("y = ", "y16 = ") + " y = Cast<to=1>(y16)", sizes=sizes, constants=constants)
    before = found.clone()
    assert applied(FuseAttention(), found, "ort-cuda")[0].rewrites == 1
    node = next(node for node in found.graph if node.op_type == "GroupQueryAttention")
    assert len(node.outputs) == 3
    inputs = {"q": (2, 5, 32), "k": (2, 5, 16), "v": (2, 5, 16)}
    rng = np.random.default_rng(0)
    feed = {name: rng.standard_normal(shape).astype(np.float16) for name, shape in inputs.items()}
    outputs = [Session(each, level="disable").run(feed)["y"] for each in (before, found)]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=0, atol=5e-3)
    single = model(block(MASKS["places compared"][0]))
    fused(single, applied, target="ort-cuda", expected="MultiHeadAttention")


def test_capped_scores(applied) -> None:
    mask, masked = MASKS["places compared"][0], "Add(u, m)"
    body = block(mask, masked=masked).replace(
        "t = Mul(s, c)", "t = Mul(s, c) d = Div(t, cap) th = Tanh(d) u = Mul(th, cap)"
    )
    node, _ = fused(model(body), applied, target="ort-cpu", expected="GroupQueryAttention")
    assert node is not None
    assert node.attributes.get_float("softcap") == 2.5


def test_an_empty_batch_is_refused_in_words(applied) -> None:
    found = model(block(MASKS["places compared"][0]))
    fused(found, applied, target="ort-cpu", expected="GroupQueryAttention")
    feed = {name: np.zeros((0, 3, width), np.float32) for name, width in (("q", 32), ("k", 16), ("v", 16))}
    with pytest.raises(Exception, match="total_sequence_length must be positive"):
        Session(found, level="disable").run(feed)


OTHERS = {
    "keys to come": "b = GreaterOrEqual(line, row) m = Where(b, zero, low)",
    "not its own key": "b = Less(line, row) m = Where(b, zero, weak)",
    "one key more": "r1 = Add(row, n1) b = LessOrEqual(line, r1) m = Where(b, zero, low)",
    "a window": (
        "b = LessOrEqual(line, row) d = Sub(row, n1) x = GreaterOrEqual(line, d) a = And(b, x) m = Where(a, zero, low)"
    ),
    "a weak number": "b = LessOrEqual(line, row) m = Where(b, zero, weak)",
    "a number on what is shown": "b = LessOrEqual(line, row) m = Where(b, c, low)",
    "padding too": "b = LessOrEqual(line, row) a = And(b, pad) m = Where(a, zero, low)",
    "steps of two": "l = Add(line, line) b = LessOrEqual(l, row) m = Where(b, zero, low)",
}


@pytest.mark.parametrize("mask", OTHERS.values(), ids=OTHERS)
def test_another_mask_is_none(applied, mask: str) -> None:
    found = model(block(mask), more=", bool[B, 1, 1, T] pad")
    assert fused(found, applied, target="ort-cpu", expected=None)[1] == [
        "attention not fused: MultiHeadAttention with a mask is not faster than single operators"
    ]


def test_a_mask_of_another_length(applied) -> None:
    mask = "us = Shape(u) u1 = Squeeze(us) l = Range(n0, u1, n1) b = LessOrEqual(l, row) m = Where(b, zero, low)"
    assert applied(FuseAttention(), model(block(mask), more=", float[S] u"), "ort-cpu")[0].rewrites == 0


def test_more_keys_than_queries(applied) -> None:
    sizes = SIZES.replace("float[B, T, 16]", "float[B, S, 16]")
    mask = "ks2 = Shape(k) us = Gather(ks2, v1) u1 = Squeeze(us) l = Range(n0, u1, n1) b = LessOrEqual(l, row)"
    found = model(block(f"{mask} m = Where(b, zero, low)"), sizes=sizes)
    assert fused(found, applied, target="ort-cpu", expected=None)[0] is None


def test_heads_of_four_features(applied) -> None:
    constants = CONSTANTS.replace("4, 8}", "8, 4}").replace("2, 8}", "4, 4}").replace("{0, 4, -1, 8}", "{0, 8, -1, 4}")
    body = block(MASKS["places compared"][0])
    found = graph(body, constants=constants, head=HEAD)
    assert fused(found, applied, target="ort-cpu", expected=None)[1] == [
        "attention not fused: GroupQueryAttention needs heads of a multiple of 8 features"
    ]
