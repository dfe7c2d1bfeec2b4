"""Importance by gradients: what it says of a unit is how the loss changes when the unit shrinks."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnxedge_passes.prune.feeds import Feeds
from onnxedge_passes.prune.prune import analyse, prepare
from onnxedge_passes.prune.taylor import Slopes
from test_prune import context_of, prune
from topologies import RESIDUAL, RESIDUAL_WEIGHTS, build, images

from onnxedge.api import Array, Session, Units, UserError, find_importance, from_arrays

LINEAR = "g (float[N, 3] x) => (float[N, 2] y) { a = MatMul(x, w1) b = Relu(a) y = MatMul(b, w2) }"
LINEAR_WEIGHTS = {"w1": (3, 6), "w2": (6, 2)}


def margin(scores: Array, labels: Array) -> Array:
    """Return for two classes the other one's score, less the label's."""
    rows = np.arange(len(scores))
    return np.asarray(scores[rows, 1 - labels].astype(np.float64) - scores[rows, labels])


def slopes_of(model: ir.Model, x: Array, labels: Array | None) -> list[Array]:
    context = context_of(model, x)
    prepare(model, context)
    groups = analyse(model, context)
    data = from_arrays(Session(model).inputs, {"x": x}, labels)
    slopes = Slopes(groups, Feeds(data, 4), context)
    return [slopes.of(group) for group in groups.free]


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("probabilities", [True, False])
def test_slopes_are_those_of_the_loss(labelled: bool, probabilities: bool) -> None:
    """Each sample's loss, when what all readers get of a unit is made a little smaller and larger.

    Of two classes the margin of the logits is that of the logarithms of their probabilities.
    """
    text = LINEAR.replace("y = MatMul(b, w2)", "z = MatMul(b, w2) y = Softmax(z)") if probabilities else LINEAR
    model, output = build(text, LINEAR_WEIGHTS), "y"
    x = np.random.default_rng(2).standard_normal((10, 3)).astype(np.float32)
    labels = np.random.default_rng(3).integers(0, 2, 10) if labelled else None
    before = Session(model).run({"x": x})["y"]
    wanted = labels if labels is not None else before.argmax(axis=1)
    (found,) = slopes_of(model, x, labels)
    assert found.shape == (6, 10)
    if probabilities:
        model.graph.outputs[:] = [next(node for node in model.graph if node.op_type == "Softmax").inputs[0]]
        output = model.graph.outputs[0].name or ""
    name = next(v.name for v in model.graph.initializers.values() if v.shape == ir.Shape([6, 2]))
    weight = model.graph.initializers[name or ""]
    assert weight.const_value is not None
    kept, step = weight.const_value.numpy().copy(), 1e-2
    for unit in range(6):
        losses = []
        for sign in (1, -1):
            changed = kept.copy()
            changed[unit] *= 1 + sign * step
            weight.const_value = ir.tensor(changed, name=name)
            losses.append(margin(Session(model).run({"x": x})[output], wanted))
        np.testing.assert_allclose(found[unit], (losses[0] - losses[1]) / (2 * step), rtol=2e-2, atol=1e-4)


def test_a_unit_that_does_nothing_goes_first() -> None:
    model = build(LINEAR, LINEAR_WEIGHTS)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tuple(tensor.shape) == (6, 2):
            array = tensor.numpy().copy()
            array[[1, 4]] = 0
            value.const_value = ir.tensor(array, name=value.name)
    x = np.random.default_rng(2).standard_normal((16, 3)).astype(np.float32)
    before = Session(model).run({"x": x})["y"]
    prune(model, x, ratio=4 / 6, importance="taylor", repair="none", multiple=1)
    widths = {tuple(v.shape) for v in model.graph.initializers.values() if v.shape is not None and len(v.shape) == 2}
    assert widths == {(3, 4), (4, 2)}
    np.testing.assert_allclose(Session(model).run({"x": x})["y"], before, rtol=1e-5, atol=1e-5)


def test_residual_sums_and_convolutions() -> None:
    """Units that several layers read; outputs that are no scores have a loss, too."""
    model = build(RESIDUAL, RESIDUAL_WEIGHTS)
    found = slopes_of(model, images((3, 8, 8), 12), None)
    assert all(np.isfinite(part).all() and (np.abs(part).sum(axis=1) > 0).any() for part in found)


def test_no_gradient_is_one_line() -> None:
    model = build(LINEAR.replace("y = MatMul(b, w2)", "c = MatMul(b, w2) y = Floor(c)"), LINEAR_WEIGHTS)
    with pytest.raises(UserError, match="importance=taylor: no gradient for Floor; use obs"):
        slopes_of(model, np.ones((8, 3), np.float32), None)


def test_others_are_told_that_gradients_are_missing() -> None:
    units = Units((), (), (), (), np.random.default_rng(0))
    with pytest.raises(UserError, match="needs gradients"):
        find_importance("taylor")(units)


def test_steps_look_again() -> None:
    """Each of two steps takes gradients of what the one before has left, and the model is cut as asked for."""
    model = build(RESIDUAL, RESIDUAL_WEIGHTS)
    result, _ = prune(model, images((3, 8, 8), 24), macs=0.6, importance="taylor", steps=2, multiple=1)
    assert result.figures["macs_after"] <= 0.62 * result.figures["macs_before"]
