"""Laws that hold for every built-in pass on every fixture: valid, idempotent, deterministic, same interface."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import onnxedge
from onnxedge.model.io import load
from onnxedge.model.serialize import to_proto
from onnxedge.registry import list_passes

pytestmark = pytest.mark.usefixtures("untimed")

FIXTURES = (
    "digits_resnet",
    "sequence_transformer",
    "detector",
    "branch_if",
    "local_function",
    "custom_domain",
    "external_data",
)
OWN = [(e.name, cls) for e, cls in list_passes() if cls is not None and e.distribution.startswith("onnxedge ")]
PASSES = [name for name, cls in OWN if not cls.trains]  # those need samples to train on; tests/passes/train has them
EXACT = [entry.name for entry, cls in list_passes() if cls is not None and cls.accuracy != "lossy"]


def interface(model: onnx.ModelProto) -> list[tuple[str, str]]:
    graph = model.graph
    inputs = [v for v in graph.input if v.name not in {i.name for i in graph.initializer}]
    return [(v.name, v.type.SerializeToString().hex()) for v in (*inputs, *graph.output)]


@pytest.mark.parametrize("fixture", FIXTURES)
@pytest.mark.parametrize("name", PASSES)
def test_valid_and_same_interface(name: str, fixture: str, fixtures: Path, tmp_path: Path) -> None:
    source = fixtures / f"{fixture}.onnx"
    result = onnxedge.optimize(source, name, output=tmp_path / "out.onnx")
    assert all(record.status != "rolled back" for record in result.report.passes), result.report.passes
    before, after = onnx.load(source), onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(after)
    assert interface(after) == interface(before)
    assert {p.key: p.value for p in before.metadata_props}.items() <= {
        p.key: p.value for p in after.metadata_props
    }.items()


@pytest.mark.parametrize("fixture", FIXTURES)
@pytest.mark.parametrize("name", EXACT)
def test_a_second_run_rewrites_nothing(name: str, fixture: str, fixtures: Path) -> None:
    first = onnxedge.optimize(fixtures / f"{fixture}.onnx", name)
    second = onnxedge.optimize(first.model, name)
    if first.report.passes[0].status == "applied":
        assert second.report.passes[0].rewrites == 0


@pytest.mark.parametrize("fixture", FIXTURES)
def test_the_main_job_is_deterministic(fixture: str, fixtures: Path) -> None:
    source = fixtures / f"{fixture}.onnx"
    runs = [to_proto(onnxedge.optimize(load(source), "prune,fuse,int8", seed=1).model) for _ in range(2)]
    assert runs[0].SerializeToString(deterministic=True) == runs[1].SerializeToString(deterministic=True)
