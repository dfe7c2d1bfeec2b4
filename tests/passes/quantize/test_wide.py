"""int8 with activations in 16 bits on targets that have kernels for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxedge_passes.quantize import Int8
from onnxedge_passes.quantize.rounding import activation_grid, bounded_grid
from onnxedge_passes.quantize.wide import fixed_grid
from precision import normal, outputs
from precision import sqnr as between

from onnxedge.api import Array, Context, Quantization, Result, Session, UserError, refresh_scopes, to_proto
from onnxedge.data import from_arrays
from onnxedge.target import Target, load_target
from onnxedge.verify import infer_shapes

ACTIVATION = {"uint16": "uint8", "int16": "int8"}


def target(
    wide: tuple[str, ...] = ("Conv", "Add", "MatMul", "Softmax"), dtype: str = "uint16", more: str = ""
) -> Target:
    """Return an NPU that takes some operators in 16 bits."""
    return load_target(
        "acme",
        f"""
        name = "acme"
        runtime = "acme"
        [quantization]
        activation = "{ACTIVATION[dtype]}"
        activation_symmetric = {str(dtype == "int16").lower()}
        wide_activation = "{dtype}"
        wide = {list(wide)}
        integer = ["Conv", "Add", "MatMul", "Softmax"]
        pass_through = ["Reshape", "MaxPool"]
        quantize_output = ["Conv", "Add", "MatMul", "Softmax"]
        float_before_output = ["Relu", "Clip"]
        absorbing = ["Conv"]
        fixed = {{ Softmax = [0.00390625, {0 if dtype == "uint16" else -128}] }}
        {more}
        per_channel = {{ Conv = 0, MatMul = 1 }}
        """,
    )


def net(opset: int = 21, width: int = 16) -> ir.Model:
    """Return two convolutions beside a shortcut, the first of which has one output channel far above the others."""
    head = f'<ir_version: 10, opset_import: ["": {opset}]>'
    text = f"""{head} g (float[N,{width},8,8] x) => (float[N,{width},8,8] y) {{
        c = Conv <pads = [1,1,1,1]> (x, w, b)
        r = Relu(c)
        d = Conv <pads = [1,1,1,1]> (r, v, e)
        y = Add(d, r)
    }}"""
    proto = onnx.parser.parse_model(text)
    loud = np.where(np.arange(width) == 3, 60.0, 1.0).astype(np.float32)
    weights = {
        "w": normal(width, width, 3, 3, seed=1) * loud[:, None, None, None] / 12,
        "b": normal(width, seed=2),
        "v": normal(width, width, 3, 3, seed=3) / loud[:, None, None] / 12,
        "e": normal(width, seed=4),
    }
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items())
    return ir.serde.deserialize_model(proto)


def apply(model: ir.Model, on: Target, **options: Any) -> tuple[Result, Context]:
    x = normal(32, 16, 8, 8, seed=9)
    infer_shapes(model)
    refresh_scopes(model)
    context = Context(on, from_arrays(Session(model).inputs, {"x": x}), original=model.clone())
    context.begin("int8")
    step = Int8(**{"equalize": "off", **options})
    step.requires(model, context)
    result = step.run(model, context)
    onnx.checker.check_model(to_proto(model), full_check=True)
    return result, context


def sqnr(before: ir.Model, after: ir.Model) -> float:
    """Return dB on samples that nothing was calibrated on."""
    feed = {"x": normal(8, 16, 8, 8, seed=11)}
    return between(outputs(before, feed)[0], outputs(after, feed)[0])


def width(node: ir.Node | None) -> str:
    """Return the dtype of the zero point of a Q or DQ."""
    assert node is not None
    assert node.op_type in ("QuantizeLinear", "DequantizeLinear"), node.op_type
    point = node.inputs[2]
    assert point is not None
    assert point.const_value is not None
    return str(point.const_value.dtype.numpy())


def maker(value: ir.Value | None) -> ir.Node | None:
    return value.producer() if value is not None else None


def zero_points(model: ir.Model) -> set[str]:
    return {width(node) for node in model.graph if node.op_type == "QuantizeLinear"}


@pytest.mark.parametrize("dtype", ["uint16", "int16"])
def test_the_noisiest_parts_get_16_bits_before_they_go_to_float(dtype: str) -> None:
    model = net()
    before = model.clone()
    result, context = apply(model, target(dtype=dtype), min_sqnr=35)
    assert dtype in zero_points(model)
    assert result.figures["held_out_sqnr_db"] >= 35
    assert not any("put back to float" in note.reason for note in context.notes)
    kernels = [n for n in model.graph if n.op_type == "Conv"]
    assert {node.op_type for n in kernels for v in n.inputs if (node := maker(v)) is not None} == {"DequantizeLinear"}
    assert sqnr(before, model) > 30


def test_they_stay_in_8_bits_where_that_is_good_enough() -> None:
    model = net()
    apply(model, target(), min_sqnr=0)
    assert zero_points(model) == {"uint8"}


def test_a_target_without_16_bits_goes_to_float() -> None:
    model = net()
    _, context = apply(model, target(wide=()), min_sqnr=35)
    assert zero_points(model) <= {"uint8"}
    assert any("put back to float" in note.reason for note in context.notes)


def test_where_a_narrow_kernel_reads_a_wide_value_it_is_converted() -> None:
    model = net()
    before = model.clone()
    apply(model, target(wide=("Add",)), min_sqnr=30)
    assert {"uint8", "uint16"} == zero_points(model)
    (add,) = [n for n in model.graph if n.op_type == "Add"]
    assert {width(maker(value)) for value in add.inputs} == {"uint16"}
    assert {width(maker(node.inputs[0])) for node in model.graph if node.op_type == "Conv"} == {"uint8"}
    assert sqnr(before, model) > 10


@pytest.mark.parametrize(("more", "wanted"), [("contrib_opset = 10", "com.microsoft"), ("", None)])
def test_before_opset_21_they_need_the_runtimes_own_operators(more: str, wanted: str | None) -> None:
    model = net(opset=17)
    before = model.clone()
    apply(model, target(more=more), min_sqnr=35)
    domains = {n.domain for n in model.graph if n.op_type == "QuantizeLinear"}
    assert (wanted in domains) == (wanted is not None)
    assert ("uint16" in zero_points(model)) == (wanted is not None)
    assert sqnr(before, model) > 25


def test_what_moves_values_has_the_width_of_what_it_reads() -> None:
    head = '<ir_version: 10, opset_import: ["": 21]>'
    proto = onnx.parser.parse_model(
        f"""{head} g (float[N,16,8,8] x) => (float[N,1024] y) {{
            c = Conv <pads = [1,1,1,1]> (x, w)
            p = Reshape(c, s)
            q = MatMul(p, m)
            y = Add(q, p)
        }}"""
    )
    weights: dict[str, Array] = {
        "w": normal(16, 16, 3, 3, seed=1) / 12,
        "s": np.array([0, 1024]),
        "m": normal(1024, 1024, seed=2) / 32,
    }
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    model = ir.serde.deserialize_model(proto)
    before = model.clone()
    apply(model, target(), min_sqnr=40, rounding="nearest")
    (shaped,) = [n for n in model.graph if n.op_type == "Reshape"]
    assert {width(maker(shaped.inputs[0])), *(width(use.node) for use in shaped.outputs[0].uses())} == {"uint16"}
    assert sqnr(before, model) > 30


@pytest.mark.parametrize("dtype", ["uint16", "int16"])
def test_grids_of_16_bits(dtype: str) -> None:
    rules = target(dtype=dtype).quantization
    assert rules is not None
    narrow, wide = (activation_grid(-1.0, 3.0, rules, wide=w) for w in (False, True))
    assert (narrow.bits, wide.bits) == (8, 16)
    assert 255 < narrow.scale / wide.scale < 259
    x = np.linspace(-1, 3, 1001, dtype=np.float32)
    restored = (wide.quantize(x).astype(np.float64) - wide.zero_point) * wide.scale
    assert np.abs(restored - x).max() < 0.51 * wide.scale
    fixed = fixed_grid(*rules.fixed["Softmax"], rules, wide=True)
    assert fixed.scale == 1 / 65536
    assert fixed.zero_point == (0 if dtype == "uint16" else -32768)


def test_a_clip_stays_inside_its_bounds() -> None:
    rules = target().quantization
    assert rules is not None
    grid = bounded_grid(-2.0, 9.0, (-1.0, 6.0), rules, wide=True)
    assert (65535 - grid.zero_point) * np.float32(grid.scale) <= 6.0
    assert -grid.zero_point * np.float32(grid.scale) >= -1.0


def test_a_target_says_which_16_bits() -> None:
    with pytest.raises(UserError, match="wide_activation: ''; needs 'uint16'"):
        load_target("acme", 'name = "a"\n[quantization]\nwide = ["Add"]')
    with pytest.raises(UserError, match="needs 'int16'"):
        load_target(
            "acme",
            'name = "a"\n[quantization]\nactivation_symmetric = true\nactivation = "int8"\nwide_activation = "uint16"\n'
            'wide = ["Add"]',
        )
    assert Quantization().wide == ()
