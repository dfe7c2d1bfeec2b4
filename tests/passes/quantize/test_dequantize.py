"""dequantize: what becomes float again, what range it keeps, and what stays integer."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime.quantization as quantization
import pytest
from conftest import parse
from onnxedge_passes.quantize import Int8
from onnxedge_passes.quantize.dequantize import Dequantize
from precision import apply, kinds, normal, outputs, sqnr

import onnxedge
from onnxedge.api import Array, Session, load, to_proto

INTEGERS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"}


def floats(text: str, **options: int) -> tuple[ir.Model, ir.Model, str]:
    """Return a model, its float form and the notes."""
    before, model = parse(text, **options), parse(text, **options)
    notes = apply(Dequantize(), model)[1]
    result, _ = apply(Dequantize(), model)
    assert result.rewrites == 0
    return before, model, notes


PAIR = """g (float[N,4] x) => (float[N,4] y)
  <float s = {0.1}, uint8 z = {100}>
  { a = Neg(x)  q = QuantizeLinear(a, s, z)  d = DequantizeLinear(q, s, z)  y = Abs(d) }"""


@pytest.mark.parametrize("opset", [10, 13, 17, 21])
def test_a_pair_becomes_the_range_of_its_integers(opset: int) -> None:
    before, model, _ = floats(PAIR, opset=opset)
    assert kinds(model) == ["Neg", "Clip", "Abs"]
    x = np.linspace(-40, 40, 400, dtype=np.float32).reshape(-1, 4)
    (first,), (other,) = outputs(before, {"x": x}), outputs(model, {"x": x})
    assert np.abs(first - other).max() <= 0.0501
    assert other.max() == pytest.approx(15.5)


def test_zero_keeps_a_relu_and_drop_nothing() -> None:
    text = PAIR.replace("{100}", "{0}")
    for saturation, found in (("zero", ["Neg", "Relu", "Abs"]), ("drop", ["Neg", "Abs"])):
        model = parse(text)
        apply(Dequantize(saturation=saturation), model)
        assert kinds(model) == found


def test_a_range_that_is_never_left_needs_no_clip() -> None:
    _, model, _ = floats("""g (float[N,4] x) => (float[N,4] y)
      <float s = {0.00392157}, uint8 z = {0}>
      { a = Sigmoid(x)  q = QuantizeLinear(a, s, z)  d = DequantizeLinear(q, s, z)  y = Abs(d) }""")
    assert kinds(model) == ["Sigmoid", "Abs"]


def test_integers_that_are_moved_are_moved_as_floats() -> None:
    before, model, _ = floats("""g (float[1,2,4,4] x) => (float[1,24] y, float[1,2,4,4] p)
      <float s = {0.05}, uint8 z = {128}, int64[2] shape = {1, -1}, int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 1},
       int64[4] b = {0, 0, 0, 0}, int64[4] e = {1, 2, 3, 4}, float[4] up = {1, 1, 2, 2}>
      { q = QuantizeLinear(x, s, z)  w = Pad(q, pads, z)  t = Transpose<perm=[0, 2, 3, 1]>(w)
        c = Concat<axis=3>(t, t)  f = Slice(c, b, e)  r = Reshape(f, shape)  y = DequantizeLinear(r, s, z)
        m = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(q)  o = Resize<mode="nearest">(m, , up)
        p = DequantizeLinear(o, s, z) }""")
    assert not INTEGERS & set(kinds(model))
    x = normal(1, 2, 4, 4)
    for first, other in zip(outputs(before, {"x": x}), outputs(model, {"x": x}), strict=True):
        assert first.shape == other.shape
        assert np.abs(first - other).max() <= 0.0251


def test_constants_become_what_their_integers_stand_for() -> None:
    before, model, _ = floats("""g (float[N,4] x) => (float[N,3] y)
      <int8[4,3] w = {1,-2,3, 4,5,-6, 7,8,9, -10,11,127}, float[3] s = {0.1, 0.2, 0.3}, int8[3] z = {0, 1, -1},
       int32[3] b = {100, -200, 300}, float[3] t = {0.01, 0.02, 0.03}>
      { d = DequantizeLinear<axis=1>(w, s, z)  c = DequantizeLinear<axis=0>(b, t)  y = Gemm(x, d, c) }""")
    assert kinds(model) == ["Gemm"]
    x = normal(5, 4)
    np.testing.assert_array_equal(*outputs(before, {"x": x}), *outputs(model, {"x": x}))


def test_blocks_of_four_bits() -> None:
    proto = to_proto(
        parse(
            """g (float[N,8] x) => (float[N,2] y)
      { d = DequantizeLinear<axis=0, block_size=4>(w, s, z)  y = MatMul(x, d) }""",
            opset=21,
            ir_version=10,
        )
    )
    rng = np.random.default_rng(0)
    four = (("w", rng.integers(0, 16, (8, 2))), ("z", rng.integers(0, 16, (2, 2))))
    arrays = {name: array.astype(ml_dtypes.uint4) for name, array in four} | {"s": np.abs(normal(2, 2))}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    model = ir.serde.deserialize_model(proto)
    apply(Dequantize(), model)
    assert kinds(model) == ["MatMul"]
    x = normal(5, 8)
    np.testing.assert_allclose(outputs(model, {"x": x})[0], outputs(proto, {"x": x})[0], rtol=1e-6)


def test_weights_that_training_rounded_keep_their_rounding() -> None:
    before, model, _ = floats("""g (float[N,4] x) => (float[N,2] y)
      <float[4,2] w = {0.11,-0.24, 3.0,0.09, 0.5,-0.55, 0.7,-9.0}, float[2] s = {0.02, 0.03}, int8[2] z = {0, 0}>
      { q = QuantizeLinear<axis=1>(w, s, z)  d = DequantizeLinear<axis=1>(q, s, z)  y = MatMul(x, d) }""")
    assert kinds(model) == ["MatMul"]
    x = normal(5, 4)
    np.testing.assert_array_equal(*outputs(before, {"x": x}), *outputs(model, {"x": x}))


PORTS = "g (float[N,4] x) => (float[N,4] y) <float s = {0.1}, uint8 z = {3}, uint8 lo = {9}, float t = {0.2}>"
FROM, TO = PORTS.replace("float[N,4] x", "uint8[N,4] x"), PORTS.replace("float[N,4] y", "uint8[N,4] y")
MANY = "<float[4] s = {1, 2, 3, 4}, uint8[4] z = {0, 0, 0, 0}>"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PORTS + "{ q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, t, z) }", "another scale"),
        (PORTS + "{ v = Abs(s)  q = QuantizeLinear(x, v, z)  y = DequantizeLinear(q, v, z) }", "computed at run time"),
        (PORTS + "{ q = QuantizeLinear(x, s, z)  m = Max(q, lo)  y = DequantizeLinear(m, s, z) }", "Max computes on"),
        (
            PORTS.split("<")[0] + MANY + "{ q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z) }",
            "several scales",
        ),
        (FROM + "{ y = DequantizeLinear(x, s, z) }", "from outside"),
        (TO + "{ y = QuantizeLinear(x, s, z) }", "gives its integers out"),
    ],
)
def test_near_misses_say_why(text: str, reason: str) -> None:
    before, model, notes = floats(text)
    assert kinds(model) == kinds(before)
    assert reason in notes


def test_an_initializer_that_is_an_input_may_be_overridden() -> None:
    proto = to_proto(parse(PAIR))
    proto.graph.input.append(onnx.helper.make_tensor_value_info("s", 1, []))
    model = ir.serde.deserialize_model(proto)
    assert "may be overridden" in apply(Dequantize(), model)[1]
    assert "QuantizeLinear" in kinds(model)


def test_a_weight_that_two_read_and_an_output_of_integers() -> None:
    before, model, _ = floats("""g (float[N,4] x) => (float[N,4] y, float[N,4] u, int8[4,4] w2)
      <int8[4,4] w = {1,2,3,4, 5,6,7,8, 9,8,7,6, 5,4,3,2}, float s = {0.1}>
      { d = DequantizeLinear(w, s)  e = DequantizeLinear(w, s)  y = MatMul(x, d)  u = MatMul(y, e)
        w2 = Identity(w) }""")
    assert sorted(kinds(model)) == ["Identity", "MatMul", "MatMul"]
    assert sum(value.const_value.nbytes == 64 for value in model.graph.initializers.values() if value.const_value) == 1
    x = normal(3, 4)
    for first, other in zip(outputs(before, {"x": x}), outputs(model, {"x": x}), strict=True):
        np.testing.assert_allclose(first, other, rtol=1e-6)


def test_subgraphs_too() -> None:
    text = """g (float[N,4] x, bool c) => (float[N,4] y)
      <float s = {0.1}, uint8 z = {128}>
      { q = QuantizeLinear(x, s, z)
        y = If(c) <then_branch = t () => (float[N,4] a) { a = DequantizeLinear(q, s, z) },
                   else_branch = e () => (float[N,4] b) { n = Neg(x)  p = QuantizeLinear(n, s, z)
                                                           b = DequantizeLinear(p, s, z) }> }"""
    before, model, _ = floats(text)
    assert not any(node.op_type in INTEGERS for node in model.graph.all_nodes())
    for c in (True, False):
        feed: dict[str, Array] = {"x": normal(3, 4), "c": np.array(c)}
        assert np.abs(outputs(before, feed)[0] - outputs(model, feed)[0]).max() <= 0.0501


DYNAMIC = """g (float[N,4] x) => (float[N,3] y)
  <uint8[4,3] w = {1,2,3, 4,5,6, 7,8,9, 10,11,255}, uint8[3] wz = {128, 127, 126}, float[3] ws = {0.1, 0.2, 0.3}>
  { q, s, z = DynamicQuantizeLinear(x)  i = MatMulInteger(q, w, z, wz)  f = Cast<to=1>(i)
    m = Mul(s, ws)  y = Mul(f, m) }"""


def test_products_that_round_their_data_at_run_time() -> None:
    before, model, _ = floats(DYNAMIC)
    assert kinds(model) == ["MatMul"]
    x = normal(64, 4)
    assert sqnr(outputs(before, {"x": x})[0], outputs(model, {"x": x})[0]) > 35


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("m = Mul(s, ws)", "m = Mul(ws, ws)", "scale of its data is not among"),
        ("m = Mul(s, ws)", "v = Abs(s)  k = Mul(v, ws)  m = Mul(s, k)", "times constants"),
        ("float[3] ws = {0.1, 0.2, 0.3}", "float[4,1] ws = {0.1, 0.2, 0.3, 0.4}", "another axis"),
        ("Cast<to=1>", "Cast<to=11>", "not made float at once"),
    ],
)
def test_other_scales_stay(old: str, new: str, reason: str) -> None:
    text = DYNAMIC.replace(old, new)
    if "to=11" in text:
        text = text.replace("y = Mul(f, m)", "d = Cast<to=1>(f)  y = Mul(d, m)")
    model = parse(text.replace("float[N,4] x", "float[4,4] x").replace("float[N,3] y", "float[4,3] y"))
    notes = apply(Dequantize(), model)[1]
    assert reason in notes
    assert "MatMulInteger" in kinds(model)


NETWORK = """g (float[N,3,8,8] x) => (float[N,5] y)
  { a = Conv<pads=[1, 1, 1, 1]>(x, w, b)  r = Relu(a)  d = Conv<pads=[1, 1, 1, 1]>(r, v)  e = Add(d, r)
    p = GlobalAveragePool(e)  f = Flatten(p)  y = Gemm<transB=1>(f, u, c) }"""
SHAPES = {"w": (16, 3, 3, 3), "b": (16,), "v": (16, 16, 3, 3), "u": (5, 16), "c": (5,)}


def network(opset: int) -> onnx.ModelProto:
    """Return a small residual network."""
    head = f'<ir_version: 8, opset_import: ["": {opset}]>'
    proto = onnx.parser.parse_model(f"{head} {NETWORK}")
    for seed, (name, shape) in enumerate(SHAPES.items()):
        array = normal(*shape, seed=seed) / np.float32(np.sqrt(np.prod(shape[1:])))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return onnx.shape_inference.infer_shapes(proto)


class Reader(quantization.CalibrationDataReader):
    """Give one batch."""

    def __init__(self, x: Array) -> None:
        self._feeds = iter([{"x": x}])

    def get_next(self) -> dict[str, Array] | None:  # type: ignore[override]
        return next(self._feeds, None)


def quantized(form: str, proto: onnx.ModelProto, x: Array, folder: Path) -> ir.Model:
    """Return a model as a quantizer writes it."""
    source, target = folder / "in.onnx", folder / "out.onnx"
    onnx.save(proto, source)
    if form == "int8":
        model = load(source)
        apply(Int8(min_sqnr=0), model, {"x": x})
        return model
    if form == "dynamic":
        quantization.quantize_dynamic(source, target)
    else:
        kind, opset = quantization.QuantFormat[form], proto.opset_import[0].version
        quantization.quantize_static(source, target, Reader(x), quant_format=kind, per_channel=opset >= 13)
    return load(target)


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("form", ["QOperator", "QDQ", "dynamic", "int8"])
@pytest.mark.filterwarnings("ignore")
def test_what_quantizers_write(form: str, opset: int, tmp_path: Path) -> None:
    proto, x = network(opset), normal(16, 3, 8, 8, seed=9)
    before = quantized(form, proto, x, tmp_path)
    model = before.clone()
    apply(Dequantize(), model)
    assert not any(node.op_type in INTEGERS or "QLinear" in node.op_type for node in model.graph)
    for shape in ((1, 3, 8, 8), (5, 3, 8, 8)):
        feed = {"x": normal(*shape, seed=4)}
        first, rounded, restored = (outputs(m, feed)[0] for m in (proto, before, model))
        assert sqnr(rounded, restored) > 22
        assert sqnr(first, restored) > sqnr(first, rounded) - 3


@pytest.mark.parametrize("target", ["generic", "tensorrt"])
def test_what_int8_writes_for_other_targets(target: str, fixtures: Path) -> None:
    model = load(fixtures / "digits_resnet.onnx")
    (port,), original = Session(model).inputs, model.clone()
    x, inner = normal(24, *(size for size in port.shape[1:] if isinstance(size, int))), port.name
    apply(Int8(min_sqnr=0), model, {inner: x[:16]}, target)
    before = model.clone()
    assert INTEGERS & set(kinds(before))
    apply(Dequantize(), model)
    assert not INTEGERS & set(kinds(model))
    first, rounded, restored = (outputs(m, {inner: x[16:24]})[0] for m in (original, before, model))
    assert sqnr(first, restored) > sqnr(first, rounded)


def test_what_int8_stores_becomes_float_again() -> None:
    proto, x = network(17), normal(16, 3, 8, 8, seed=9)
    model = ir.serde.deserialize_model(proto)
    apply(Int8(mode="storage", min_sqnr=0), model, {"x": x})
    before = model.clone()
    assert {"Cast", "Mul"} <= set(kinds(model))
    apply(Dequantize(), model)
    assert not {"Cast", "Mul"} & set(kinds(model))
    np.testing.assert_array_equal(*outputs(before, {"x": x}), *outputs(model, {"x": x}))


def test_weights_in_a_file_of_their_own(tmp_path: Path) -> None:
    proto = to_proto(parse("""g (float[N,64] x) => (float[N,64] y)
      <float s = {0.1}> { d = DequantizeLinear(w, s)  y = MatMul(x, d) }"""))  # fmt: skip
    codes = np.random.default_rng(0).integers(-128, 128, (64, 64)).astype(np.int8)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(codes, "w"))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    done = onnxedge.optimize(tmp_path / "m.onnx", "dequantize", output=tmp_path / "out.onnx", measure=False)
    assert done.report.passes[0].status == "applied"
    x = normal(3, 64)
    np.testing.assert_array_equal(*outputs(tmp_path / "m.onnx", {"x": x}), *outputs(tmp_path / "out.onnx", {"x": x}))


def test_weights_stay_small_where_asked() -> None:
    model = parse("""g (float[N,4] x) => (float[N,4] y) <float s = {0.1}, uint8 z = {128}, int8[4] w = {1, 2, 3, 4}>
      { q = QuantizeLinear(x, s, z)  a = DequantizeLinear(q, s, z)  b = DequantizeLinear(w, s)  y = Mul(a, b) }""")
    apply(Dequantize(weights=False), model)
    assert kinds(model) == ["DequantizeLinear", "Clip", "Mul"] or kinds(model) == ["Clip", "DequantizeLinear", "Mul"]
