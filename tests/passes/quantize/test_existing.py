"""int8 on models that have Q/DQ or QLinear operators already: kept, extended where they are float, or replaced."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime.quantization as quantization
import pytest
from chains import CHANNELS, chain, samples
from conftest import parse
from onnxedge_passes.quantize import Int8
from precision import apply, kinds, outputs, sqnr

from onnxedge.api import Array, constant, optimized_graph, save, to_proto
from onnxedge.model.io import from_proto

X = samples(32)


class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Give samples one by one."""

    def __init__(self) -> None:
        self._feeds = iter([{"x": x[None]} for x in X])

    def get_next(self) -> Any:
        return next(self._feeds, None)


def by_runtime(tmp_path: Path, model: ir.Model, **options: Any) -> ir.Model:
    """Return a model as ``quantize_static`` quantizes it: uint8, per channel; named nodes only, or all."""
    for number, node in enumerate(node for node in model.graph if node.op_type == "Conv"):
        node.name = f"conv{number}"
    save(model, tmp_path / "float.onnx")
    given = {
        "quant_format": quantization.QuantFormat.QDQ,
        "activation_type": quantization.QuantType.QUInt8,
        "weight_type": quantization.QuantType.QInt8,
        "per_channel": True,
    }
    quantization.quantize_static(tmp_path / "float.onnx", tmp_path / "quantized.onnx", Reader(), **given | options)
    return from_proto(onnx.load(tmp_path / "quantized.onnx"))


def ran(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in optimized_graph(model).graph.node)


def steps(model: ir.Model) -> Counter[tuple[str, bytes, bytes]]:
    """Count operator, scale and zero point of each Q, DQ and QLinearConv."""
    found: Counter[tuple[str, bytes, bytes]] = Counter()
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "QLinearConv"):
            arrays = [constant(value) for value in node.inputs[1:3]]
            found[node.op_type, *(b"" if a is None else a.tobytes() for a in arrays)] += 1  # type: ignore[index]
    return found


def codes(model: ir.Model) -> list[bytes]:
    """Return the integer weights."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sorted(t.numpy().tobytes() for t in tensors if t is not None and t.dtype == ir.DataType.INT8 and t.size > 99)


def nodes(model: ir.Model) -> list[bytes]:
    return [node.SerializeToString(deterministic=True) for node in to_proto(model).graph.node]


def answers(model: ir.Model) -> Array:
    return outputs(model, {"x": samples(4, seed=7)})[0]


WHOLE: dict[str, Any] = {}
PART = {"nodes_to_quantize": ["conv1", "relu1", "conv2", "relu2"]}
EXCEPT = {"nodes_to_exclude": ["conv1", "relu1", "conv2", "relu2"]}
OPERATORS = {"quant_format": quantization.QuantFormat.QOperator}


@pytest.mark.parametrize("options", [WHOLE, PART, OPERATORS, OPERATORS | PART])
def test_by_default_it_is_kept(tmp_path: Path, options: dict[str, Any]) -> None:
    model = by_runtime(tmp_path, chain(4), **options)
    before = nodes(model)
    result, notes = apply(Int8(), model, {"x": X})
    assert result.rewrites == 0
    assert "quantized activations already; existing=extend or existing=replace" in notes
    assert nodes(model) == before


@pytest.mark.parametrize("options", [PART, EXCEPT, OPERATORS | PART, OPERATORS | EXCEPT])
def test_what_is_float_is_quantized_and_the_scales_stay(tmp_path: Path, options: dict[str, Any]) -> None:
    model = by_runtime(tmp_path, chain(4), **options)
    float_convs = ran(model)["Conv"] + ran(model)["FusedConv"]
    old_steps, old_codes, old_answers = steps(model), codes(model), answers(model)
    result, _ = apply(Int8(existing="extend"), model, {"x": X})
    assert float_convs >= 1
    assert result.rewrites >= float_convs
    found = ran(model)
    assert found["QLinearConv"] == 4
    assert found["Conv"] + found["FusedConv"] == 0
    assert found["QuantizeLinear"] == found["DequantizeLinear"] == 1  # integers are handed on as they are
    assert set(old_steps) <= set(steps(model))
    assert set(old_codes) <= set(codes(model))
    assert sqnr(old_answers, answers(model)) > 25
    again, _ = apply(Int8(existing="extend"), model, {"x": X})
    assert again.rewrites == 0


def test_new_integers_take_over_the_scales_around_them(tmp_path: Path) -> None:
    """The calibration samples would give the values between other scales; those of the model win."""
    model = by_runtime(tmp_path, chain(4), **EXCEPT)
    old = steps(model)
    apply(Int8(existing="extend"), model, {"x": 3 * X})
    new = [key for key in steps(model) - old if key[0] == "QuantizeLinear"]
    assert len(new) == 1  # behind relu1; before conv1 and behind relu2 it is the model's own
    assert set(old) <= set(steps(model))


@pytest.mark.parametrize("options", [WHOLE, OPERATORS])
def test_nothing_is_left_to_extend(tmp_path: Path, options: dict[str, Any]) -> None:
    model = by_runtime(tmp_path, chain(4), **options)
    old = steps(model), codes(model)
    result, _ = apply(Int8(existing="extend"), model, {"x": X})
    assert (steps(model), codes(model)) == old
    assert result.figures["integer_nodes"] == 0


@pytest.mark.parametrize("options", [WHOLE, PART, EXCEPT, OPERATORS, OPERATORS | PART])
def test_replaced_it_is_quantized_anew(tmp_path: Path, options: dict[str, Any]) -> None:
    original = chain(4)
    model = by_runtime(tmp_path, original, **options)
    old = steps(model)
    result, _ = apply(Int8(existing="replace"), model, {"x": X * np.float32(0.9)})
    assert result.rewrites
    found = ran(model)
    assert found["QLinearConv"] == 4
    assert found["QuantizeLinear"] == found["DequantizeLinear"] == 1
    assert not {key for key in old if len(key[1]) == 4} & set(steps(model))  # no scale of an activation is the same
    assert sqnr(answers(original), answers(model)) > 22
    again, _ = apply(Int8(), model, {"x": X})
    assert again.rewrites == 0


def test_activations_of_another_type_are_a_border(tmp_path: Path) -> None:
    """The target wants uint8: behind int8 activations its own begin anew, and what is int8 stays."""
    model = by_runtime(tmp_path, chain(4), activation_type=quantization.QuantType.QInt8, **PART)
    old_steps, old_answers = steps(model), answers(model)
    apply(Int8(existing="extend"), model, {"x": X})
    assert set(old_steps) <= set(steps(model))
    assert ran(model)["QLinearConv"] >= 2
    assert sqnr(old_answers, answers(model)) > 25


BETWEEN = f"""g (float[N,{CHANNELS},12,12] x) => (float[N,{CHANNELS},12,12] y)
  <float s = {{0.03}}, float t = {{0.05}}, uint8 z = {{128}}>
  {{ q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  m = Identity(d)  p = Transpose <perm = [0,1,3,2]> (d)
    e = QuantizeLinear(p, t, z)  f = DequantizeLinear(e, t, z)  y = Neg(f) }}"""


def test_what_moves_integers_between_two_scales_is_left_alone() -> None:
    model = parse(BETWEEN)
    before = outputs(model, {"x": X[:2]})[0]
    result, _ = apply(Int8(existing="extend"), model, {"x": X})
    assert result.rewrites == 0
    assert kinds(model) == kinds(parse(BETWEEN))
    np.testing.assert_array_equal(outputs(model, {"x": X[:2]})[0], before)


COMPUTED = f"""g (float t, float[N,{CHANNELS},12,12] x) => (float[N,{CHANNELS},12,12] y)
  <uint8 z = {{128}}>
  {{ s = Abs(t)  q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  y = Neg(d) }}"""


def test_what_cannot_be_made_float_is_kept() -> None:
    model = parse(COMPUTED)
    before = nodes(model)
    result, notes = apply(Int8(existing="replace"), model)
    assert result.rewrites == 0
    assert "not made float: " in notes
    assert "its scale is computed at run time" in notes
    assert "left as it is: the model has quantized activations already" in notes
    assert nodes(model) == before


@pytest.mark.parametrize("existing", ["extend", "replace"])
def test_a_float_model_is_quantized_as_ever(existing: Any) -> None:
    models = [chain(), chain()]
    for model, step in zip(models, (Int8(), Int8(existing=existing)), strict=True):
        apply(step, model, {"x": X})
    assert to_proto(models[0]).SerializeToString(True) == to_proto(models[1]).SerializeToString(True)


def test_on_another_target_too(tmp_path: Path) -> None:
    symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True}
    model = by_runtime(
        tmp_path, chain(4), activation_type=quantization.QuantType.QInt8, extra_options=symmetric, **EXCEPT
    )
    old_steps, old_answers = steps(model), answers(model)
    apply(Int8(existing="extend"), model, {"x": X}, "tensorrt")
    fed = [node.inputs[1].producer() for node in model.graph if node.op_type == "Conv" and node.inputs[1] is not None]
    assert [maker.op_type if maker else "" for maker in fed] == ["DequantizeLinear"] * 4
    assert set(old_steps) <= set(steps(model))
    assert sqnr(old_answers, answers(model)) > 22
