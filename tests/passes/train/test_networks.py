"""Networks of many kinds through one epoch: what was rewritten to be trained gives back weights of the original."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from students import parsed, run, weights, written

import onnxedge

sys.path.append(str(Path(__file__).parents[2] / "training"))
from networks import NETWORKS

pytestmark = pytest.mark.usefixtures("untimed")


@pytest.mark.parametrize("name", list(NETWORKS))
def test_one_epoch(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONNXEDGE_TRAINING", raising=False)  # the engine that is always there
    monkeypatch.setenv("ONNXEDGE_CACHE", str(tmp_path / "cache"))
    opset, shape, text = NETWORKS[name]
    model = written(parsed(text, opset), tmp_path / "model.onnx")
    x = np.random.default_rng(0).standard_normal((64, *shape)).astype(np.float32)
    wanted = run(model, x) * 0.5 + 0.25
    passes = "finetune(epochs=1,batch=16,lr=0.003,loss=values,select=last)"
    report = onnxedge.optimize(
        model, passes, train={"x": x, "y": wanted}, output=tmp_path / "o.onnx", max_drop=1, measure=False
    ).report
    (record,) = report.passes
    assert record.status == "applied", report.notes
    assert record.figures["untrained"] == 0, report.notes
    before, after = onnx.load(model), onnx.load(tmp_path / "o.onnx")
    assert [node.op_type for node in before.graph.node] == [node.op_type for node in after.graph.node]
    first, second = weights(model), weights(tmp_path / "o.onnx")
    same = [key for key, array in first.items() if array.size > 1 and np.array_equal(array, second[key])]
    assert all(first[key].dtype != np.float32 or key in ("s", "twice") for key in same), same
    apart = [float(((run(path, x) - wanted) ** 2).mean()) for path in (model, tmp_path / "o.onnx")]
    assert apart[1] < apart[0]
