"""Engine ort: gradients and steps are the other engine's and NumPy's; the same bits after a kill."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import reference
from networks import NETWORKS
from test_worker import data, linear, loss, needs_package, parsed, prepared

from onnxedge.api import (
    Array,
    Composed,
    HardLabels,
    Regression,
    Session,
    Trained,
    TrainingSettings,
    UserError,
    compose,
    load,
    to_proto,
    train,
)
from onnxedge.training.engine import choose_engine
from onnxedge.training.optimizers import Optimizer
from onnxedge.training.overlay import Environment
from onnxedge.training.step import build_step

PLAIN = TrainingSettings(optimizer="sgd", momentum=0, warmup=0, clip=0, weight_decay=0, epochs=1, batch=16, lr=1)


def array(model: ir.Model, name: str) -> Array:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_networks(name: str, tmp_path: Path) -> None:
    """One step of plain SGD is the gradient; along it the loss falls as the gradient says, for each weight."""
    opset, shape, text = NETWORKS[name]
    original = parsed(text, opset)
    model = original.clone()
    trainable = prepared(model)
    feeds = {"x": data(shape, ())["x"]}
    feeds["targets"] = next(iter(Session(original).run(feeds).values())) + 1
    composed = compose(model, [Regression(output="y")])
    done = train(composed, feeds, tmp_path / "job", PLAIN, weights=list(trainable.weights), engine="ort")
    before = {name: array(original, name) for name in trainable.weights}
    assert len(before) >= 5
    for weight, value in before.items():
        gradient = value - done.values[weight]
        norm = float(np.linalg.norm(gradient))
        assert norm > 0
        step = gradient / norm * (2e-3 * max(float(np.linalg.norm(value)), 1.0))
        slope = loss(composed, feeds, {weight: value + step}) - loss(composed, feeds, {weight: value - step})
        slope /= 2 * float(np.linalg.norm(step))
        assert slope == pytest.approx(norm, rel=0.03, abs=3e-4), weight


ENCODER = """g (int64[N, 6] ids, float[N, 6] mask) => (float[N, 3] y)
    <float[9, 8] table, float[6, 8] place, float[8] g1, float[8] b1, float[8, 24] qkv, float[24] bias,
     float[8, 8] merge, float[8] g2, float[8] b2, float[8, 12] wide, float[12] wb, float[12, 8] back, float[8, 3] head,
     int64 first = {0}, int64[2] ax = {1, 2}, int64[5] apart = {0, 6, 3, 2, 4}, int64[3] whole = {0, 6, 8},
     float one = {1}, float low = {-1000}, float root = {2}, int64[3] parts = {1, 1, 1}, int64[1] z = {0}> {
        e = Gather(table, ids)
        p = Add(e, place)
        n = LayerNormalization(p, g1, b1)
        q0 = MatMul(n, qkv)
        q1 = Add(q0, bias)
        q2 = Reshape(q1, apart)
        q3 = Transpose<perm=[2, 0, 3, 1, 4]>(q2)
        qa, ka, va = Split<axis=0>(q3, parts)
        q = Squeeze(qa, z)
        k = Squeeze(ka, z)
        v = Squeeze(va, z)
        kt = Transpose<perm=[0, 1, 3, 2]>(k)
        s0 = MatMul(q, kt)
        s1 = Div(s0, root)
        inverse = Sub(one, mask)
        hidden = Mul(inverse, low)
        hide = Unsqueeze(hidden, ax)
        s2 = Add(s1, hide)
        s3 = Softmax(s2)
        a0 = MatMul(s3, v)
        a1 = Transpose<perm=[0, 2, 1, 3]>(a0)
        a2 = Reshape(a1, whole)
        a3 = MatMul(a2, merge)
        r1 = Add(a3, p)
        n2 = LayerNormalization(r1, g2, b2)
        f0 = MatMul(n2, wide)
        f1 = Add(f0, wb)
        f2 = Gelu(f1)
        f3 = MatMul(f2, back)
        r2 = Add(r1, f3)
        c = Gather<axis=1>(r2, first)
        t = Tanh(c)
        y = MatMul(t, head)
    }"""


def test_an_encoder_with_embeddings(tmp_path: Path) -> None:
    """Weights of an encoder as in BERT, those of rows that no sample reads apart: their gradient is 0."""
    model = parsed(ENCODER, 20)
    trainable = prepared(model)
    assert len(trainable.weights) == 13
    rng = np.random.default_rng(4)
    feeds = {"ids": rng.integers(0, 8, (16, 6)), "mask": (rng.random((16, 6)) < 0.8).astype(np.float32)}
    feeds |= {"labels": rng.integers(0, 3, 16)}
    composed = compose(model, [HardLabels(output="y")])
    done = train(composed, feeds, tmp_path / "job", PLAIN, weights=list(trainable.weights), engine="ort")
    assert np.array_equal(done.values["table"][8], array(model, "table")[8])
    for weight in trainable.weights:
        value = array(model, weight)
        gradient = value - done.values[weight]
        norm = float(np.linalg.norm(gradient))
        assert norm > 0
        step = gradient / norm * (2e-3 * max(float(np.linalg.norm(value)), 1.0))
        slope = loss(composed, feeds, {weight: value + step}) - loss(composed, feeds, {weight: value - step})
        assert slope / (2 * float(np.linalg.norm(step))) == pytest.approx(norm, rel=0.03, abs=3e-4), weight


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_steps_are_those_of_numpy(optimizer: str, accumulate: int, tmp_path: Path) -> None:
    composed, feeds = linear()
    settings = TrainingSettings(
        optimizer=optimizer,  # type: ignore[arg-type]
        epochs=2, batch=16, lr=0.05, clip=0.5, weight_decay=0.1, accumulate=accumulate,
    )  # fmt: skip
    done = train(composed, feeds, tmp_path, settings, weights=["w", "b"], spared=["b"], engine="ort")
    steps = Optimizer(dataclasses.asdict(settings), ["b"], 8 // accumulate)
    values, losses = {name: array(composed.model, name) for name in "wb"}, []
    for epoch in range(2):
        order = np.random.default_rng([0, epoch]).permutation(64)
        for at in range(0, 64, 16 * accumulate):
            sums = {name: np.zeros_like(value) for name, value in values.items()}
            for part in range(accumulate):
                rows = np.sort(order[at + 16 * part : at + 16 * (part + 1)])
                x, apart = feeds["x"][rows], feeds["x"][rows] @ values["w"] + values["b"] - feeds["targets"][rows]
                losses.append(float((apart**2).mean()))
                slope = 2 * apart / apart.size / accumulate
                sums = {"w": sums["w"] + x.T @ slope, "b": sums["b"] + slope.sum(0)}
            values = steps.step(values, sums)
    np.testing.assert_allclose(done.losses, np.reshape(losses, (2, 4)).mean(1), rtol=1e-6)
    for name, value in values.items():
        np.testing.assert_allclose(done.values[name], value, atol=1e-6)


@pytest.mark.parametrize(
    ("engine", "accumulate"), [("ort", 1), ("ort", 2), pytest.param("ort-training", 1, marks=needs_package)]
)
def test_a_run_that_was_killed_goes_on_bit_by_bit(engine: Any, accumulate: int, tmp_path: Path) -> None:
    composed, feeds = linear()
    settings = TrainingSettings(epochs=4, batch=16, lr=0.05, accumulate=accumulate)

    def run(folder: str, listener: Callable[[Mapping[str, Any]], None]) -> Trained:
        where = tmp_path / folder
        return train(composed, feeds, where, settings, weights=["w", "b"], listener=listener, engine=engine)

    whole = run("whole", lambda _: None)

    def stop(line: Mapping[str, Any]) -> None:
        if line["kind"] == "epoch" and line["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("parts", stop)
    lines: list[Mapping[str, Any]] = []
    again = run("parts", lines.append)
    assert [line["kind"] for line in lines][:2] == ["ready", "resumed"]
    assert again.losses == whole.losses
    assert again.finished
    for name, value in whole.values.items():
        assert value.tobytes() == again.values[name].tobytes()


def digits(fixtures: Path) -> tuple[ir.Model, Composed, dict[str, Array], Any]:
    original = load(fixtures / "digits_resnet.onnx")
    model = original.clone()
    trainable = prepared(model)
    found = np.load(fixtures / "digits_train.npz")
    name, output = model.graph.inputs[0].name or "", model.graph.outputs[0].name or ""
    feeds = {name: found["x"][:64].astype(np.float32) / 255, "labels": found["y"][:64].astype(np.int64)}
    return original, compose(model, [HardLabels(output=output)]), feeds, trainable


def test_statistics_follow_the_batches(fixtures: Path, tmp_path: Path) -> None:
    """The first batch normalization sees ``0.9 old + 0.1 variance`` of its own input, and all others move."""
    original, composed, feeds, trainable = digits(fixtures)
    settings = TrainingSettings(epochs=1, batch=64, lr=0, weight_decay=0)
    options = {"weights": list(trainable.weights), "statistics": trainable.statistics, "engine": "ort"}
    done = train(composed, feeds, tmp_path, settings, **options)
    first = next(node for node in composed.model.graph if node.op_type == "BatchNormalization")
    seen, (mean, variance) = first.inputs[0], (value.name or "" for value in first.inputs[3:5])  # type: ignore[union-attr]
    assert seen is not None
    looked = composed.model.clone()
    looked.graph.outputs[:] = [value for node in looked.graph for value in node.outputs if value.name == seen.name]
    x = next(iter(Session(looked).run({**feeds, composed.weights: composed.schedule[0]}).values())).astype(np.float64)
    wanted = {mean: x.mean((0, 2, 3)), variance: x.var((0, 2, 3))}
    for key, batch in wanted.items():
        np.testing.assert_allclose(done.values[key], 0.9 * array(original, key) + 0.1 * batch, rtol=1e-5, atol=1e-6)
    for key in trainable.statistics:
        assert not np.array_equal(done.values[key], array(original, key))
    for key in trainable.weights:
        assert np.array_equal(done.values[key], array(original, key))


def test_statistics_go_on_bit_by_bit_on_two_threads(fixtures: Path, tmp_path: Path) -> None:
    _, composed, feeds, trainable = digits(fixtures)
    settings = TrainingSettings(epochs=3, batch=16, threads=2)
    options: dict[str, Any] = {"weights": list(trainable.weights), "statistics": trainable.statistics, "engine": "ort"}
    whole = train(composed, feeds, tmp_path / "whole", settings, **options)

    def stop(line: Mapping[str, Any]) -> None:
        if line["kind"] == "epoch" and line["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(composed, feeds, tmp_path / "parts", settings, listener=stop, **options)
    again = train(composed, feeds, tmp_path / "parts", settings, **options)
    assert again.losses == whole.losses
    assert all(value.tobytes() == again.values[name].tobytes() for name, value in whole.values.items())


def test_frozen_statistics_stay(fixtures: Path, tmp_path: Path) -> None:
    original, composed, feeds, trainable = digits(fixtures)
    settings = TrainingSettings(epochs=1, batch=32, lr=1e-3)
    done = train(composed, feeds, tmp_path, settings, weights=list(trainable.weights), engine="ort")
    assert set(done.values) == set(trainable.weights)
    images, labels = feeds.values()
    logits = next(iter(Session(original).run({original.graph.inputs[0].name or "": images}).values()))
    before = reference.hard(logits, labels)
    step = train(
        composed, feeds, tmp_path / "one", dataclasses.replace(settings, batch=64),
        weights=list(trainable.weights), engine="ort",
    )  # fmt: skip
    assert step.losses[0] == pytest.approx(before, rel=1e-6, abs=1e-6)  # normalised as in inference
    assert any(not np.array_equal(done.values[key], array(original, key)) for key in trainable.weights)


def agree(composed: Composed, feeds: dict[str, Array], trainable: Any, folder: Path, batch: int) -> float:
    """Return the largest distance of both engines' gradients, relative to each weight's; plain SGD's step is one."""
    settings = dataclasses.replace(PLAIN, batch=batch)
    options: dict[str, Any] = {"weights": list(trainable.weights), "statistics": trainable.statistics}
    done = {
        name: train(composed, feeds, folder / name, settings, engine=name, **options)
        for name in ("ort", "ort-training")
    }
    assert done["ort"].losses[0] == pytest.approx(done["ort-training"].losses[0], rel=1e-6)
    worst = 0.0
    for name in trainable.weights:
        before = array(composed.model, name).astype(np.float64)
        ours, theirs = (before - done[engine].values[name] for engine in ("ort", "ort-training"))
        rounding = 1e-7 * np.linalg.norm(before)  # of the weight that the step was subtracted from
        worst = max(worst, float((np.linalg.norm(ours - theirs) - rounding) / (np.linalg.norm(theirs) + rounding)))
    for name in trainable.statistics:
        np.testing.assert_allclose(done["ort"].values[name], done["ort-training"].values[name], rtol=1e-4, atol=1e-6)
    return worst


@needs_package
def test_engines_agree(fixtures: Path, tmp_path: Path) -> None:
    _, composed, feeds, trainable = digits(fixtures)
    assert agree(composed, feeds, trainable, tmp_path, 64) < 1e-4


@needs_package
@pytest.mark.zoo
def test_engines_agree_on_resnet20(zoo: Path, tmp_path: Path) -> None:
    model = load(zoo / "models" / "cifar10_resnet20_bn.onnx")
    trainable = prepared(model)
    found = np.load(zoo / "data" / "cifar10_train.npz")
    x = (found["x"][:32].astype(np.float32) / 255 - 0.45) / 0.25
    x = np.ascontiguousarray(x.transpose(0, 3, 1, 2) if x.shape[-1] == 3 else x)
    composed = compose(model, [HardLabels(output=model.graph.outputs[0].name or "")])
    feeds = {model.graph.inputs[0].name or "": x, "labels": found["y"][:32].astype(np.int64)}
    assert agree(composed, feeds, trainable, tmp_path, 32) < 1e-4


def test_the_other_engine_is_taken_where_it_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ONNXEDGE_TRAINING", raising=False)
    monkeypatch.setenv("ONNXEDGE_CACHE", str(tmp_path))
    assert choose_engine() == ("ort", Environment(sys.executable, None))
    (tmp_path / "training" / "onnxruntime").mkdir(parents=True)
    record = {"python": sys.executable, "overlay": str(tmp_path / "training")}
    (tmp_path / "training" / "environment.json").write_text(json.dumps(record))
    assert choose_engine() == ("ort-training", Environment(sys.executable, tmp_path / "training"))
    assert choose_engine("ort")[0] == "ort"


def test_what_has_no_gradient_is_named(tmp_path: Path) -> None:
    text = "g (float[N, 3] x) => (float[N, 2] y) <float[3, 2] w> { f = Floor(x) m = MatMul(f, w) y = Floor(m) }"
    composed = compose(parsed(text, 17), [Regression(output="y")])
    with pytest.raises(UserError, match="ort: no gradient for Floor"):
        train(composed, data((3,), (2,)), tmp_path, PLAIN, weights=["w"], engine="ort")


def test_what_goes_wrong_is_one_line(tmp_path: Path) -> None:
    composed, feeds = linear()
    settings = TrainingSettings(optimizer="sgd", lr=1e6, clip=0, epochs=50)
    with pytest.raises(UserError, match=r"ort: the loss is (inf|nan) in epoch"):
        train(composed, feeds, tmp_path, settings, weights=["w", "b"], engine="ort")
    with pytest.raises(UserError, match="engine=torch is neither"):
        train(composed, feeds, tmp_path, settings, weights=["w", "b"], engine="torch")


def test_shapes_and_constants_are_folded() -> None:
    """A shape computed at run time, a statistic that two nodes follow, and names that begin as ours do."""
    text = """g (float[N, 4, 2] x) => (float[N, 8] onnxedge_grad_1)
        <float[4] s, float[4] b, float[4] m, float[4] v, int64 zero = {0}, int64[1] rest = {8}, int64[1] axes = {0}> {
            a = BatchNormalization(x, s, b, m, v) c = BatchNormalization(a, s, b, m, v)
            d = Shape(c) e = Gather(d, zero) f = Unsqueeze(e, axes) h = Concat<axis=0>(f, rest)
            onnxedge_grad_1 = Reshape(c, h)
        }"""
    model = parsed(text, 17)
    model.graph.initializers["v"].const_value = ir.tensor(np.ones(4, np.float32))
    composed = compose(model, [Regression(output="onnxedge_grad_1")])
    feeds = {"x": data((4, 2), ())["x"], "targets": data((), (8,))["targets"], composed.weights: composed.schedule[0]}
    settings = TrainingSettings(batch=16)
    step = build_step(
        to_proto(composed.model), feeds, trained=["s", "b"], statistics=["m", "v"], spared=["s", "b"], settings=settings
    )
    kinds = {node.op_type for node in step.model.graph.node}
    assert not kinds & {"Shape", "Unsqueeze"}
    onnx.checker.check_model(step.model)
    moments = [name for pair in step.moments.values() for name in pair]
    assert sorted(step.replaces.values()) == sorted(["s", "b", "m", "v", *moments])
    start = {name: array(composed.model, name) for name in "sbmv"}
    state = {name: np.zeros(shape, np.float32) for name, shape in step.state.items()}
    schedule = {step.schedule: np.array([0, 1, 1], np.float32)}
    found = Session(step.model).run({**feeds, **start, **state, **schedule})
    after = {place: found[name] for name, place in step.replaces.items()}
    x = feeds["x"].astype(np.float64)
    batch = x.mean((0, 2))
    followed = 0.9 * (0.9 * start["m"] + 0.1 * batch) + 0.1 * start["b"]
    np.testing.assert_allclose(after["m"], followed, rtol=1e-5, atol=1e-6)
    assert np.array_equal(after["s"], start["s"])
