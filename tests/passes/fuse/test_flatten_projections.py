"""flatten-projections: products of more than two axes between Reshapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from onnxedge_passes.fuse.fuse import Fuse
from onnxedge_passes.fuse.linear.flatten_projections import FlattenProjections
from traps import parse

from onnxedge.api import Pass, Result, Session

Rewritten = Callable[..., tuple[ir.Model, list[str]]]
Applied = Callable[[Pass, ir.Model, str], tuple[Result, list[str]]]

WEIGHTS = (
    "float[2, 4] w = {1, 2, 3, 4, 5, 6, 7, 8}, float[2, 4] v = {8, 7, 6, 5, 4, 3, 2, 1},"
    " float[4] b = {1, 2, 3, 4}, float[4] c = {4, 3, 2, 1}"
)
FIRST, SECOND = "p = MatMul(x, w) q = Add(p, b)", "m = MatMul(x, v) n = Add(c, m)"
PAIR = f"{FIRST} y = Reshape(q, s) {SECOND} z = Reshape(n, s)"
FLAT = "r = Reshape(x, k) p = Gemm(r, w, b) y = Reshape(p, s) m = Gemm(r, v, c) z = Reshape(m, s)"
ALONE, TAKEN_IN = "x = Reshape(u, t) {} y = Reshape(q, s)", "r = Reshape(u, t) p = Gemm(r, w, b) y = Reshape(p, s)"


def graph(dims: str, shape: str, body: str = PAIR, more: str = "") -> str:
    """Return the text of a graph of two outputs, with a shape for what stands behind and one for flat rows."""
    size = len(shape.split(","))
    shapes = f"int64[{size}] s = {{{shape}}}, int64[2] k = {{-1, 2}}{more}"
    return f"g (float[{dims}] x) => (float[] y, float[] z) <{WEIGHTS}, {shapes}> {{ {body} }}"


def single(dims: str, first: str, body: str, behind: str = "-1, 3, 2, 2") -> str:
    """Return the text of a graph of one product, with the shapes of the Reshapes before and behind."""
    shapes = f"int64[{len(first.split(','))}] t = {{{first}}}, int64[{len(behind.split(','))}] s = {{{behind}}}"
    return f"g (float[{dims}] u) => (float[] y) <{WEIGHTS}, {shapes}> {{ {body} }}"


@pytest.mark.parametrize(
    ("dims", "shape", "after"),
    [
        ("5, 3, 2", "5, 3, 2, 2", "5, 3, 2, 2"),
        ("N, 3, 2", "-1, 3, 2, 2", "-1, 3, 2, 2"),
        ("N, 3, 2", "0, 3, 2, 2", "-1, 3, 2, 2"),
        ("N, T, 2", "-1, 4", "-1, 4"),
        ("N, T, 2", "1, -1, 2, 2", "1, -1, 2, 2"),
        ("5, 3, 2, 2", "0, 0, -1", "5, 3, -1"),
    ],
    ids=["known sizes", "an open batch", "a copied batch", "two open axes", "an open axis behind", "four axes"],
)
def test_two_products_share_a_reshape(check, dims: str, shape: str, after: str) -> None:
    sizes = {"runs": "1, -1" not in shape}  # which fits one sample alone
    assert check(FlattenProjections(), graph(dims, shape), graph(dims, after, FLAT), **sizes) == []


@pytest.mark.parametrize("size", [0, 1, 3])
@pytest.mark.parametrize("shape", ["-1, 3, 2, 2", "0, 3, 2, 2", "-1, 4"])
def test_outputs_at_several_sizes(rewritten: Rewritten, shape: str, size: int) -> None:
    """An empty batch, too."""
    fused, flat = (rewritten(p, graph("N, 3, 2", shape))[0] for p in (Fuse(), FlattenProjections()))
    original = ir.from_proto(parse(graph("N, 3, 2", shape)))
    feed = {"x": np.random.default_rng(size).standard_normal((size, 3, 2)).astype(np.float32)}
    wanted = Session(original, level="disable").run(feed)
    for model in (fused, flat):
        idle = model is fused and shape == "-1, 4"  # views of rows that are rows already: fuse drops them
        assert Counter(node.op_type for node in model.graph) == {"Reshape": 1 if idle else 3, "Gemm": 2}
        found = Session(model, level="disable").run(feed)
        for name, array in wanted.items():
            assert found[name].shape == array.shape
            np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("dims", "first", "flat"),
    [("N, 6", "-1, 3, 2", "-1, 2"), ("5, 6", "5, 3, 2", "15, 2")],
    ids=["an open batch", "known sizes, whose product is checked"],
)
def test_takes_in_the_reshape_before(check, dims: str, first: str, flat: str) -> None:
    check(FlattenProjections(), single(dims, first, ALONE.format(FIRST)), single(dims, flat, TAKEN_IN))


def test_a_sum_may_have_several_views(check) -> None:
    before = f"{FIRST} y = Reshape(q, s) o = Reshape(q, f) e = Relu(o) {SECOND} z = Reshape(n, s) t = Relu(x)"
    after = FLAT.replace("m = Gemm", "o = Reshape(p, f) e = Relu(o) m = Gemm") + " t = Relu(x)"
    more = ", int64[1] f = {-1}"
    check(FlattenProjections(), graph("N, 3, 2", "-1, 12", before, more), graph("N, 3, 2", "-1, 12", after, more))


def test_other_readers_of_the_value_stay(check) -> None:
    check(
        FlattenProjections(),
        graph("N, 3, 2", "-1, 12", f"x1 = Relu(x) {PAIR} e = Relu(x) o = MatMul(x, w)"),
        graph("N, 3, 2", "-1, 12", f"x1 = Relu(x) {FLAT} e = Relu(x) o = MatMul(x, w)"),
    )


def test_inside_a_body(check) -> None:
    """Rows of a value from outside are made before their first reader."""
    head = f"g (float[N, 3, 2] x, bool d) => (float[A, B] y) <{WEIGHTS}, int64[2] k={{-1, 2}}, int64[2] s={{-1, 12}}>"
    body = (
        "y = If(d) <then_branch = t () => (float[A, B] o) { i = Flatten(x) PRODUCTS j = Add(y0, z) o = Concat<axis=1>"
        "(i, j) }, else_branch = e () => (float[A, B] a) { l = Flatten(x) a = Concat<axis=1>(l, l, l) }>"
    )
    before, after = (f"{head} {{ {body} }}".replace("PRODUCTS", p.replace("y =", "y0 =")) for p in (PAIR, FLAT))
    check(FlattenProjections(), before, after)


@pytest.mark.parametrize(
    "text",
    [
        graph("15, 2", "5, 3, 2, 2"),
        graph("N, 3, 2", "-1, 12", f"{FIRST} y = Reshape(q, s) {SECOND} z = Relu(n)"),
        graph(
            "N, 3, 2", "-1, 12", f"{FIRST} y = Reshape(q, s) a = Relu(x) {SECOND.replace('x', 'a')} z = Reshape(n, s)"
        ),
        graph("N, 3, 2", "-1, 12", "p = MatMul(x, w) y = Reshape(p, s) m = MatMul(x, v) z = Reshape(m, s)"),
        single("N, 3, 2", "0", f"x = Relu(u) {FIRST} y = Reshape(q, s)"),
        single("N, 6", "-1, 3, 2", f"{ALONE.format(FIRST)} e = Relu(x)"),
    ],
    ids=["matrices", "one view", "two values", "no bias", "one product", "a Reshape others read"],
)
def test_stays_where_no_node_goes(check, text: str) -> None:
    assert check(FlattenProjections(), text) == []


READ = "others than Reshapes read the sum"
BIAS = "the bias is no constant vector"
SHAPE = "a shape behind is computed at run time or copies sizes"


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        (graph("N, T, 2", "0, 0, 2, 2"), [SHAPE, SHAPE]),
        (graph("N, 3, 2", "0, -1, 4"), [SHAPE, SHAPE]),
        (graph("N, 3, 2", "-1, 12", f"f = Shape(x) {PAIR}".replace("q, s", "q, f")), [SHAPE]),
        (graph("N, 3, 2", "-1, 12", f"{PAIR} e = Relu(q)"), [READ]),
        (graph("N, 3, 2", "-1, 12", f"{PAIR} e = Relu(p)"), ["the product has other readers"]),
        (graph("N, 3, 2", "-1, 12").replace("float[4] c = {4, 3, 2, 1}", "float[1] c = {4}"), [BIAS]),
        (graph("N, 3, 2", "-1, 12", f"d = Relu(x) {PAIR}").replace("Add(c, m)", "Add(m, m)"), []),
    ],
    ids=[
        "two copied sizes",
        "a copied size and a free one",
        "a shape at run time",
        "a sum that others read",
        "a product that others read",
        "a bias of one number",
        "a product added to itself",
    ],
)
def test_near_misses(check, text: str, reasons: list[str]) -> None:
    found = check(FlattenProjections(), text, runs=False)
    assert len(found) == len(reasons)
    assert all(reason in told for reason, told in zip(reasons, found, strict=True))


def test_exported_sums_and_products_stay(check) -> None:
    text = graph("N, 3, 2", "-1, 12").replace("float[] z)", "float[] z, float[] q, float[] m)")
    told = check(FlattenProjections(), text)
    assert sorted(reason.split(": ")[1] for reason in told) == [READ, "the product has other readers or is exported"]


def test_overridable_weights_stay(check) -> None:
    text = graph("N, 3, 2", "-1, 12").replace("float[N, 3, 2] x", "float[N, 3, 2] x, float[2, 4] w")
    assert check(FlattenProjections(), text) == []


def test_gemm_of_old_opsets(check) -> None:
    before, after = (graph("N, 3, 2", "-1, 12", body).replace("float[]", "float[A, B]") for body in (PAIR, FLAT))
    check(FlattenProjections(), before, opset=6, runs=False)
    check(FlattenProjections(), before, after, opset=7)


SQUARE = "float[8, 8] {0} = {{" + ", ".join(["0.5, -0.25, 1"] * 21) + ", 1}}"
HEADS = (
    f"g (float[N, 6, 8] x) => (float[N, 6, 8] y) <{', '.join(SQUARE.format(f'w{i}') for i in 'qkv')},"
    f" {', '.join(f'float[8] b{i} = {{1, 2, 3, 4, 5, 6, 7, 8}}' for i in 'qkv')},"
    " int64[4] s = {-1, 6, 2, 4}, int64[3] m = {-1, 6, 8}, float h = {0.5}> {"
    f" {' '.join(f'p{i} = MatMul(x, w{i}) a{i} = Add(p{i}, b{i}) r{i} = Reshape(a{i}, s)' for i in 'qkv')}"
    " q = Transpose<perm=[0, 2, 1, 3]>(rq) k = Transpose<perm=[0, 2, 3, 1]>(rk) v = Transpose<perm=[0, 2, 1, 3]>(rv)"
    " t = MatMul(q, k) c = Mul(t, h) e = Softmax<axis=-1>(c) o = MatMul(e, v)"
    " z = Transpose<perm=[0, 2, 1, 3]>(o) y = Reshape(z, m) }"
)


@pytest.mark.parametrize(("target", "kernel"), [("ort-cpu", "MultiHeadAttention"), ("ort-cuda", "Attention")])
def test_attention_is_still_found(rewritten: Rewritten, applied: Applied, target: str, kernel: str) -> None:
    """A model that was fused for a target without attention is fused for one that has it, from the flat rows."""
    model = ir.from_proto(parse(HEADS))
    feed = {"x": np.random.default_rng(0).standard_normal((3, 6, 8)).astype(np.float32)}
    wanted = Session(model, level="disable").run(feed)["y"]
    result, _ = applied(Fuse(), model, "generic")
    assert result.figures["flatten-projections"] == 1
    assert applied(Fuse(), model, "generic")[0].rewrites == 0
    applied(Fuse(), model, target)
    assert kernel in [node.op_type for node in model.graph]
    np.testing.assert_allclose(Session(model).run(feed)["y"], wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
