"""What the tests of passes share: ONNX text before and after, equal outputs in ONNX Runtime, engines of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from onnxedge.api import Array, Context, Pass, Result, Session, constant_tensor, refresh_scopes, to_proto
from onnxedge.target import load_packaged_target
from onnxedge.training.overlay import find_environment
from onnxedge.verify import infer_shapes

_TRAINING_PACKAGE = find_environment()


def parse(text: str, opset: int = 17, ir_version: int = 8) -> ir.Model:
    """Return a model from the text of its graph."""
    head = f'<ir_version: {ir_version}, opset_import: ["": {opset}, "com.microsoft": 1, "acme": 1]>'
    return ir.serde.deserialize_model(onnx.parser.parse_model(f"{head} {text}"))


def context_for(model: ir.Model, target: str = "ort-cpu") -> Context:
    """Return a context without data on a packaged target."""
    return Context(load_packaged_target("onnxedge.targets", target), None, original=model.clone())  # type: ignore[arg-type]


def apply(pass_: Pass, model: ir.Model, target: str = "ort-cpu", *, infer: bool = True) -> tuple[Result, list[str]]:
    """Run a pass on a model in place, as the manager does, and return its result and the reasons it gave."""
    context = context_for(model, target)
    context.begin(pass_.name)
    if infer:
        infer_shapes(model)
    refresh_scopes(model)
    result = pass_.run(model, context)
    onnx.checker.check_model(to_proto(model))
    return result, [note.reason for note in context.notes]


def canonical(model: ir.Model) -> list[str]:
    """Return one line for each node, with values numbered and constants spelled out, so that names do not matter."""
    names: dict[int, str] = {}
    graphs = (model.graph, *(function.graph for function in model.functions.values()))
    return [line for graph in graphs for line in _lines(graph, names)]


def _lines(graph: ir.Graph, names: dict[int, str]) -> list[str]:
    names.update((id(value), value.name or "") for value in graph.inputs)
    lines: list[str] = []
    for node in graph:
        if node.op_type == "Constant" and constant_tensor(node.outputs[0]) is not None:
            continue
        inputs = [_operand(value, names) for value in node.inputs]
        while inputs and inputs[-1] == "_":
            inputs.pop()
        attributes = [f"{name}={_attribute(a, names)}" for name, a in sorted(node.attributes.items())]
        names.update((id(value), f"%{len(names)}") for value in node.outputs)
        lines.append(f"{node.domain}:{node.op_type}<{','.join(attributes)}>({', '.join(inputs)})")
    return [*lines, "return " + ", ".join(f"{v.name}={_operand(v, names)}" for v in graph.outputs)]


def _attribute(attribute: ir.Attr, names: dict[int, str]) -> str:
    if attribute.type == ir.AttributeType.GRAPH:
        return str(_lines(attribute.as_graph(), names))
    if attribute.type == ir.AttributeType.FLOAT:
        return f"{attribute.as_float():.5g}"
    return str(list(attribute.value) if isinstance(attribute.value, tuple | list) else attribute.value)


def _operand(value: ir.Value | None, names: dict[int, str]) -> str:
    if value is None:
        return "_"
    tensor = constant_tensor(value)
    if tensor is not None:
        digits = np.round(tensor.numpy().astype(np.float64), 4) + 0.0
        return f"{tensor.dtype.name}{list(tensor.shape)}{digits.ravel().tolist()}"
    return names.get(id(value), value.name or "?")


def sample(session: Session, seed: int = 0) -> dict[str, Array]:
    """Return seeded inputs; unknown dimensions are 2, integers small."""
    rng = np.random.default_rng(seed)
    feed: dict[str, Array] = {}
    for spec in session.inputs:
        shape = [d if isinstance(d, int) else 2 for d in spec.shape]
        if spec.dtype.startswith("float"):
            feed[spec.name] = np.asarray(rng.standard_normal(shape) * 2).astype(spec.dtype)
        elif spec.dtype == "bool":
            feed[spec.name] = np.asarray(rng.random(shape) > 0.5)
        else:
            feed[spec.name] = np.asarray(rng.integers(0, 4, shape)).astype(spec.dtype)
    return feed


def assert_same_outputs(before: ir.Model, after: ir.Model, *, exact: bool, seed: int = 0) -> None:
    """Assert equal outputs on a seeded input: bit by bit, or within 1e-5 of the largest element."""
    first, second = Session(before, level="disable"), Session(after, level="disable")
    feed = sample(first, seed)
    mine, other = first.run(feed), second.run(feed)
    assert list(mine) == list(other)
    for name, array in mine.items():
        assert array.dtype == other[name].dtype
        assert array.shape == other[name].shape
        if exact or array.dtype.kind != "f":
            np.testing.assert_array_equal(array, other[name])
        else:
            scale = float(np.abs(array[np.isfinite(array)]).max(initial=1.0))
            tolerance = 1e-5 if array.dtype.itemsize >= 4 else 5e-3
            np.testing.assert_allclose(array, other[name], rtol=0, atol=tolerance * scale)


Check = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time no regions in int8: what a test asserts must not hang on how busy the machine is."""
    monkeypatch.setattr("onnxedge_passes.quantize.timing._latency", lambda *_: None)


@pytest.fixture
def check() -> Check:
    """Return a function that applies a pass to a graph's text and compares with the text it should become.

    It asserts, too, that outputs stay (bit by bit for an exact pass) and that a second run rewrites nothing. With no
    text after, the graph must stay as it is. It returns the reasons that the pass gave.
    """

    def run(pass_: Pass, before: str, after: str | None = None, **options: Any) -> list[str]:
        target, runs, infer = options.pop("target", "ort-cpu"), options.pop("runs", True), options.pop("infer", True)
        original, model = parse(before, **options), parse(before, **options)
        result, reasons = apply(pass_, model, target, infer=infer)
        expected = parse(after if after is not None else before, **options)
        assert canonical(model) == canonical(expected)
        assert bool(result.rewrites) == (after is not None)
        if runs:
            assert_same_outputs(original, model, exact=pass_.accuracy == "exact")
        assert apply(pass_, model, target, infer=infer)[0].rewrites == 0
        return reasons

    return run


@pytest.fixture
def rewritten() -> Callable[..., tuple[ir.Model, list[str]]]:
    """Return a function that applies a pass to a graph's text and returns the model and the reasons given."""

    def run(pass_: Pass, text: str, *, infer: bool = True, **options: Any) -> tuple[ir.Model, list[str]]:
        model = parse(text, **options)
        return model, apply(pass_, model, infer=infer)[1]

    return run


@pytest.fixture
def applied() -> Callable[[Pass, ir.Model, str], tuple[Result, list[str]]]:
    """Return :func:`apply`: run a pass on a model in place, with its result and the reasons it gave."""
    return apply


@pytest.fixture
def training_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep runs and teachers apart, and take the engine that is always there."""
    monkeypatch.delenv("ONNXEDGE_TRAINING", raising=False)
    monkeypatch.setenv("ONNXEDGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["ort", "ort-training"])
def engine(request: pytest.FixtureRequest, training_cache: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of an engine, each in turn; skip the package's where it is not installed."""
    name = str(request.param)
    if name == "ort-training":
        if _TRAINING_PACKAGE is None:
            pytest.skip("needs onnxruntime-training: run `onnxedge training install`")
        monkeypatch.setenv("ONNXEDGE_TRAINING", str(_TRAINING_PACKAGE.overlay))
    return name
