"""fuse-attention: layouts, scales and masks of several exporters, and blocks that only look like attention."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
from blocks import HEAD, MERGE, NEGATIVE, PLAIN, SPLIT, fused, graph
from onnxedge_passes.fuse.attention import FuseAttention

LAYOUTS = {
    "merged transpose": f"{SPLIT} {PLAIN} {MERGE}",
    "two transposes": f"{SPLIT.replace('[0, 2, 3, 1]', '[0, 2, 1, 3]').replace('kh =', 'k1 =')}"
    f" kh = Transpose<perm=[0, 1, 3, 2]>(k1) {PLAIN} {MERGE}",
    "divided": f"{SPLIT} s = MatMul(qh, kh) t = Div(s, r) p = Softmax<axis=3>(t) oh = MatMul(p, vh) {MERGE}",
    "scaled query": f"q1 = Mul(q, c) {SPLIT.replace('Reshape(q,', 'Reshape(q1,')} s = MatMul(qh, kh)"
    f" p = Softmax<axis=-1>(s) oh = MatMul(p, vh) {MERGE}",
    "root on both": f"{SPLIT} q1 = Mul(qh, h) k1 = Mul(kh, h) s = MatMul(q1, k1) p = Softmax<axis=-1>(s)"
    f" oh = MatMul(p, vh) {MERGE}",
    "dropout and guard": f"{SPLIT} s = MatMul(qh, kh) t = Mul(s, c) p = Softmax<axis=-1>(t) n = IsNaN(p)"
    f" w = Where(n, z, p) d = Dropout(w) oh = MatMul(d, vh) {MERGE}",
}


@pytest.mark.parametrize("body", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(
    ("target", "opset", "kernel"),
    [
        ("generic", 23, "Attention"),
        ("ort-cuda", 17, "MultiHeadAttention"),
        ("ort-cpu", 17, "MultiHeadAttention"),
        ("ort-cpu", 23, "Attention"),
    ],
)
def test_layouts_and_scales(applied, body: str, target: str, opset: int, kernel: str) -> None:
    node, reasons = fused(graph(body, opset=opset, constants="float z = {0}"), applied, target=target, expected=kernel)
    assert node is not None
    assert reasons == []
    assert [value.name for value in node.inputs if value is not None] == ["q", "k", "v"]
    assert node.outputs[0].name == "y"
    assert node.attributes.get_float("scale") == pytest.approx(0.5)


FOLDED = (
    "qa = Reshape(q, hs) qb = Transpose<perm=[0, 2, 1, 3]>(qa) qh = Reshape(qb, f)"
    " ka = Reshape(k, hs) kb = Transpose<perm=[0, 2, 1, 3]>(ka) kc = Reshape(kb, f) kh = Transpose<perm=[0, 2, 1]>(kc)"
    " va = Reshape(v, hs) vb = Transpose<perm=[0, 2, 1, 3]>(va) vh = Reshape(vb, f)"
    " s = MatMul(qh, kh) t = Mul(s, c) p = Softmax<axis=-1>(t) oh = MatMul(p, vh)"
    " ob = Reshape(oh, u) o = Transpose<perm=[0, 2, 1, 3]>(ob) y = Reshape(o, w)"
)


def test_batch_and_heads_as_one_axis(applied) -> None:
    head = HEAD.replace("[B, T, 8]", "[2, 3, 8]").replace("[B, S, 8]", "[2, 5, 8]")
    constants = "int64[3] f = {4, -1, 4}, int64[4] u = {2, 2, 3, 4}, int64[3] w = {2, 3, 8}"
    model = graph(FOLDED, constants=constants, head=head)
    node, _ = fused(model, applied, target="ort-cpu", expected="MultiHeadAttention")
    assert node is not None
    assert [value.name for value in node.inputs] == ["q", "k", "v"]


def test_heads_that_the_graph_does_not_show_are_batches(applied) -> None:
    body = "kh = Transpose<perm=[0, 2, 1]>(k) s = MatMul(q, kh) t = Mul(s, c) p = Softmax<axis=-1>(t) y = MatMul(p, v)"
    node, _ = fused(graph(body, opset=23), applied, target="generic", expected="Attention")
    assert node is not None
    assert node.attributes.get_int("q_num_heads") == 1
    assert fused(graph(body, opset=23), applied, target="ort-cpu", expected=None)[1] == [
        "attention not fused: the kernel is not faster where heads are not split and merged beside it"
    ]


def test_one_matrix(applied) -> None:
    head = "g (float[3, 8] q, float[5, 8] k, float[5, 8] v) => (float y)"
    body = "kh = Transpose<perm=[1, 0]>(k) s = MatMul(q, kh) p = Softmax<axis=-1>(s) y = MatMul(p, v)"
    fused(graph(body, opset=23, head=head), applied, target="generic", expected="Attention")
    fused(graph(body, head=head), applied, target="ort-cuda", expected="MultiHeadAttention")


def test_heads_first_in_and_out(applied) -> None:
    head = "g (float[B, 2, T, 4] q, float[B, 2, 4, S] kh, float[B, 2, S, 4] v) => (float y)"
    body = "s = MatMul(q, kh) t = Mul(s, c) p = Softmax<axis=-1>(t) y = MatMul(p, v)"
    node, _ = fused(graph(body, opset=23, head=head), applied, target="generic", expected="Attention")
    assert node is not None
    assert "q_num_heads" not in node.attributes
    reasons = fused(graph(body, head=head), applied, target="ort-cuda", expected=None)[1]
    needs = "MultiHeadAttention needs tokens before heads, in queries and in the output"
    assert reasons == [f"attention not fused: {needs}"]


REPEATED = (
    "qs = Reshape(q, hs) qh = Transpose<perm=[0, 2, 1, 3]>(qs)"
    " ku = Unsqueeze(k, two) ke = Expand(ku, e) kr = Reshape(ke, g) kh = Transpose<perm=[0, 1, 3, 2]>(kr)"
    " vu = Unsqueeze(v, two) ve = Expand(vu, e) vh = Reshape(ve, g)"
)


def test_keys_repeated_for_groups_of_heads(applied) -> None:
    head = "g (float[B, T, 16] q, float[B, 2, S, 4] k, float[B, 2, S, 4] v) => (float y)"
    body = f"{REPEATED} {PLAIN} {MERGE}".replace("hs)", "hq)").replace("ms)", "mq)")
    constants = (
        "int64[1] two = {2}, int64[5] e = {1, 1, 2, 1, 1}, int64[4] g = {0, 4, -1, 4}, int64[4] hq = {0, 0, 4, 4},"
        " int64[3] mq = {0, 0, 16}"
    )
    model = graph(body, opset=23, head=head, constants=constants)
    node, _ = fused(model, applied, target="generic", expected="Attention")
    assert node is not None
    assert [value.name for value in node.inputs[1:]] == ["k", "v"]


def masked(mask: str) -> str:
    return f"{SPLIT} s = MatMul(qh, kh) t = Mul(s, c) {mask} p = Softmax<axis=-1>(m) oh = MatMul(p, vh) {MERGE}"


MASKS = {
    "of keys": (masked("m = Add(t, a)"), ", float[B, 1, 1, S] a", False),
    "of queries and keys": (masked("m = Add(a, t)"), ", float[B, 1, T, S] a", False),
    "of two axes": (masked("m = Add(t, a)"), ", float[T, S] a", False),
    "of heads": (masked("m = Add(t, a)"), ", float[1, 2, T, S] a", False),
    "made of booleans": (masked("w = Where(a, zero, low) m = Add(t, w)"), ", bool[B, 1, T, S] a", False),
    "lowest filled in": (masked("m = Where(a, t, low)"), ", bool[B, 1, T, S] a", False),
    "filled in where it holds": (masked("n = Not(a) m = Where(n, low, t)"), ", bool[B, 1, T, S] a", False),
    "-inf filled in": (masked("m = Where(a, t, inf)"), ", bool[B, 1, T, S] a", True),
    "weak numbers added": (masked("w = Where(a, zero, weak) m = Add(t, w)"), ", bool[B, 1, 1, S] a", False),
}


@pytest.mark.parametrize(("body", "more", "empty"), MASKS.values(), ids=MASKS)
def test_masks(applied, body: str, more: str, empty: bool) -> None:
    new = graph(body, more=more, opset=23, constants=NEGATIVE)
    fused(new, applied, target="generic", expected="Attention", empty=empty)
    old = graph(body, more=more, opset=17, constants=NEGATIVE)
    before = old.clone()
    node, _ = fused(old, applied, target="ort-cuda", expected="MultiHeadAttention", empty=False)
    assert node is not None
    assert len(node.inputs) == 6
    assert applied(FuseAttention(), before, "ort-cpu")[1] == [
        "attention not fused: MultiHeadAttention with a mask is not faster than single operators"
    ]


def test_a_guard_against_rows_masked_whole(applied) -> None:
    body = masked("w = Where(a, zero, inf) m = Add(t, w)").replace(
        "oh = MatMul(p, vh)", "n = IsNaN(p) x = Where(n, zero, p) oh = MatMul(x, vh)"
    )
    more = ", bool[B, 1, T, S] a"
    fused(graph(body, more=more, opset=23, constants=NEGATIVE), applied, target="generic", expected="Attention")
    fused(graph(body, more=more, constants=NEGATIVE), applied, target="ort-cuda", expected="MultiHeadAttention")


def test_a_constant_triangle_is_causal(applied) -> None:
    head = HEAD.replace("B, T", "B, 3").replace("B, S", "B, 3")
    triangle = "bool[3, 3] a = {1, 0, 0, 1, 1, 0, 1, 1, 1}"
    body = masked("m = Where(a, t, weak)")
    for target, opset, kernel, name in (
        ("generic", 23, "Attention", "is_causal"),
        ("ort-cuda", 17, "MultiHeadAttention", "unidirectional"),
    ):
        model = graph(body, head=head, opset=opset, constants=f"{NEGATIVE}, {triangle}")
        node, _ = fused(model, applied, target=target, expected=kernel)
        assert node is not None
        assert node.attributes.get_int(name) == 1
        assert len(node.inputs) == 3


def test_blocks_share_one_mask(applied) -> None:
    one = masked("m = Add(t, a)")
    two = one
    for name in ("qs", "ks", "vs", "qh", "kh", "vh", "s", "t", "m", "p", "oh", "o", "y"):
        for before, after in ((f"{name} =", f"{name}2 ="), (f"({name},", f"({name}2,"), (f", {name})", f", {name}2)")):
            two = two.replace(before, after)
        two = two.replace(f"({name})", f"({name}2)")
    body = one.replace("y =", "y1 =") + two.replace("Reshape(q,", "Reshape(y1,") + " y = Relu(y2)"
    model = graph(body, more=", float[B, 1, 1, T] a", opset=17, head=HEAD.replace("S", "T"))
    applied(FuseAttention(), model, "ort-cuda")
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("MultiHeadAttention") == 2
    assert kinds.count("Expand") == 1


OTHERS = {
    "weights exported": (f"{SPLIT} {PLAIN} {MERGE} z = Relu(p)", "its weights or scores have other readers"),
    "softmax over queries": (
        f"{SPLIT} s = MatMul(qh, kh) t = Mul(s, c) p = Softmax<axis=2>(t) oh = MatMul(p, vh) {MERGE}",
        "the Softmax is not over the keys alone",
    ),
    "a function of the scores": (
        f"{SPLIT} s = MatMul(qh, kh) t = Sigmoid(s) u = Mul(t, c) w = Add(b, u) p = Softmax<axis=-1>(w)"
        f" oh = MatMul(p, vh) {MERGE}",
        "Sigmoid between the scores and the Softmax",
    ),
    "scaled behind the mask": (
        f"{SPLIT} s = MatMul(qh, kh) a = Add(s, b) t = Mul(a, c) p = Softmax<axis=-1>(t) oh = MatMul(p, vh) {MERGE}",
        "the scores are scaled after the mask is added",
    ),
    "a scale of each head": (
        f"{SPLIT} s = MatMul(qh, kh) t = Mul(s, hc) p = Softmax<axis=-1>(t) oh = MatMul(p, vh) {MERGE}",
        "the scores are scaled by what is no constant number",
    ),
    "a scale below 0": (
        f"{SPLIT} s = MatMul(qh, kh) t = Mul(s, weak) p = Softmax<axis=-1>(t) oh = MatMul(p, vh) {MERGE}",
        "the scores are scaled by no number above 0",
    ),
    "a scale of 0": (
        f"{SPLIT} s = MatMul(qh, kh) t = Mul(s, zero) p = Softmax<axis=-1>(t) oh = MatMul(p, vh) {MERGE}",
        "the scores are scaled by no number above 0",
    ),
    "a weak number filled in": (
        f"{SPLIT} s = MatMul(qh, kh) t = Where(x, s, weak) p = Softmax<axis=-1>(t) oh = MatMul(p, vh) {MERGE}",
        "scores are replaced by a number that is not low enough to be added",
    ),
}


@pytest.mark.parametrize(("body", "reason"), OTHERS.values(), ids=OTHERS)
def test_stays_with_a_reason(applied, body: str, reason: str) -> None:
    more = ", float[B, 1, T, S] b, bool[B, 1, T, S] x"
    constants = f"{NEGATIVE}, float[2, 1, 1] hc = {{1, 2}}"
    model = graph(body, more=more, opset=23, constants=constants)
    if "z = Relu" in body:
        model.graph.outputs.append(next(node for node in model.graph if node.op_type == "Relu").outputs[0])
    result, reasons = applied(FuseAttention(), model, "generic")
    assert result.rewrites == 0
    assert reasons == [f"attention not fused: {reason}"]


def test_no_softmax_between_products_is_no_matter(applied) -> None:
    body = f"{SPLIT} s = MatMul(qh, kh) p = Sigmoid(s) oh = MatMul(p, vh) {MERGE}"
    assert applied(FuseAttention(), graph(body, opset=23), "generic")[1] == []


def test_old_opsets_are_said(applied) -> None:
    reasons = fused(graph(LAYOUTS["divided"], constants="float z = {0}"), applied, target="generic", expected=None)[1]
    assert reasons == ["attention not fused: target generic has no kernel for it at this opset"]


def test_broadcast_keys_stay(applied) -> None:
    head = HEAD.replace("[B, S, 8] k", "[1, S, 8] k").replace("[B, S, 8] v", "[1, S, 8] v").replace("[B, T", "[2, T")
    reasons = fused(graph(f"{SPLIT} {PLAIN} {MERGE}", opset=23, head=head), applied, target="generic", expected=None)[1]
    assert reasons == ["attention not fused: queries, keys or values are broadcast over the batch"]


def test_many_small_heads_stay_on_the_cpu(applied) -> None:
    head = HEAD.replace("B,", "64,")
    model = graph(f"{SPLIT} {PLAIN} {MERGE}", head=head)
    reasons = applied(FuseAttention(), model, "ort-cpu")[1]
    assert reasons == ["attention not fused: MultiHeadAttention on many heads is not faster than single operators"]


@pytest.mark.zoo
def test_all_blocks_of_a_keyword_transformer(applied, zoo: Path) -> None:
    path = zoo / "models" / "kwt1_speech12.onnx"
    result, reasons = applied(FuseAttention(), ir.load(path), "ort-cuda")
    assert result.rewrites == 12
    assert reasons == []
    result, reasons = applied(FuseAttention(), ir.load(path), "ort-cpu")
    assert result.rewrites == 0
    reason = "attention not fused: the kernel is not faster where heads are not split and merged beside it"
    assert reasons == [reason] * 12
