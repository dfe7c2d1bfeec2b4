"""Narrowed models: the widths that were asked for, the same outputs where the channels are dead."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnxedge_passes.prune.prune import Prune
from topologies import RESIDUAL, RESIDUAL_WEIGHTS, build, images

from onnxedge.api import Context, Session, UserError, Variations, from_arrays, model_inputs
from onnxedge.registry import find_target


def variations(model: ir.Model, thorough: bool = False, **options: object) -> Variations:
    inputs = model_inputs(model)
    shape = tuple(d if isinstance(d, int) else 1 for d in inputs[0].shape)[1:]
    data = from_arrays(inputs, {inputs[0].name: images(shape, 32)})
    context = Context(find_target("ort-cpu"), data, original=model)
    return Prune(**options).variations(model, context, thorough=thorough)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"repair": "none", "importance": "l2"}, {"thorough": True}])
def test_one_part_is_narrowed_alone(options: dict[str, object]) -> None:
    model = build(RESIDUAL, RESIDUAL_WEIGHTS)
    found = variations(model, multiple=1, **options)  # type: ignore[arg-type]
    whole = Session(build(RESIDUAL, RESIDUAL_WEIGHTS))
    feed = {whole.inputs[0].name: images(tuple(whole.inputs[0].shape[1:]), 2, seed=1)}  # type: ignore[arg-type]
    for number, part in enumerate(found.parts):
        kept = found.kept(number, 0.5)
        assert kept == pytest.approx(part.size / 2, abs=1)
        narrow = found.model(number, 0.5)
        assert [a.shape for a in Session(narrow).run(feed).values()] == [a.shape for a in whole.run(feed).values()]
    assert found.kept(None, 0.5) == sum(found.kept(number, 0.5) for number in range(len(found.parts)))
    assert _weights(found.model(None, 0.5)) < _weights(found.model(0, 0.5)) < _weights(model)


def test_the_refit_helps() -> None:
    feed: dict[str, np.ndarray] = {}
    errors = []
    for repair in ("none", "least-squares"):
        model = build(RESIDUAL, RESIDUAL_WEIGHTS)
        whole = Session(model)
        feed = {whole.inputs[0].name: images(tuple(whole.inputs[0].shape[1:]), 8, seed=1)}  # type: ignore[arg-type]
        name, wanted = next(iter(whole.run(feed).items()))
        narrow = variations(model, repair=repair, multiple=1).model(1, 0.5)
        errors.append(float(((Session(narrow).run(feed)[name] - wanted) ** 2).mean()))
    assert errors[1] < errors[0]


def test_a_model_of_no_free_channels_is_refused() -> None:
    text = "g (float[N, 4] x) => (float[N, 3] y) { y = MatMul(x, w) }"
    with pytest.raises(UserError, match="no channels of this model can be removed; onnxedge inspect --groups"):
        variations(build(text, {"w": (4, 3)}))


def _weights(model: ir.Model) -> int:
    return sum(value.const_value.size for value in model.graph.initializers.values() if value.const_value is not None)


STORED = """g (float[N,4,6,6] x) => (float[N,3] y) {
  q = QuantizeLinear(x, s, z)
  d = DequantizeLinear(q, s, z)
  w = DequantizeLinear<axis=0>(wq, ws)
  a = Conv(d, w)
  r = Relu(a)
  p = GlobalAveragePool(r)
  f = Flatten(p)
  y = Gemm(f, v)
}"""


def test_weights_stored_as_integers_stay_so_in_each_variation() -> None:
    rng = np.random.default_rng(0)
    held = {"s": np.float32(0.05), "z": np.int8(0), "ws": rng.uniform(0.01, 0.02, 8).astype(np.float32)}
    held["wq"] = rng.integers(-127, 128, (8, 4, 1, 1)).astype(np.int8)
    model = build(STORED, {"v": (8, 3)}, {name: np.asarray(array) for name, array in held.items()})
    found = variations(model, multiple=1)
    for ratio, width in ((0.5, 4), (0.25, 2), (0.75, 6)):
        narrow = found.model(0, ratio)
        scales = [node.inputs[1] for node in narrow.graph if node.op_type == "DequantizeLinear"]
        assert (width,) in [tuple(s.const_value.shape.numpy()) for s in scales if s is not None and s.const_value]
        assert Session(narrow).run({"x": images((4, 6, 6), 2)})["y"].shape == (2, 3)
