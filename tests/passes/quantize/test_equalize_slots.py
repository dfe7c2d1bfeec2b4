"""Slots: factors per channel that change no answer, found in every form of graph and nowhere else."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnxedge_passes.quantize.equalize.plan import Plan
from onnxedge_passes.quantize.equalize.rescale import on_fork, scaled_constants, write_constants
from onnxedge_passes.quantize.equalize.slots import Slots
from onnxedge_passes.quantize.equalize.walk import find_slots
from precision import outputs

from onnxedge.api import Array, forked
from onnxedge.verify import infer_shapes

CONV = "c = Conv <pads=[1,1,1,1]> (x, w0, w1)"
IMAGE = "float[N,6,8,8] x, float[8,6,3,3] w0, float[8] w1"
LAST = "float[4,8,1,1] w8"
ROWS = "float[N,5,6] x, float[6,8] w0, float[8] w1"


def parsed(text: str, opset: int = 17) -> ir.Model:
    """Return a model; inputs named ``w`` become random positive and negative weights."""
    header = f'<ir_version: 8, opset_import: ["": {opset}, "com.microsoft": 1]>'
    model = ir.serde.deserialize_model(onnx.parser.parse_model(f"{header} {text}"))
    rng = np.random.default_rng(0)
    for value in [v for v in model.graph.inputs if (v.name or "").startswith("w")]:
        assert value.shape is not None
        array = rng.normal(size=[int(d) for d in value.shape]).astype(np.float32)  # type: ignore[arg-type]
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    infer_shapes(model)
    return model


def feed_of(model: ir.Model, batch: int = 3) -> dict[str, Array]:
    shape = [d if isinstance(d, int) else batch for d in model.graph.inputs[0].shape or ()]
    return {"x": np.random.default_rng(1).normal(size=shape).astype(np.float32)}


def scaled_at_random(model: ir.Model, slots: Slots) -> tuple[ir.Model, int]:
    """Return a fork whose free slots are scaled by powers of two, which rounds nothing, and how many there are."""
    roots = {int(r) for array in slots.of.values() for r in slots.roots(array).reshape(-1)} - {0}
    factors = np.ones(1 + max(roots, default=0))
    rng = np.random.default_rng(2)
    for root in sorted(roots):
        factors[root] = 2.0 ** rng.integers(1, 5)
    full = np.ones(10**4)
    full[: factors.size] = factors
    constants = scaled_constants(Plan(slots, full, {}, {}, frozenset()))
    assert constants is not None
    other, _ = forked(model)
    write_constants(on_fork(constants, model, other))
    return other, len(roots)


def check(text: str, free: int, opset: int = 17) -> None:
    """Check how many factors are found, and that they change no bit of the answers."""
    model = parsed(text, opset)
    other, count = scaled_at_random(model, find_slots(model))
    assert count == free
    for batch in (1, 3):
        feed = feed_of(model, batch)
        for first, found in zip(outputs(model, feed), outputs(other, feed), strict=True):
            np.testing.assert_array_equal(first, found)


@pytest.mark.parametrize(
    ("between", "free"),
    [
        ("r = Relu(c)", 8),
        ("r = LeakyRelu <alpha=0.2> (c)", 8),
        ("r = PRelu(c, w5)", 8),
        ("r = Identity(c)", 8),
        ("r = Abs(c)", 8),
        ("r = Clip(c, zero)", 8),
        ("r = MaxPool <kernel_shape=[2,2]> (c)", 8),
        ("r = AveragePool <kernel_shape=[2,2], pads=[1,1,1,1], count_include_pad=1> (c)", 8),
        ("r = GlobalAveragePool(c)", 8),
        ("r = GlobalMaxPool(c)", 8),
        ("r = Pad(c, pads)", 8),
        ('r = Pad <mode = "reflect"> (c, pads)', 8),
        ("r = Resize(c, , scales)", 8),
        ("r = Transpose <perm=[0,1,3,2]> (c)", 8),
        ("t = Transpose <perm=[0,2,3,1]> (c) u = Relu(t) r = Transpose <perm=[0,3,1,2]> (u)", 8),
        ("r = Slice(c, start, stop, axis)", 8),
        ("p, q = Split <axis=1> (c) r = Concat <axis=1> (q, p)", 8),
        ("p = Relu(c) r = Concat <axis=2> (p, c)", 8),
        ("p = Relu(c) r = Add(p, c)", 8),
        ("p = Relu(c) r = Sub(c, p)", 8),
        ("p = Mul(c, half) r = Relu(p)", 8),
        ("p = Mul(c, w6) r = Relu(p)", 16),
        ("p = Add(c, w6) r = Relu(p)", 8),
        ("p = Div(c, half) r = Relu(p)", 8),
        ("g = GlobalAveragePool(x) h = Conv(g, w4, w1b) s = Sigmoid(h) r = Mul(c, s)", 8),
        ("m = ReduceMean <axes=[2,3]> (c) e = Conv(m, w3) s = Sigmoid(e) r = Mul(c, s)", 8),
        ("d = Conv <group=8, pads=[1,1,1,1]> (c, w2) r = Relu(d)", 16),
        ("d = Conv <group=2> (c, w7) r = Relu(d)", 16),
        ("d = ConvTranspose (c, w3) r = Relu(d)", 16),
        ("d = ConvTranspose <group=2> (c, w7t) r = Relu(d)", 16),
        ("d = InstanceNormalization (c, w1c, w1b) r = Relu(d)", 8),
    ],
)
def test_factors_run_between_convolutions(between: str, free: int) -> None:
    weights = """float[8,1,1] w5, float[8,1,1] w6, float[8,6,1,1] w4, float[8] w1b, float[8] w1c, float[8,1,3,3] w2,
    float[8,4,1,1] w7, float[8,4,1,1] w7t, float[8,8,1,1] w3"""
    constants = """<float zero = {0}, float half = {0.5}, int64[8] pads = {0,0,1,1,0,0,1,1},
    float[4] scales = {1,1,2,2}, int64[1] start = {1}, int64[1] stop = {5}, int64[1] axis = {2}>"""
    graph = f"g ({IMAGE}, {LAST}, {weights}) => (y) {constants} {{ {CONV} {between} y = Conv(r, w8) }}"
    check(graph.replace("=> (y)", "=> (float[N,4,H,W] y)"), free)


@pytest.mark.parametrize(
    "between",
    [
        "r = Sigmoid(c)",
        "r = HardSwish(c)",
        "r = Clip(c, one)",
        "r = Clip(c, minus, one)",
        "r = Add(c, one)",
        "r = Pad(c, pads, one)",
        "r = Slice(c, start, stop, axis) z = Softmax <axis=1> (r)",
        "p = Mul(c, c) r = Relu(p)",
        "m = ReduceMean <axes=[1]> (c) r = Sub(c, m)",
        "p = Relu(c) q = Sigmoid(p) r = Add(p, q)",
        "f = Reshape(c, flat) s = Transpose <perm=[1,0]> (f) r = Reshape(s, back)",
        "r = DepthToSpace <blocksize=1> (c)",
        "r = Conv(c, computed)",
    ],
)
def test_what_is_not_homogeneous_ends_them(between: str) -> None:
    constants = """<float one = {1}, float minus = {-1}, int64[8] pads = {0,0,1,1,0,0,1,1}, int64[1] start = {1},
    int64[1] stop = {5}, int64[1] axis = {2}, int64[2] flat = {-1, 8}, int64[4] back = {-1, 8, 8, 8}>"""
    made = "computed = Sin(w9)" if "computed" in between else ""
    weights = f"{IMAGE}, {LAST}, float[8,8,1,1] w9"
    body = f"{made} {CONV} {between} y = Conv(r, w8)"
    check(f"g ({weights}) => (float[N,4,H,W] y) {constants} {{ {body} }}", 0)


def test_an_output_in_between_stays() -> None:
    check(f"g ({IMAGE}, {LAST}) => (float[N,4,8,8] y, float[N,8,8,8] r) {{ {CONV} r = Relu(c) y = Conv(r, w8) }}", 0)


def test_a_weight_of_two_nodes_stays() -> None:
    body = f"{CONV} r = Relu(c) p = Conv(r, w8) q = Conv(r, w8) y = Add(p, q)"
    check(f"g ({IMAGE}, {LAST}) => (float[N,4,8,8] y) {{ {body} }}", 0)


def test_a_weight_that_may_be_overridden_stays() -> None:
    model = parsed(f"g ({IMAGE}, {LAST}) => (float[N,4,8,8] y) {{ {CONV} r = Relu(c) y = Conv(r, w8) }}")
    assert scaled_at_random(model, find_slots(model))[1] == 8
    model.graph.inputs.append(model.graph.initializers["w8"])
    assert scaled_at_random(model, find_slots(model))[1] == 0


def test_a_value_that_a_branch_reads_stays() -> None:
    text = f"""g ({IMAGE}, {LAST}) => (float[N,4,8,8] y, float[N,8,8,8] z) <bool yes = {{1}}>
    {{ {CONV} r = Relu(c) y = Conv(r, w8)
    z = If (yes) <then_branch = a () => (float[N,8,8,8] p) {{ p = Identity(r) }},
    else_branch = b () => (float[N,8,8,8] q) {{ q = Neg(r) }}> }}"""
    check(text, 0)


@pytest.mark.parametrize(
    ("body", "free"),
    [
        ("m = MatMul(x, w0) c = Add(m, w1) r = Relu(c) y = MatMul(r, w2)", 8),
        ("m = MatMul(x, w0) c = Add(w1, m) y = MatMul(c, w2)", 8),
        ("m = MatMul(x, w0) c = Gelu(m) y = MatMul(c, w2)", 0),
        ("v = MatMul(x, w0) s = MatMul(p, v) y = MatMul(s, w2)", 8),
        ("v = MatMul(x, w0) k = Transpose <perm=[0,2,1]> (v) s = MatMul(v, k) t = MatMul(s, v) y = MatMul(t, w2)", 0),
        (
            "v = MatMul(x, w0) h = Reshape(v, heads) t = Transpose <perm=[0,2,1,3]> (h) q = MatMul(p4, t) "
            "u = Transpose <perm=[0,2,1,3]> (q) f = Reshape(u, joint) y = MatMul(f, w2)",
            8,
        ),
        ("u = MatMul(x, w0) g = MatMul(x, w3) s = Sigmoid(g) h = Mul(g, s) m = Mul(h, u) y = MatMul(m, w2)", 8),
        ("n = LayerNormalization <axis=-1> (x, w4, w5) y = MatMul(n, w6)", 6),
        ("n = LayerNormalization <axis=1> (x, w7) y = MatMul(n, w6)", 0),
        ("n = LayerNormalization <axis=-1> (x, w4) a = MatMul(n, w6) b = MatMul(n, w8) y = Add(a, b)", 6),
        ("n = LayerNormalization <axis=-1> (x, w4) a = MatMul(n, w6) y = Concat <axis=-1> (a, n)", 0),
        ("m = ReduceMean <axes=[-1]> (x) d = Sub(x, m) s = Mul(d, w4) n = Add(s, w5) y = MatMul(n, w6)", 6),
        ("f = Reshape(x, rows) g = Gemm <transB=1> (f, w9, w1) r = Relu(g) h = Gemm(r, w2) y = Reshape(h, out)", 8),
        (
            "f = Reshape(x, rows) g = Gemm <alpha=0.5, beta=2.0> (f, w0, w1) r = Relu(g) h = Gemm(r, w2) "
            "y = Reshape(h, out)",
            8,
        ),
    ],
)
def test_products(body: str, free: int) -> None:
    weights = """float[6,8] w0, float[8] w1, float[8,3] w2, float[6,8] w3, float[6] w4, float[6] w5, float[6,3] w6,
    float[5,6] w7, float[6,3] w8, float[8,6] w9"""
    constants = """<int64[4] heads = {0, 0, 2, 4}, int64[3] joint = {0, 0, 8}, int64[2] rows = {-1, 6},
    int64[3] out = {-1, 5, 3}, int64[1] one = {1}>"""
    scores = "pp = MatMul(x, wp) p = Softmax(pp) p4 = Unsqueeze(p, one)"
    inputs = f"float[N,5,6] x, {weights}, float[6,5] wp"
    check(f"g ({inputs}) => (float[N,5,D] y) {constants} {{ {scores} {body} }}", free, 20 if "Gelu" in body else 17)


def test_channels_become_columns() -> None:
    text = f"""g ({IMAGE}, float[128,5] w8) => (float[N,5] y)
    {{ {CONV} r = Relu(c) p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (r) f = Flatten(p) y = Gemm(f, w8) }}"""
    check(text, 8)


def test_heads_of_the_fused_operator() -> None:
    text = """g (float[N,5,8] x, float[8,8] w0, float[8,8] w1, float[8,8] w2, float[8,3] w3) => (float[N,5,3] y) {
    q = MatMul(x, w0) k = MatMul(x, w1) v = MatMul(x, w2) a = com.microsoft.MultiHeadAttention <num_heads=2> (q, k, v)
    y = MatMul(a, w3) }"""
    model = parsed(text)
    value = next(n for n in model.graph if n.op_type == "MultiHeadAttention").outputs[0]
    value.shape, value.type = ir.Shape(["N", 5, 8]), ir.TensorType(ir.DataType.FLOAT)
    other, count = scaled_at_random(model, find_slots(model))
    assert count == 8
    for first, found in zip(outputs(model, feed_of(model)), outputs(other, feed_of(model)), strict=True):
        np.testing.assert_array_equal(first, found)
