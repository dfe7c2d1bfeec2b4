"""The pass as a whole: which zeros, what comes out of the runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from prune.topologies import build, images
from sparsified import ALL, HALF, attention, has_pattern, outputs, residual, sparsify, weights, zeros

from onnxedge.api import Session, constant, to_proto


@pytest.mark.parametrize("how", [{}, {"repair": "none"}, {"method": "magnitude"}], ids=str)
@pytest.mark.parametrize("make", [residual, attention])
def test_every_weight_loses_its_share(make: Any, how: dict[str, Any]) -> None:
    model = make()
    shape = tuple(model.graph.inputs[0].shape)[1:]
    result, _ = sparsify(model, images(shape), ratio=0.6, **ALL, **how)
    assert result.rewrites == len(weights(model))
    for weight in weights(model).values():
        assert np.count_nonzero(weight == 0) == round(0.6 * weight.size)
    assert result.figures["zeros"] == sum(np.count_nonzero(w == 0) for w in weights(model).values())
    for count in (1, 5):
        before, after = outputs(make(), images(shape, count, 1)), outputs(model, images(shape, count, 1))
        assert after.shape == before.shape
        assert np.isfinite(after).all()
    assert [value.name for value in (*model.graph.inputs, *model.graph.outputs)] == ["x", "y"]
    assert sparsify(model, images(shape), ratio=0.6, **ALL, **how)[0].rewrites == 0


@pytest.mark.parametrize("method", ["obs", "magnitude"])
@pytest.mark.parametrize("make", [residual, attention])
def test_a_pattern_runs_along_the_input_channels(make: Any, method: str) -> None:
    model = make()
    shape = tuple(model.graph.inputs[0].shape)[1:]
    _, reasons = sparsify(model, images(shape), pattern=HALF, method=method, **ALL)
    fit = {name: weight for name, weight in weights(model).items() if len(weight) % 4 == 0}
    assert len(fit) >= 5
    assert all(has_pattern(weight) and zeros(weight) == 0.5 for weight in fit.values())
    if make is residual:
        assert "stays dense: its 3 input channels are no multiple of 4" in reasons


def test_a_gemm_with_its_weight_turned() -> None:
    model = build("g (float[N,8] x) => (float[N,6] y) { y = Gemm<transB=1>(x, w) }", {"w": (6, 8)})
    sparsify(model, images((8,)), pattern=HALF, **ALL)
    weight = constant(next(iter(model.graph)).inputs[1])
    assert weight is not None
    assert weight.shape == (6, 8)
    assert (np.count_nonzero(weight.reshape(6, 2, 4), axis=2) == 2).all()


@pytest.mark.parametrize("options", [{"ratio": 0.5}, {"pattern": HALF}], ids=str)
@pytest.mark.parametrize("make", [residual, attention])
def test_fitted_zeros_cost_less_than_plain_ones(make: Any, options: dict[str, Any]) -> None:
    """At most half of the squared error of magnitude alone; refitting magnitude's own zeros helps as well."""
    errors = {}
    for name, how in {
        "obs": {},
        "mended": {"method": "magnitude"},
        "plain": {"method": "magnitude", "repair": "none"},
    }.items():
        model = make()
        shape = tuple(model.graph.inputs[0].shape)[1:]
        wanted = outputs(model, images(shape, 64, 5))
        sparsify(model, images(shape, 256), **options, **ALL, **how)
        errors[name] = float(np.square(outputs(model, images(shape, 64, 5)) - wanted).mean())
    assert errors["obs"] < 0.5 * errors["plain"]
    assert errors["obs"] < errors["mended"] < errors["plain"]


def test_inputs_that_are_copies_can_go() -> None:
    """Where every input comes twice, half of the weights carry nearly all."""
    samples = np.tile(images((32,), 256), 2)
    errors = []
    for how in ({}, {"method": "magnitude", "repair": "none"}):
        model = build("g (float[N,64] x) => (float[N,6] y) { a = MatMul(x, w) y = Relu(a) }", {"w": (64, 6)})
        before = outputs(model, samples)
        sparsify(model, samples, ratio=0.5, **ALL, **how)
        errors.append(float(np.square(outputs(model, samples) - before).mean()))
    assert errors[0] < 0.1 * errors[1]


def test_a_bias_takes_up_the_means_and_is_made_where_there_is_none() -> None:
    text = "g (float[N,4,6,6] x) => (float[N,8,6,6] y, float[N,8,6,6] z) { y = Conv(x, v, b) z = Conv(x, w, b) }"
    model = build(text, {"v": (8, 4, 1, 1), "w": (8, 4, 1, 1), "b": (8,)})
    samples = images((4, 6, 6), 64) + 3
    before = Session(model).run({"x": samples})
    sparsify(model, samples, ratio=0.5, **ALL)
    after = Session(model).run({"x": samples})
    for name, array in before.items():
        np.testing.assert_allclose(after[name].mean((0, 2, 3)), array.mean((0, 2, 3)), atol=0.05)
    first, second = (constant(node.inputs[2]) for node in model.graph)
    assert first is not None
    assert not np.array_equal(first, second)
    alone = build("g (float[N,4,6,6] x) => (float[N,8,6,6] y) { y = Conv(x, w) }", {"w": (8, 4, 1, 1)})
    sparsify(alone, samples, ratio=0.5, **ALL)
    assert len(next(iter(alone.graph)).inputs) == 3


def test_shared_weights_stay_shared() -> None:
    text = "g (float[N,8] x) => (float[N,8] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, w) }"
    model = build(text, {"w": (8, 8)})
    _, reasons = sparsify(model, images((8,)), ratio=0.5, **ALL)
    first, _, second = model.graph
    assert first.inputs[1] is second.inputs[1]
    assert zeros(weights(model)["a"]) == 0.5
    assert "zeros chosen by magnitude and not refitted: its weight is shared" in reasons
    assert list(model.graph.initializers) == [first.inputs[1].name]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("g (float[N,8,6,6] x) => (float[N,8,6,6] y) { y = Conv<group=2>(x, w) }", (8, 4, 1, 1)),
        ("g (float[N,8,6,6] x) => (float[N,6,6,6] y) { y = ConvTranspose(x, w) }", (8, 6, 1, 1)),
        ("g (float[N,8,6,6] x) => (float[N,6,6,6] y) { y = ConvTranspose<group=2>(x, w) }", (8, 3, 1, 1)),
    ],
)
def test_what_has_no_least_squares_view_goes_by_magnitude(text: str, shape: tuple[int, ...]) -> None:
    model = build(text, {"w": shape})
    before = np.asarray(model.graph.initializers["w"].const_value.numpy())
    _, reasons = sparsify(model, images((8, 6, 6)), ratio=0.5, **ALL)
    (node,) = model.graph
    after = constant(node.inputs[1])
    assert after is not None
    assert "zeros chosen by magnitude and not refitted: it has no least-squares view here" in reasons
    assert np.array_equal(after[after != 0], before[after != 0])
    assert np.abs(before[after == 0]).max() <= np.abs(before[after != 0]).min()
    assert outputs(model, images((8, 6, 6))).shape[0] == 48


def test_a_grouped_convolution_has_its_pattern_within_each_group() -> None:
    text = "g (float[N,16,6,6] x) => (float[N,8,6,6] y) { y = Conv<group=2>(x, w) }"
    model = build(text, {"w": (8, 8, 3, 3)})
    sparsify(model, images((16, 6, 6)), pattern=HALF, **ALL)
    weight = weights(model)["y"]
    assert has_pattern(weight)
    assert zeros(weight) == 0.5


@pytest.mark.parametrize("kind", ["float16", "double"])
def test_other_floats(kind: str) -> None:
    dtype = {"float16": np.float16, "double": np.float64}[kind]
    text = f"g ({kind}[N,8] x) => ({kind}[N,8] y) {{ y = MatMul(x, w) }}"
    model = build(text, {}, {"w": np.random.default_rng(0).standard_normal((8, 8)).astype(dtype)})
    sparsify(model, images((8,)).astype(dtype), ratio=0.5, **ALL)
    weight = weights(model)["y"]
    assert weight.dtype == dtype
    assert zeros(weight) == 0.5


def test_global_allocation_spares_the_layers_that_need_it() -> None:
    rng = np.random.default_rng(0)
    sparse = rng.standard_normal((16, 16)) * (rng.random((16, 16)) < 0.2) + 1e-4 * rng.standard_normal((16, 16))
    even = rng.choice([-1.0, 1.0], (16, 16)) * rng.uniform(0.9, 1.1, (16, 16))
    text = "g (float[N,16] x) => (float[N,16] y) { a = MatMul(x, v) y = MatMul(a, w) }"
    model = build(text, {}, {"v": sparse.astype(np.float32), "w": even.astype(np.float32)})
    for method in ("obs", "magnitude"):
        result, _ = sparsify(model.clone(), images((16,)), ratio=0.4, allocation="global", method=method, **ALL)
        (first,) = result.figures["layers"]  # the second keeps all
        assert first["zeros"] == round(0.4 * 512) == result.figures["zeros"]


def test_batchnorm_is_folded_first() -> None:
    model = residual()
    sparsify(model, images((3, 8, 8)), ratio=0.5, **ALL)
    assert all(node.op_type != "BatchNormalization" for node in model.graph)


def test_the_same_samples_give_the_same_bytes() -> None:
    made = []
    for _ in range(2):
        model = residual()
        sparsify(model, images((3, 8, 8)), pattern=HALF, **ALL)
        made.append(to_proto(model).SerializeToString(deterministic=True))
    assert made[0] == made[1]


def test_synthesised_samples_teach_nothing() -> None:
    model, plain = residual(), residual()
    _, reasons = sparsify(model, None, ratio=0.5, **ALL)
    assert any("without --calib there are no real samples" in told for told in reasons)
    sparsify(plain, None, ratio=0.5, method="magnitude", repair="none", **ALL)
    assert to_proto(model).SerializeToString() == to_proto(plain).SerializeToString()


def test_a_missing_name_in_skip_is_told() -> None:
    _, reasons = sparsify(residual(), images((3, 8, 8)), ratio=0.5, skip="nobody*", **ALL)
    assert "skip: no node with a weight is called 'nobody*'" in reasons


def test_weights_of_constant_nodes() -> None:
    weight = helper.make_tensor("w", onnx.TensorProto.FLOAT, [8, 8], np.random.default_rng(0).standard_normal(64))
    proto = to_proto(build("g (float[N,8] x) => (float[N,8] y) { y = MatMul(x, w) }", {"w": (8, 8)}))
    del proto.graph.initializer[:]
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=weight))
    model = ir.from_proto(proto)
    sparsify(model, images((8,)), ratio=0.5, **ALL)
    assert zeros(weights(model)["y"]) == 0.5


@pytest.mark.filterwarnings("ignore:overflow")
def test_data_that_cannot_be_fitted_to() -> None:
    model = build("g (float[N,8] x) => (float[N,8] y) { a = Exp(x) b = Exp(a) y = MatMul(b, w) }", {"w": (8, 8)})
    _, reasons = sparsify(model, images((8,)) + 5, ratio=0.5, **ALL)
    assert any("not refitted: its data is not finite" in told for told in reasons)
    assert zeros(weights(model)["y"]) == 0.5


def test_a_shortcut_through_a_subgraph_that_reads_a_later_weight() -> None:
    text = """g (float[N,8] x) => (float[N,8] y) {
      a = MatMul(x, v)
      b = MatMul(x, w)
      s = ReduceSum<keepdims=0>(x)
      z = Constant<value_float=0.0>()
      c = Greater(s, z)
      d = If(c)<then_branch = t () => (float[N,8] p) { p = Relu(b) },
                else_branch = e () => (float[N,8] q) { q = Neg(b) }>
      y = Add(a, d)
    }"""
    model = build(text, {"v": (8, 8), "w": (8, 8)})
    result, _ = sparsify(model, images((8,)), ratio=0.5, **ALL)
    assert result.figures["refitted"] == 2
    assert all(zeros(weight) == 0.5 for weight in weights(model).values())
