"""equalize: nets whose channels differ by orders of magnitude are saved, others stay as they are."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnxedge_passes.fuse.fuse import Fuse
from onnxedge_passes.quantize import Int8
from onnxedge_passes.quantize.calibration.observed import Observed
from onnxedge_passes.quantize.equalize.plan import Plan
from onnxedge_passes.quantize.equalize.rescale import scaled_constants, write_constants
from onnxedge_passes.quantize.equalize.walk import find_slots
from precision import apply, outputs, sqnr
from test_equalize_slots import parsed

from onnxedge.api import Array, Context, constant, load, set_constant, to_proto
from onnxedge.target import load_packaged_target
from onnxedge.verify import infer_shapes

_PATH = Path(__file__).resolve().parents[3] / "benchmarks" / "rescale.py"
_SPEC = importlib.util.spec_from_file_location("rescale_benchmark", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
rescale = importlib.util.module_from_spec(_SPEC)  # by its file: other benchmarks have the names of folders of tests
sys.modules[_SPEC.name] = rescale
_SPEC.loader.exec_module(rescale)


def net(bound: float = math.inf, spread: float = 0.0, activation: str = "Relu", opset: int = 17) -> ir.Model:
    """Return expansion, depthwise and projection with a shortcut, twice; channels spread over orders of magnitude."""
    act = f"Clip({{}}, zero{', top' if bound < math.inf else ''})" if activation == "Clip" else f"{activation}({{}})"
    body = "a0 = Conv <pads=[1,1,1,1]> (x, w0, w00) "
    sizes = ["float[32,3,3,3] w0", "float[32] w00"]
    last = "a0"
    for i in "12":
        first, second = act.format(f"e{i}"), act.format(f"d{i}")
        body += f"e{i} = Conv({last}, w{i}, w{i}0) f{i} = {first} "
        body += f"d{i} = Conv <group=64, pads=[1,1,1,1]> (f{i}, w{i}1, w{i}2) h{i} = {second} "
        body += f"p{i} = Conv(h{i}, w{i}3, w{i}4) a{i} = Add(p{i}, {last}) "
        sizes += [f"float[64,32,1,1] w{i}", f"float[64] w{i}0", f"float[64,1,3,3] w{i}1", f"float[64] w{i}2"]
        sizes += [f"float[32,64,1,1] w{i}3", f"float[32] w{i}4"]
        last = f"a{i}"
    body += f"m = GlobalAveragePool({last}) f = Flatten(m) y = Gemm(f, w9)"
    top = f", float top = {{{bound}}}" if bound < math.inf else ""
    constants = f"<float zero = {{0}}{top}>"
    inputs = f"float[N,3,16,16] x, {', '.join(sizes)}, float[32,10] w9"
    model = parsed(f"g ({inputs}) => (float[N,10] y) {constants} {{ {body} }}", opset)
    for node in model.graph:
        if node.op_type in ("Conv", "Gemm"):
            weight = constant(node.inputs[1])
            assert weight is not None
            fan = weight[0].size if node.op_type == "Conv" else weight.shape[0]
            set_constant(node, 1, weight * np.float32(1.4 / np.sqrt(fan)))
            if len(node.inputs) > 2:
                bias = constant(node.inputs[2])
                assert bias is not None
                set_constant(node, 2, bias * np.float32(0.1))
    if spread:
        slots = find_slots(model)
        roots = {int(r) for array in slots.of.values() for r in slots.roots(array).reshape(-1)} - {0}
        factors, rng = np.ones(10**4), np.random.default_rng(4)
        for root in sorted(roots):
            factors[root] = 10.0 ** rng.uniform(-spread / 2, spread / 2)
        constants_ = scaled_constants(Plan(slots, factors, {}, {}, frozenset()))
        assert constants_ is not None
        write_constants(constants_)
    return model


def images(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=(count, 3, 16, 16)).astype(np.float32)


def quantized(model: ir.Model, **options: Any) -> tuple[float, int, dict[str, Any], str]:
    """Return SQNR on samples not seen, nodes in integers, figures and notes."""
    before = model.clone()
    step = Int8(method="minmax", rounding="nearest", **options)
    result, notes = apply(step, model, {"x": images(32, 1)}, "generic")
    held = {"x": images(16, 2)}
    found = sqnr(outputs(before, held)[0], outputs(model, held)[0])
    return found, int(result.figures["integer_nodes"]), result.figures, notes


def test_a_net_spread_over_three_orders_is_saved() -> None:
    even = quantized(net(), min_sqnr=-99)
    plain = quantized(net(spread=3.0), min_sqnr=-99, equalize="off")
    saved = quantized(net(spread=3.0))
    assert plain[0] < even[0] - 10
    assert saved[0] > even[0] - 4
    assert saved[1] == even[1]
    assert saved[2]["scaled_parts"] > 0


def test_an_even_net_stays_as_it_is() -> None:
    files = []
    for options in ({}, {"equalize": "off", "smooth": "off"}):
        model = net()
        apply(Int8(method="minmax", rounding="nearest", **options), model, {"x": images(32, 1)}, "generic")
        files.append(to_proto(model).SerializeToString(deterministic=True))
    assert files[0] == files[1]


def test_a_clip_that_channels_reach_is_kept_and_others_are_scaled() -> None:
    """The bound holds for scaled channels too: only those far below it are scaled, and stay below."""
    model = net(bound=1.0, activation="Clip")
    node = next(n for n in model.graph if n.outputs[0].name == "e1")
    quiet = np.where(np.arange(64) % 2, 1e-3, 1.0).astype(np.float32)
    for index, shape in ((1, (-1, 1, 1, 1)), (2, (-1,))):
        array = constant(node.inputs[index])
        assert array is not None
        set_constant(node, index, array * quiet.reshape(shape))
    depthwise = next(n for n in model.graph if n.outputs[0].name == "d1")
    array = constant(depthwise.inputs[1])
    assert array is not None
    set_constant(depthwise, 1, array / quiet.reshape(-1, 1, 1, 1))
    plain = quantized(model.clone(), min_sqnr=-99, equalize="off")
    saved = quantized(model.clone(), min_sqnr=-99)
    assert saved[2].get("scaled_parts", 0) > 0
    assert saved[0] > plain[0] + 6


def test_per_tensor_weights_are_equalized() -> None:
    """Opset 11 knows no scales per channel elsewhere than in ONNX Runtime."""
    plain, saved = (quantized(net(spread=2.0, opset=12), min_sqnr=-99, equalize=how)[0] for how in ("off", "auto"))
    assert saved > plain + 6


def test_ranges_in_files_switch_it_off(tmp_path: Any) -> None:
    _, _, figures, notes = quantized(net(spread=3.0), min_sqnr=-99, save_ranges=str(tmp_path / "r.json"))
    assert "scaled_parts" not in figures
    assert "ranges in files are those of the model as it came" in notes


def test_channels_are_observed() -> None:
    array = np.random.default_rng(0).normal(size=(10, 4, 3, 5)).astype(np.float32)
    entry, last = Observed(), Observed()
    for start in (0, 3, 9):
        part = array[start : {0: 3, 3: 9, 9: 10}[start]]
        entry.extend(part, len(part), 1)
        last.extend(part, len(part), -1)
    assert entry.channels is not None
    assert last.channels is not None
    np.testing.assert_array_equal(entry.channels.low, array.min(axis=(0, 2, 3)))
    np.testing.assert_array_equal(entry.channels.high, array.max(axis=(0, 2, 3)))
    np.testing.assert_allclose(entry.channels.square, (array.astype(np.float64) ** 2).mean(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_array_equal(last.channels.high, array.max(axis=(0, 1, 2)))


@pytest.mark.parametrize("name", ["digits_mobile", "digits_efficient"])
def test_trained_nets_spread_by_an_exact_rescaling(name: str, fixtures: Path) -> None:
    """The spreading is that of ``benchmarks/rescale.py``, which finds its channels by itself."""
    model = load(fixtures / f"{name}.onnx")
    infer_shapes(model)
    Fuse().run(model, Context(load_packaged_target("onnxedge.targets", "generic"), None, original=model.clone()))
    with np.load(fixtures / "digits_train.npz") as kept, np.load(fixtures / "digits_eval.npz") as held:
        calibration, x, y = kept["x"][:32].astype(np.float32), held["x"].astype(np.float32), held["y"]
    (even,) = outputs(model, {"input": x})
    assert rescale.spread_channels(model, 3.0) >= 64
    (first,) = outputs(model, {"input": x})
    np.testing.assert_allclose(first, even, atol=1e-4 * np.abs(even).max())
    step = Int8(method="minmax", rounding="nearest")
    result, _ = apply(step, model, {"input": calibration}, "generic")
    assert result.figures["scaled_parts"] > 0  # type: ignore[operator]
    assert int(str(result.figures["integer_nodes"])) > 20
    (found,) = outputs(model, {"input": x})
    assert sqnr(first, found) > 20
    assert (found.argmax(axis=1) == y).mean() > (first.argmax(axis=1) == y).mean() - 0.005


def test_parts_that_go_back_to_float_get_their_weights_back() -> None:
    model = net(spread=3.0)
    before = {name: constant(value) for name, value in model.graph.initializers.items()}
    step = Int8(mode="static", method="minmax", rounding="nearest", min_sqnr=200, short_names=False)
    result, _ = apply(step, model, {"x": images(32, 1)}, "generic")
    assert result.figures["integer_nodes"] == 0
    assert result.figures["scaled_parts"] == 0
    after = {name: constant(value) for name, value in model.graph.initializers.items()}
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(array, after[name])
