"""int8(rounding=learned): weights rounded by gradient, block by block."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxedge_passes.quantize import Int8
from onnxedge_passes.quantize.refine.layers import find_layers
from onnxedge_passes.quantize.refine.learned import Choice, learn
from onnxedge_passes.quantize.rounding import Weight, activation_grid, round_weight
from precision import apply, normal, outputs

from onnxedge.api import Array, Context, Session, forked, refresh_scopes
from onnxedge.data import from_arrays
from onnxedge.target import load_packaged_target
from onnxedge.verify import infer_shapes

LIMIT = 7  #: coarse weights, so that what is learned shows


def net(opset: int = 17, activation: str = "Relu") -> ir.Model:
    """Return a residual block, a pooling and a product."""
    text = f"""g (float[N,8,6,6] x) => (float[N,5] y) {{
        c = Conv <pads = [1,1,1,1]> (x, w, b)
        r = Relu(c)
        d = Conv <pads = [1,1,1,1]> (r, v, e)
        q = {activation}(d)
        s = Add(q, c)
        p = GlobalAveragePool(s)
        f = Flatten(p)
        y = Gemm(f, u, t)
    }}"""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
    weights = {
        "w": normal(8, 8, 3, 3, seed=1) / 8,
        "b": normal(8, seed=2),
        "v": normal(8, 8, 3, 3, seed=3) / 8,
        "e": normal(8, seed=4),
        "u": normal(8, 5, seed=5),
        "t": normal(5, seed=6),
    }
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return ir.serde.deserialize_model(proto)


def smooth(count: int, seed: int) -> Array:
    """Return images whose channels depend on each other."""
    mix = normal(8, 8, seed=11) + 2 * normal(8, 2, seed=12) @ normal(2, 8, seed=13)
    return np.ascontiguousarray(np.moveaxis(normal(count, 6, 6, 8, seed=seed) @ mix, -1, 1))


def context_of(model: ir.Model, x: Array) -> Context:
    infer_shapes(model)
    refresh_scopes(model)
    data = from_arrays(Session(model).inputs, {"x": x})
    return Context(load_packaged_target("onnxedge.targets", "ort-cpu"), data, original=model.clone())


def rounded(node: ir.Node, array: Array) -> tuple[Weight, bool]:
    return round_weight(array, 0 if node.op_type == "Conv" else 1, limit=LIMIT), False


def learned(model: ir.Model, *, with_grids: bool = False) -> tuple[dict[str, Weight], Context]:
    context = context_of(model, smooth(128, 20))
    rules = context.target.quantization
    assert rules is not None
    layers = find_layers(model, rounded)
    assert len(layers) == 3
    grids = {name: activation_grid(-80.0, 80.0, rules) for name in ("x", "s")} if with_grids else {}
    return learn(model, layers, {}, grids, context.calibration.split(0.25), context), context


def noise(model: ir.Model, weights: dict[str, Weight]) -> float:
    copy, _ = forked(model)
    for name, value in copy.graph.initializers.items():
        if value.const_value is not None and name in ("w", "v", "u"):
            node = value.uses()[0].node
            weight = weights.get(name, rounded(node, value.const_value.numpy())[0])
            value.const_value = ir.tensor(weight.restored())
    feed = {"x": smooth(64, 30)}
    return float(np.square(outputs(model, feed)[0] - outputs(copy, feed)[0]).mean())


@pytest.mark.parametrize("with_grids", [False, True])
def test_blocks_come_nearer_to_the_float_model(with_grids: bool) -> None:
    model = net()
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    found, _ = learned(model, with_grids=with_grids)
    assert found
    assert noise(model, found) < 0.6 * noise(model, {})
    assert {name: value.const_value for name, value in model.graph.initializers.items()} == before
    for name, weight in found.items():
        tensor = before[name]
        assert tensor is not None
        step = weight.restored() - tensor.numpy()
        scale = weight.scale.reshape([-1 if k == weight.axis else 1 for k in range(step.ndim)])
        inside = np.abs(tensor.numpy()) <= LIMIT * scale
        assert (np.abs(step) <= 1.001 * scale)[inside].all()  # the code below or the one above
        assert np.abs(weight.codes).max() <= LIMIT


def test_zeros_stay_zeros() -> None:
    model = net()
    held = model.graph.initializers["v"].const_value
    assert held is not None
    sparse = np.where(np.abs(held.numpy()) < np.median(np.abs(held.numpy())), 0, held.numpy()).astype(np.float32)
    model.graph.initializers["v"].const_value = ir.tensor(sparse, name="v")
    codes = learned(model)[0]["v"].codes
    assert not codes[sparse == 0].any()
    assert codes.any()


def test_it_is_the_same_each_time() -> None:
    first, other = (learned(net())[0] for _ in range(2))
    assert first.keys() == other.keys()
    assert all(np.array_equal(first[name].codes, other[name].codes) for name in first)


def test_a_block_without_a_gradient_keeps_its_rounding() -> None:
    model = net(activation="Floor")
    found, context = learned(model)
    assert "v" not in found
    assert "w" in found
    assert any("no gradient for Floor" in note.reason for note in context.notes)


def test_old_opsets_are_told() -> None:
    found, context = learned(net(opset=11))
    assert not found
    assert any("opset 11 is below 13" in note.reason for note in context.notes)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7])
def test_the_gradient_is_that_of_the_loss(share: float) -> None:
    (layer, *_) = find_layers(net(), rounded)
    tensor = layer.value.const_value
    assert tensor is not None
    choice = Choice.of(layer, tensor.numpy())
    assert choice.soft() == pytest.approx(
        np.clip(tensor.numpy(), -LIMIT * choice.scale, LIMIT * choice.scale), abs=0.03
    )
    choice.free[:] = np.log(share / (1 - share))
    of_weight = normal(*choice.free.shape, seed=9)
    pull, sharp = 0.3, 4.0

    def loss() -> float:
        soft = np.clip(choice.floor + choice.share(), -LIMIT, LIMIT) * choice.scale
        return float((soft * of_weight).sum() + pull * (1 - np.abs(2 * choice.share() - 1) ** sharp).sum())

    found = choice.gradient(of_weight, pull, sharp)
    for index in [(0, 0, 0, 0), (3, 2, 1, 0), (7, 7, 2, 2)]:
        before, delta = loss(), 1e-5
        if choice.floor[index] in (-LIMIT - 1, LIMIT):  # clipped: straight through
            continue
        choice.free[index] += delta
        assert (loss() - before) / delta == pytest.approx(found[index], rel=1e-2, abs=1e-4)
        choice.free[index] -= delta


def run(**options: Any) -> dict[str, object]:
    result, _ = apply(Int8(equalize="off", min_sqnr=0, **options), net(), {"x": smooth(96, 40)})
    return dict(result.figures)


def test_the_option_is_never_worse_on_held_out_samples() -> None:
    plain, best = (run(rounding=how)["held_out_sqnr_db"] for how in ("nearest", "learned"))
    assert isinstance(plain, float)
    assert isinstance(best, float)
    assert best >= plain - 0.2
