"""Engine ort-training in its own process: right gradients, the same bits after a kill, one line where it is absent."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from networks import NETWORKS
from onnxedge_passes.train import PrepareTraining
from onnxedge_passes.train.prepare_training import Trainable
from onnxedge_passes.train.weights import put_weights

from onnxedge.api import Array, Composed, Context, HardLabels, Regression, Session, UserError, compose, refresh_scopes
from onnxedge.cli import main
from onnxedge.model.io import load
from onnxedge.target import load_packaged_target
from onnxedge.training import overlay
from onnxedge.training.engine import train
from onnxedge.training.optimizers import Optimizer
from onnxedge.training.settings import Settings
from onnxedge.verify import infer_shapes

LINEAR = """g (float[N, 3] x) => (float[N, 2] y) <float[3, 2] w, float[2] b> { m = MatMul(x, w) y = Add(m, b) }"""
needs_package = pytest.mark.skipif(
    overlay.find_environment() is None, reason="needs onnxruntime-training: run `onnxedge training install`"
)


def parsed(text: str, opset: int) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
    rng = np.random.default_rng(0)
    for info in proto.graph.value_info:
        dims = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        array = rng.standard_normal(dims).astype(np.float32) * (0.5 if len(dims) > 1 else 1)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
    del proto.graph.value_info[:]
    return ir.serde.deserialize_model(proto)


def prepared(model: ir.Model) -> Trainable:
    target = load_packaged_target("onnxedge.targets", "ort-cpu")  # type: ignore[arg-type]
    infer_shapes(model)
    refresh_scopes(model)
    return PrepareTraining().prepare(model, Context(target, None, original=model.clone()))[1]


def data(shape: tuple[int, ...], output: tuple[int, ...], count: int = 16) -> dict[str, Array]:
    rng = np.random.default_rng(1)
    draw = ((name, rng.standard_normal((count, *dims))) for name, dims in (("x", shape), ("targets", output)))
    return {name: array.astype(np.float32) for name, array in draw}


def linear() -> tuple[Composed, dict[str, Array]]:
    model = parsed(LINEAR, 17)
    prepared(model)
    return compose(model, [Regression(output="y")]), data((3,), (2,), 64)


def loss(composed: Composed, feeds: Mapping[str, Array], changes: Mapping[str, Array]) -> float:
    model = composed.model.clone()
    put_weights(model, changes)
    outputs = Session(model, level="disable").run({**feeds, composed.weights: composed.schedule[0]})
    return float(next(iter(outputs.values())))


@needs_package
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_finite_differences(name: str, tmp_path: Path) -> None:
    """One step of plain SGD is the gradient; along it the loss falls as the gradient says, for each weight."""
    opset, shape, text = NETWORKS[name]
    original = parsed(text, opset)
    model = original.clone()
    trainable = prepared(model)
    assert not trainable.untrained
    feeds = {"x": data(shape, ())["x"]}
    feeds["targets"] = next(iter(Session(original).run(feeds).values())) + 1
    composed = compose(model, [Regression(output="y")])
    plain = Settings(optimizer="sgd", momentum=0, warmup=0, clip=0, weight_decay=0, epochs=1, batch=16, lr=1)
    done = train(composed, feeds, tmp_path / "job", plain, weights=list(trainable.weights))
    before = {name: _array(original, name) for name in trainable.weights}
    assert len(before) >= 5
    for weight, array in before.items():
        gradient = array - done.values[weight]
        norm = float(np.linalg.norm(gradient))
        assert norm > 0
        step = gradient / norm * (2e-3 * max(float(np.linalg.norm(array)), 1.0))
        slope = loss(composed, feeds, {weight: array + step}) - loss(composed, feeds, {weight: array - step})
        slope /= 2 * float(np.linalg.norm(step))
        assert slope == pytest.approx(norm, rel=0.03, abs=3e-4), weight
    assert put_weights(original, {k: v for k, v in done.values.items() if k in trainable.weights}) == len(before)


@needs_package
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_steps_are_those_of_numpy(optimizer: str, tmp_path: Path) -> None:
    composed, feeds = linear()
    settings = Settings(optimizer=optimizer, epochs=2, batch=16, lr=0.05, clip=0.5, weight_decay=0.1)  # type: ignore[arg-type]
    done = train(composed, feeds, tmp_path, settings, weights=["w", "b"], spared=["b"])
    steps = Optimizer(dataclasses.asdict(settings), ["b"], 8)
    values, losses = {name: _array(composed.model, name) for name in "wb"}, []
    for epoch in range(2):
        order = np.random.default_rng([0, epoch]).permutation(64)
        for at in range(0, 64, 16):
            rows = np.sort(order[at : at + 16])
            x, apart = feeds["x"][rows], feeds["x"][rows] @ values["w"] + values["b"] - feeds["targets"][rows]
            losses.append(float((apart**2).mean()))
            slope = 2 * apart / apart.size
            values = steps.step(values, {"w": x.T @ slope, "b": slope.sum(0)})
    np.testing.assert_allclose(done.losses, np.reshape(losses, (2, 4)).mean(1), rtol=1e-5)
    for name, value in values.items():
        np.testing.assert_allclose(done.values[name], value, atol=1e-5)


@needs_package
def test_statistics_follow_the_batches(fixtures: Path, tmp_path: Path) -> None:
    original = load(fixtures / "digits_resnet.onnx")
    model = original.clone()
    trainable = prepared(model)
    found = np.load(fixtures / "digits_train.npz")
    name, output = model.graph.inputs[0].name or "", model.graph.outputs[0].name or ""
    feeds = {name: found["x"][:64].astype(np.float32) / 255, "labels": found["y"][:64].astype(np.int64)}
    settings = Settings(epochs=1, batch=32, lr=1e-4)
    composed = compose(model, [HardLabels(output=output)])
    done = train(composed, feeds, tmp_path, settings, weights=list(trainable.weights), statistics=trainable.statistics)
    assert set(done.values) == {*trainable.weights, *trainable.statistics}
    changed = [key for key, value in done.values.items() if not np.array_equal(value, _array(original, key))]
    assert len(changed) == len(done.values)
    put_weights(original, done.values)
    assert Session(original).run({name: feeds[name]})[output].shape == (64, 10)


@needs_package
def test_what_goes_wrong_is_one_line(tmp_path: Path) -> None:
    composed, feeds = linear()
    with pytest.raises(UserError, match=r"the loss is (inf|nan) in epoch"):
        train(composed, feeds, tmp_path, Settings(optimizer="sgd", lr=1e6, clip=0, epochs=50), weights=["w", "b"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": ["nothing"]}, "no initializer 'nothing'"),
        ({"weights": []}, "nothing to train"),
        ({"feeds": {"x": np.ones((3, 3), np.float32)}}, "no data for input 'targets'"),
        ({"feeds": {"x": np.ones((3, 3)), "targets": np.ones((4, 2))}}, "different numbers of samples"),
    ],
)
def test_jobs_that_do_not_fit(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    composed, feeds = linear()
    given = {"weights": ["w"], "where": overlay.Environment("python", tmp_path), **change}
    with pytest.raises(UserError, match=message):
        train(composed, given.pop("feeds", feeds), tmp_path, Settings(), **given)


@pytest.mark.parametrize(
    ("name", "value"), [("optimizer", "adam"), ("lr", -1.0), ("batch", 0), ("momentum", 1.0), ("minutes", float("nan"))]
)
def test_settings_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"training: {name}="):
        Settings(**{name: value})


def test_the_rate_rises_and_falls() -> None:
    steps = Optimizer(dataclasses.asdict(Settings(lr=1, warmup=0.1)), (), 100)
    rates = [steps.rate(step) for step in range(100)]
    assert rates[0] == 0.1
    assert max(rates) == rates[9] == rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] < 1e-3


def test_absence_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ONNXEDGE_TRAINING", raising=False)
    monkeypatch.setenv("ONNXEDGE_CACHE", str(tmp_path))
    done = CliRunner().invoke(main, ["training"])
    assert done.exit_code == 2
    assert done.output.strip().endswith("is not installed; run `onnxedge training install`")
    monkeypatch.setenv("ONNXEDGE_TRAINING", str(tmp_path))
    with pytest.raises(UserError, match="holds no onnxruntime"):
        overlay.environment()


def test_installing_fails_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONNXEDGE_CACHE", str(tmp_path))
    monkeypatch.setattr(overlay, "PACKAGE", "onnxedge-no-such-package")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    done = CliRunner().invoke(main, ["training", "install"])
    assert done.exit_code == 2
    assert "pip failed: Could not find a version" in done.output
    assert not (tmp_path / "training" / "environment.json").exists()
    monkeypatch.setattr(overlay, "_version", lambda _: (3, 13))
    done = CliRunner().invoke(main, ["training", "install"])
    assert "cannot be used with Python 3.13; name one of 3.10 to 3.12" in done.output


def _array(model: ir.Model, name: str) -> Array:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()
