"""int8: biases that take out the mean shift of quantized layers, one layer after the other."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxedge_passes.quantize import Int8
from onnxedge_passes.quantize.calibration import AUTO
from onnxedge_passes.quantize.quantizer import Quantizer, Settings
from onnxedge_passes.quantize.refine.bias import correct_biases
from precision import normal, outputs

from onnxedge.api import Array, Context, Session, Unit, forked, refresh_scopes
from onnxedge.data import from_arrays
from onnxedge.target import load_packaged_target
from onnxedge.verify import infer_shapes

CHANNELS, DEPTH = 16, 4


def chain(opset: int = 17) -> ir.Model:
    """Return convolutions with Relu one behind the other, whose weights have a mean: rounding shifts their outputs."""
    lines, weights, last = [], {}, "x"
    for k in range(DEPTH):
        made = "y" if k == DEPTH - 1 else f"r{k}"
        lines.append(f"c{k} = Conv <pads = [1,1,1,1]> ({last}, w{k}, b{k})  {made} = Relu(c{k})")
        weights[f"w{k}"] = (normal(CHANNELS, CHANNELS, 3, 3, seed=k) / 9).astype(np.float32)
        weights[f"b{k}"] = normal(CHANNELS, seed=50 + k)
        last = made
    shape = f"float[N,{CHANNELS},8,8]"
    head = f'<ir_version: 8, opset_import: ["": {opset}]>'
    proto = onnx.parser.parse_model(f"{head} g ({shape} x) => ({shape} y) {{ {' '.join(lines)} }}")
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return ir.serde.deserialize_model(proto)


def quantizer(model: ir.Model, count: int = 48, *, on: str = "ort-cpu") -> Quantizer:
    infer_shapes(model)
    refresh_scopes(model)
    data = from_arrays(Session(model).inputs, {"x": normal(count, CHANNELS, 8, 8, seed=7)})
    context = Context(load_packaged_target("onnxedge.targets", on), data, original=model.clone())
    context.begin("int8")
    made = Quantizer(Settings(methods=AUTO[2:3], equalize=False, smooth=False), model, context)
    made.calibrated()
    return made


def shifted(made: Quantizer) -> tuple[dict[str, Array], ir.Model]:
    """Return what is to be taken off, with weights coarse enough to shift every channel; and the quantized copy."""
    trial, _ = forked(made.model)
    placement, *_ = made.emit(trial)
    for node in trial.graph:
        value = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        tensor = value.const_value if value is not None else None
        if value is not None and tensor is not None and len(tensor.shape) == 4:
            codes = tensor.numpy().astype(np.int32)
            value.const_value = ir.tensor((codes // 8 * 8).astype(np.int8))  # always down
    pairs: list[tuple[Unit, Unit]] = [
        (a, b)
        for a, b in zip(made.place(made.model).integer, placement.integer, strict=True)
        if a.weight is not None and a.bias is not None
    ]
    assert len(pairs) == DEPTH
    return correct_biases(made.model, trial, pairs, made.fit, made.context), trial


def means(model: ir.Model, x: Array) -> Array:
    return outputs(model, {"x": x})[0].mean(axis=(0, 2, 3), dtype=np.float64)


def taken_off(trial: ir.Model, shifts: dict[str, Array]) -> None:
    """Change the int32 biases of a quantized copy."""
    for node in trial.graph:
        shift = shifts.get(node.outputs[0].name or "") if node.op_type == "Conv" else None
        if shift is None:
            continue
        bias = node.inputs[2]
        maker = bias.producer() if bias is not None else None
        assert maker is not None
        codes, scale = maker.inputs[0], maker.inputs[1]
        assert codes is not None
        assert scale is not None
        assert codes.const_value is not None
        assert scale.const_value is not None
        new = codes.const_value.numpy() - np.rint(shift / scale.const_value.numpy())
        codes.const_value = ir.tensor(new.astype(np.int32))


def test_the_mean_of_every_channel_is_mended() -> None:
    model = chain()
    shifts, trial = shifted(quantizer(model))
    assert set(shifts) == {f"c{k}" for k in range(DEPTH)}
    x = normal(64, CHANNELS, 8, 8, seed=99)
    wanted, before = means(model, x), means(trial, x)
    taken_off(trial, shifts)
    after = means(trial, x)
    assert np.abs(after - wanted).mean() < 0.2 * np.abs(before - wanted).mean()


def test_a_layer_is_measured_behind_corrected_ones() -> None:
    """The sum over layers of what is taken off is not the shift of the last one, which those before have caused."""
    model = chain()
    shifts, trial = shifted(quantizer(model))
    x = normal(64, CHANNELS, 8, 8, seed=99)
    plain, _ = forked(trial)
    taken_off(plain, {f"c{DEPTH - 1}": shifts[f"c{DEPTH - 1}"]})
    wanted = means(model, x)
    last_alone = np.abs(means(plain, x) - wanted).mean()
    taken_off(trial, shifts)
    assert np.abs(means(trial, x) - wanted).mean() < 0.5 * last_alone


def test_samples_that_do_not_agree_take_off_little() -> None:
    from onnxedge_passes.quantize.refine.bias import _shift

    rng = np.random.default_rng(0)
    wanted = [np.zeros((8, 3, 4, 4), np.float32) for _ in range(4)]
    sure = [array + np.array([1, -2, 0], np.float32).reshape(1, 3, 1, 1) for array in wanted]
    found = _shift(wanted, sure, 1)
    assert found == pytest.approx([1, -2, 0])
    loose = [array + rng.normal(size=(8, 3, 1, 1)).astype(np.float32) * 10 + 0.1 for array in wanted]
    part = _shift(wanted, loose, 1)
    mean = np.concatenate(loose).mean(axis=(0, 2, 3))
    assert part is not None
    assert (np.abs(part) < 0.9 * np.abs(mean)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_left_alone(bad: float) -> None:
    from onnxedge_passes.quantize.refine.bias import _shift

    wanted = [np.zeros((8, 3, 4, 4), np.float32)]
    broken = [wanted[0] + np.where(np.arange(3) == 1, bad, 0).astype(np.float32).reshape(1, 3, 1, 1)]
    assert _shift(wanted, broken, 1) is None
    assert _shift(wanted, [array[:4] for array in broken], 1) is None


def test_no_bias_is_touched_on_request_or_without_samples() -> None:
    for options, samples in (({"bias_correction": False}, True), ({}, False)):
        from precision import apply

        feed = {"x": normal(48, CHANNELS, 8, 8, seed=7)} if samples else None
        result, _ = apply(Int8(equalize="off", **options), chain(), feed)
        assert "biases_corrected" not in result.figures


def test_it_is_kept_only_where_held_out_samples_are_answered_better() -> None:
    from precision import apply

    model = chain()
    result, _ = apply(Int8(equalize="off"), model, {"x": normal(48, CHANNELS, 8, 8, seed=7)})
    plain, _ = apply(Int8(equalize="off", bias_correction=False), chain(), {"x": normal(48, CHANNELS, 8, 8, seed=7)})
    first, other = (r.figures["held_out_sqnr_db"] for r in (result, plain))
    assert isinstance(first, float)
    assert isinstance(other, float)
    assert first > other - 0.5
    gain = result.figures.get("bias_gain_db", 1.0)
    assert isinstance(gain, float)
    assert gain >= 0
