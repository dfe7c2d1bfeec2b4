"""fuse-attention and absorb-heads on tokens that stand before the batch, as torch.nn.MultiheadAttention has them."""

from __future__ import annotations

import pytest
from blocks import fused, graph, same
from onnxedge_passes.fuse.attention import AbsorbHeads

HEAD = "g (float[T, B, 8] q, float[S, B, 8] k, float[S, B, 8] v) => (float y)"
SHAPES = (
    "int64[1] two = {2}, int64[1] four = {4}, int64[1] eight = {8}, int64[1] v0 = {0},"
    " int64[1] v1 = {1}, int64[1] minus = {-1}"
)
BEFORE = (
    "qz = Shape(q) t = Gather(qz, v0) b = Gather(qz, v1) kz = Shape(k) n = Gather(kz, v0) f = Mul(b, two)"
    " q3 = Concat<axis=0>(t, f, four) k3 = Concat<axis=0>(n, f, four)"
    " q4 = Concat<axis=0>(b, two, t, four) k4 = Concat<axis=0>(b, two, n, four)"
    " qs = Reshape(q, q3) qt = Transpose<perm=[1, 0, 2]>(qs) qh = Reshape(qt, q4)"
    " ks = Reshape(k, k3) kt = Transpose<perm=[1, 0, 2]>(ks) kx = Reshape(kt, k4)"
    " vs = Reshape(v, k3) vt = Transpose<perm=[1, 0, 2]>(vs) vh = Reshape(vt, k4)"
)
PRODUCTS = (
    " kh = Transpose<perm=[0, 1, 3, 2]>(kx) s = MatMul(qh, kh) sc = Mul(s, c) p = Softmax<axis=-1>(sc)"
    " oh = MatMul(p, vh)"
)
AFTER = " o = Transpose<perm=[2, 0, 1, 3]>(oh) d = Concat<axis=0>(minus, eight) y = Reshape(o, d)"


@pytest.mark.parametrize(
    ("target", "opset", "kernel"),
    [
        ("generic", 23, "Attention"),
        ("ort-cpu", 23, "Attention"),
        ("ort-cpu", 17, "MultiHeadAttention"),
        ("ort-cuda", 17, "MultiHeadAttention"),
    ],
)
def test_batch_and_heads_as_one_axis(applied, target: str, opset: int, kernel: str) -> None:
    model = graph(BEFORE + PRODUCTS + AFTER, head=HEAD, opset=opset, constants=SHAPES)
    node, reasons = fused(model, applied, target=target, expected=kernel)
    assert node is not None
    assert reasons == []
    kinds = [other.op_type for other in model.graph]
    assert kinds.count("Transpose") == 4
    assert [value.shape[-1] for value in node.inputs if value is not None and value.shape is not None] == [8, 8, 8]


def test_heads_are_absorbed(applied) -> None:
    body = f"{BEFORE} oh = Attention(qh, kx, vh) {AFTER}"
    model = graph(body, head=HEAD, opset=23, constants=SHAPES)
    before = model.clone()
    assert applied(AbsorbHeads(), model, "ort-cpu")[0].rewrites == 1
    node = next(node for node in model.graph if node.op_type == "Attention")
    assert node.attributes.get_int("q_num_heads") == 2
    same(before, model)
    assert applied(AbsorbHeads(), model, "ort-cpu")[0].rewrites == 0


def test_an_output_in_another_order_stays(applied) -> None:
    after = AFTER.replace("[2, 0, 1, 3]", "[2, 1, 0, 3]")
    model = graph(BEFORE + PRODUCTS + after, head=HEAD, constants=SHAPES)
    reasons = fused(model, applied, target="ort-cpu", expected=None)[1]
    assert reasons == [
        "attention not fused: MultiHeadAttention needs tokens before heads, in queries and in the output"
    ]
