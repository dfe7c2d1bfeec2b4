"""Block-wise reconstruction: gradients against differences, blocks, what is left alone, never worse."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper, parser
from onnxedge_passes.prune import reconstruction
from onnxedge_passes.prune.blocks import find_blocks
from onnxedge_passes.prune.reconstruction import reconstruct
from onnxedge_passes.prune.views import View, fitting_views, viewed
from test_prune import context_of, prune
from topologies import RESIDUAL, RESIDUAL_WEIGHTS, build, images

from onnxedge.api import Array, Backward, NoGradient, Session, constant, set_constant, to_proto

HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'
IMAGE = {"x": (2, 4, 7, 8)}
MATRIX = {"x": (2, 7)}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "STEPS", 150)


def convolution(attributes: str, weight: str = "w") -> str:
    return f"g (float[N,C,H,W] x, float[O,I,K,L] w) => (float[a,b,c,d] y) {{ y = Conv<{attributes}>(x, {weight}) }}"


def plain(body: str, more: str = "") -> str:
    return f"g (float[N,C] x) => (float[a,b] y) {more} {{ {body} }}"


CASES: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "strided": (convolution("pads=[1,1,1,1],strides=[2,2]"), {**IMAGE, "w": (6, 4, 3, 3)}),
    "grouped, dilated": (convolution("pads=[0,1,1,0],group=2,dilations=[2,1]"), {**IMAGE, "w": (6, 2, 3, 3)}),
    "depthwise": (convolution("group=4"), {**IMAGE, "w": (4, 1, 3, 3)}),
    "1x1, strided": (convolution("strides=[2,2]"), {**IMAGE, "w": (5, 4, 1, 1)}),
    "Gemm": (
        "g (float[N,C] x, float[O,C] w, float[O] c) => (float[a,b] y) { y = Gemm<transB=1>(x, w, c) }",
        {**MATRIX, "w": (3, 7), "c": (3,)},
    ),
    "MatMul": (
        "g (float[N,T,C] x, float[C,O] w) => (float[a,b,c] y) { y = MatMul(x, w) }",
        {"x": (2, 4, 7), "w": (7, 3)},
    ),
    "attention": (
        "g (float[N,T,C] x, float[M,C,T] w) => (float[a,b,c] y) { z = MatMul(x, w) s = Softmax(z) y = MatMul(s, w) }",
        {"x": (2, 4, 4), "w": (1, 4, 4)},
    ),
    "arithmetic": (
        "g (float[N,C] x, float[N,O] c, float[C] p) => (float[a,b] y)"
        "{ a = Add(x, c) b = Mul(a, c) d = Sub(x, p) e = Div(b, p) f = Add(d, e) y = Div(f, p) }",
        {**MATRIX, "c": (2, 1), "p": (7,)},
    ),
    "Clip": (plain("y = Clip(x, l, h)", "<float l = {-0.5}, float h = {0.5}>"), MATRIX),
    "Sqrt, Pow, Reciprocal": (
        plain(
            "z = Mul(x, x) a = Add(z, one) s = Sqrt(a) p = Pow(s, e) r = Reciprocal(s) y = Sub(p, r)",
            "<float one = {1}, float e = {2.5}>",
        ),
        MATRIX,
    ),
    "pools": (
        "g (float[N,C,H,W] x) => (float[a,b,c,d] y) { z = AveragePool<kernel_shape=[3,3],strides=[2,2],"
        "pads=[1,1,1,1],count_include_pad=1>(x) q = Mul(z, z) y = GlobalAveragePool(q) }",
        {"x": (2, 3, 5, 6)},
    ),
    "ReduceMean, Reshape": (
        "g (float[N,C,H,W] x) => (float[a,b] y) <int64[2] s = {0,-1}>"
        "{ z = ReduceMean<axes=[2,3],keepdims=0>(x) q = Mul(z, z) y = Reshape(q, s) }",
        {"x": (2, 3, 4, 4)},
    ),
    "Split, Concat, Transpose": (
        plain(
            "a, b = Split<axis=1>(x, s) c = Mul(b, b) t = Transpose(c) u = Transpose(t) y = Concat<axis=1>(a, u, b)",
            "<int64[2] s = {1,2}>",
        ),
        {"x": (2, 3)},
    ),
    "Slice, Pad": (
        plain(
            "a = Slice(x, s, e, axes) b = Pad(a, p) y = Mul(b, b)",
            "<int64[1] s = {-3}, int64[1] e = {-1}, int64[1] axes = {1}, int64[4] p = {0,1,0,2}>",
        ),
        {"x": (2, 5)},
    ),
    "LayerNormalization": (
        "g (float[N,T,C] x) => (float[a,b,c] y) <float[7] p = {1,2,3,-1,-2,0.5,1}>"
        "{ z = LayerNormalization<axis=-1>(x, p) y = Mul(z, z) }",
        {"x": (2, 3, 7)},
    ),
    "Where, Expand": (
        plain(
            "k = Greater(x, zero) a = Mul(x, x) b = Where(k, a, x) u = Unsqueeze(b, zero_axis) y3 = Expand(u, s)"
            " q = Mul(y3, y3) y = ReduceSum<keepdims=0>(q, zero_axis)",
            "<float zero = {0}, int64[1] zero_axis = {0}, int64[3] s = {3,2,7}>",
        ),
        MATRIX,
    ),
    "Slice with steps": (
        plain(
            "a = Slice(x, s, e, axes, steps) y = Mul(a, a)",
            "<int64[2] s = {0,1}, int64[2] e = {9,-1}, int64[2] axes = {0,-1}, int64[2] steps = {2,3}>",
        ),
        {"x": (5, 8)},
    ),
    **{
        name: (plain(f"y = {name}(x)"), MATRIX)
        for name in ("Relu", "Sigmoid", "Tanh", "Erf", "HardSigmoid", "HardSwish", "LeakyRelu", "Exp", "Neg")
    },
    "MaxPool": (
        "g (float[N,C,H,W] x) => (float[a,b,c,d] y) { z = MaxPool<kernel_shape=[3,2],strides=[2,1],pads=[1,0,1,1]>(x)"
        " q = Mul(z, z) y = MaxPool<kernel_shape=[2,2],dilations=[1,2]>(q) }",
        {"x": (2, 3, 7, 6)},
    ),
    "MaxPool, rounded up": (
        "g (float[N,C,H,W] x) => (float[a,b,c,d] y) { y = MaxPool<kernel_shape=[2,2],strides=[2,3],ceil_mode=1>(x) }",
        {"x": (2, 3, 5, 6)},
    ),
    "ConvTranspose": (
        "g (float[N,C,H,W] x, float[C,O,K,L] w, float[O] c) => (float[a,b,c,d] y)"
        "{ y = ConvTranspose<strides=[2,1],pads=[1,0,0,1],output_padding=[1,0]>(x, w, c) }",
        {"x": (2, 4, 3, 5), "w": (4, 3, 3, 2), "c": (3,)},
    ),
    "ConvTranspose, grouped": (
        "g (float[N,C,H,W] x, float[C,O,K,L] w) => (float[a,b,c,d] y)"
        "{ y = ConvTranspose<group=2,dilations=[1,2]>(x, w) }",
        {"x": (2, 4, 3, 5), "w": (4, 3, 3, 2)},
    ),
    "Gather": (
        plain("a = Gather<axis=1>(x, k) y = Mul(a, a)", "<int64[4] k = {0,-1,2,0}>"),
        MATRIX,
    ),
    "Gather of one": (
        "g (float[N,T,C] x) => (float[a,b] y) <int64 k = {1}> { a = Gather<axis=1>(x, k) y = Mul(a, a) }",
        {"x": (2, 3, 4)},
    ),
    "Log": (plain("z = Mul(x, x) a = Add(z, one) y = Log(a)", "<float one = {1}>"), MATRIX),
    "Cast": (
        plain("k = Greater(x, zero) m = Cast<to=1>(k) s = Cast<to=1>(x) y = Mul(s, m)", "<float zero = {0}>"),
        MATRIX,
    ),
}


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gradient_of_gelu(approximate: str) -> None:
    text = plain(f'y = Gelu<approximate="{approximate}">(x)')
    agrees(parser.parse_model(HEADER.replace("17", "20") + text), MATRIX)


def run(model: onnx.ModelProto, feed: dict[str, Array], outputs: list[str]) -> list[Array]:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(outputs))
    found = Session(copy).run(feed)
    return [found[name] for name in outputs]


@pytest.mark.parametrize("name", CASES)
def test_gradient_is_the_slope(name: str) -> None:
    """The gradient along a random direction equals the difference of the outputs a little to both sides."""
    text, shapes = CASES[name]
    agrees(parser.parse_model(HEADER + text), shapes)


def agrees(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> None:
    rng = np.random.default_rng(0)
    feed = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
    if "p" in feed:
        feed["p"] = np.abs(feed["p"]) + 0.5
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    names = [value for node in model.graph.node for value in node.output]
    values = dict(zip(names, run(model, feed, names), strict=True)) | feed | known
    dtypes = {key: array.dtype for key, array in values.items()}
    back = Backward(list(model.graph.node), {key: array.shape for key, array in values.items()}, known, dtypes)
    seed = rng.standard_normal(values["y"].shape).astype(np.float32)
    gradients = back.differentiate({"y": "seed"}, list(feed))
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    whole.graph.node.extend(back.nodes)
    whole.graph.initializer.extend(back.constants)
    whole.graph.input.append(helper.make_tensor_value_info("seed", onnx.TensorProto.FLOAT, seed.shape))
    found = run(whole, {**feed, "seed": seed}, [gradients[key] for key in feed])
    for key, gradient in zip(feed, found, strict=True):
        assert gradient.shape == feed[key].shape
        direction = rng.standard_normal(feed[key].shape).astype(np.float32)
        up, down = (run(model, {**feed, key: feed[key] + s * direction}, ["y"])[0] for s in (5e-3, -5e-3))
        slope = float(((up.astype(np.float64) - down) * seed).sum()) / 1e-2
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=2e-2, abs=2e-2)


@pytest.mark.parametrize(
    "body",
    [
        "y = Ceil(x)",
        "y = Softplus(x)",
        "e = Abs(x) y = Floor(e)",
        "b, a = TopK(x, k) c = Cast<to=1>(a) y = Mul(b, c)",
        "y = Gather(x, i)",
        'y = Pad<mode="edge">(x, i)',
        'y = ConvTranspose<auto_pad="SAME_UPPER">(x, x)',
    ],
)
def test_what_has_no_rule_is_refused(body: str) -> None:
    model = parser.parse_model(HEADER + plain(body, "<int64[1] k = {2}>"))
    shapes = {value: (4, 4) for node in model.graph.node for value in (*node.input, *node.output)}
    with pytest.raises(NoGradient):
        Backward(list(model.graph.node), shapes, {}).differentiate({"y": "seed"}, ["x"])


def damaged(scale: float = 0.3) -> tuple[ir.Model, ir.Model]:
    """Return a model, and one with noise on its weights."""
    teacher, student = (build(RESIDUAL, RESIDUAL_WEIGHTS) for _ in range(2))
    rng = np.random.default_rng(4)
    for node in student.graph:
        weight = constant(node.inputs[1]) if node.op_type == "Conv" else None
        if weight is not None:
            set_constant(node, 1, weight * (1 + scale * rng.standard_normal(weight.shape)).astype(np.float32))
    return student, teacher


def error(student: ir.Model, teacher: ir.Model, feed: dict[str, Array]) -> float:
    found, wanted = (next(iter(Session(model).run(feed).values())) for model in (student, teacher))
    return float(np.square(found - wanted).mean())


def feeds(count: int, first: int = 0) -> list[dict[str, Array]]:
    return [{"x": images((3, 8, 8), 8, first + k)} for k in range(count)]


def test_student_comes_nearer_and_the_same_each_time() -> None:
    unseen = {"x": images((3, 8, 8), 32, 99)}
    made = []
    for _ in range(2):
        student, teacher = damaged()
        before = error(student, teacher, unseen)
        context = context_of(student, images((3, 8, 8)))
        assert reconstruct(student, teacher, feeds(8), feeds(2, 50), context) > 0
        assert error(student, teacher, unseen) < 0.5 * before
        made.append(to_proto(student).SerializeToString())
    assert made[0] == made[1]


def test_all_is_taken_back_where_the_outputs_became_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = iter((1.0, 1.1))
    monkeypatch.setattr(reconstruction.Reconstruction, "_error", lambda self: next(errors))
    student, teacher = damaged()
    unseen = {"x": images((3, 8, 8), 8, 99)}
    before = Session(student).run(unseen)["y"]
    context = context_of(student, images((3, 8, 8)))
    assert reconstruct(student, teacher, feeds(4), feeds(2, 50), context) == 0
    np.testing.assert_array_equal(Session(student).run(unseen)["y"], before)
    assert any("came no nearer" in note.reason for note in context.notes)


def test_perfect_student_is_left_alone() -> None:
    student, teacher = damaged(0.0)
    context = context_of(student, images((3, 8, 8)))
    before = to_proto(student).SerializeToString()
    assert reconstruct(student, teacher, feeds(4), feeds(2, 50), context) == 0
    assert to_proto(student).SerializeToString() == before


def test_block_without_gradient_is_told_and_the_others_are_trained() -> None:
    text = """g (float[N,3,8,8] x) => (float[N,4,8,8] y) {
      a = Conv<pads=[1,1,1,1]>(x, w1)
      b = Softplus(a)
      c = Conv<pads=[1,1,1,1]>(b, w2)
      d = Conv<pads=[1,1,1,1]>(c, w3)
      e = Ceil(d)
      y = Add(c, e)
    }"""
    shapes = {"w1": (4, 3, 3, 3), "w2": (4, 4, 3, 3), "w3": (4, 4, 3, 3)}
    student, teacher = (build(text, shapes) for _ in range(2))
    for node in student.graph:
        weight = constant(node.inputs[1]) if node.op_type == "Conv" else None
        if weight is not None:
            set_constant(node, 1, weight * 1.2)
    context = context_of(student, images((3, 8, 8)))
    assert reconstruct(student, teacher, feeds(4), feeds(2, 50), context) > 0
    assert [note.reason for note in context.notes] == ["its block is not reconstructed: no gradient for Ceil"]


def test_output_of_integers_does_not_stop_the_others() -> None:
    text = """g (float[N,3,8,8] x) => (float[N,4] y, int64[N] class) {
      a = Conv<pads=[1,1,1,1]>(x, w)
      b = Relu(a)
      y = ReduceMean<axes=[2,3],keepdims=0>(b)
      class = ArgMax<axis=1,keepdims=0>(y)
    }"""
    student, teacher = (build(text, {"w": (4, 3, 3, 3)}) for _ in range(2))
    conv = next(node for node in student.graph if node.op_type == "Conv")
    weight = constant(conv.inputs[1])
    assert weight is not None
    set_constant(conv, 1, weight * 1.3)
    assert reconstruct(student, teacher, feeds(4), feeds(2, 50), context_of(student, images((3, 8, 8)))) > 0


def test_old_opset_and_no_held_out_samples_are_told() -> None:
    student, teacher = damaged()
    context = context_of(student, images((3, 8, 8)))
    assert reconstruct(student, teacher, feeds(2), [], context) == 0
    student.graph.opset_imports[""] = 12
    assert reconstruct(student, teacher, feeds(2), feeds(1), context) == 0
    assert ["held-out" in note.reason or "opset 12" in note.reason for note in context.notes] == [True, True]


def test_blocks_end_where_one_value_goes_on() -> None:
    model = build(RESIDUAL, RESIDUAL_WEIGHTS)
    values = {value for node in model.graph for value in node.outputs}
    blocks = find_blocks(model, values)
    nodes = [node for block in blocks for node in block.nodes]
    assert nodes == list(model.graph)
    assert all(len(block.outputs) == 1 for block in blocks)
    assert len(find_blocks(model, set(model.graph.outputs))) == 1


def test_prune_with_blocks_beats_prune_without() -> None:
    unseen = {"x": images((3, 8, 8), 64, 99)}
    errors = {}
    for way in ("least-squares", "block"):
        model, teacher = (build(RESIDUAL, RESIDUAL_WEIGHTS) for _ in range(2))
        result, _ = prune(model, images((3, 8, 8), 128), macs=0.5, multiple=1, repair=way)
        assert result.rewrites
        errors[way] = error(model, teacher, unseen)
    assert errors["block"] < errors["least-squares"]


def test_views_that_change_the_answers_are_not_used() -> None:
    """A sum over the left half minus the right half flips its class with the image; it minds no flip upside down."""
    sides = np.ones((2, 1, 16, 16), np.float32)
    sides[0, :, :, 8:] = sides[1, :, :, :8] = -1
    text = (
        "g (float[N,1,16,16] x) => (float[N,2] y) <float[2,1,16,16] w, int64[2] s = {0,-1}>"
        "{ a = Conv(x, w) y = Reshape(a, s) }"
    )
    model = build(text, {"w": (2, 1, 16, 16)})
    set_constant(next(node for node in model.graph if node.op_type == "Conv"), 1, sides)
    found = fitting_views(model, [{"x": images((1, 16, 16), 64)}], threads=1)
    assert View("x", 2) in found
    assert View("x", 3) not in found
    feed = {"x": images((1, 16, 16), 4)}
    seen = viewed(feed, [View("x", 2, 2)], np.random.default_rng(0))
    assert seen["x"].shape == feed["x"].shape
