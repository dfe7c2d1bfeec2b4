"""Real models: every one goes through the main job, and accuracy on labelled data stays within stated bounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from samples import ZOO_MODELS

import onnxedge
from onnxedge.report.records import Report
from onnxedge.runtime import Session

pytestmark = [pytest.mark.zoo, pytest.mark.usefixtures("untimed")]

NORMALIZED = "scale=1/255,mean=0.485:0.456:0.406,std=0.229:0.224:0.225,layout=NCHW"


@pytest.mark.parametrize("name", ZOO_MODELS)
def test_clean_up_and_fusion_keep_the_outputs(name: str, zoo: Path, tmp_path: Path) -> None:
    report = onnxedge.optimize(zoo / "models" / f"{name}.onnx", "fold,fuse", output=tmp_path / "out.onnx").report
    assert all(record.status != "rolled back" for record in report.passes), report.passes
    assert report.fidelity is not None
    assert report.fidelity.sqnr_db is None or report.fidelity.sqnr_db > 80
    Session(tmp_path / "out.onnx")


@pytest.mark.parametrize("name", ZOO_MODELS)
def test_the_main_job_without_data(name: str, zoo: Path, tmp_path: Path) -> None:
    source = zoo / "models" / f"{name}.onnx"
    report = onnxedge.optimize(source, "prune,fuse,int8", output=tmp_path / "out.onnx").report
    assert not any("raised" in record.reason for record in report.passes), report.passes
    assert any("accuracy: no labelled data" in line for line in report.unmeasured)
    assert report.fidelity is not None
    assert report.fidelity.data == "synthetic"
    assert [spec.name for spec in Session(tmp_path / "out.onnx").inputs] == [
        spec.name for spec in Session(source).inputs
    ]


def first_rows(zoo: Path, name: str, folder: Path, count: int = 256) -> Path:
    with np.load(zoo / "data" / f"{name}.npz") as data:
        np.savez(folder / "calib.npz", x=data["x"][:count])
    return folder / "calib.npz"


def on_labels(
    zoo: Path, folder: Path, model: str, passes: str, calib: str, test: str, preprocess: str | None
) -> Report:
    return onnxedge.optimize(
        zoo / "models" / f"{model}.onnx",
        passes,
        calib=first_rows(zoo, calib, folder),
        eval=zoo / "data" / f"{test}.npz",
        preprocess=preprocess,
    ).report


@pytest.mark.parametrize(
    ("model", "calib", "test", "preprocess", "size"),
    [
        ("cifar10_resnet20_bn", "cifar10_train", "cifar10_test", NORMALIZED, 0.30),
        ("cifar10_resnet56_bn", "cifar10_train", "cifar10_test", NORMALIZED, 0.30),
        ("mlperftiny_ic_resnet8_cifar10_float", "cifar10_train", "cifar10_test", None, 0.40),
        ("kwt1_speech12", "speech_commands_calib", "speech_commands_test", "scale=1/32768", 0.30),
    ],
)
def test_int8_loses_at_most_half_a_point(
    model: str, calib: str, test: str, preprocess: str | None, size: float, zoo: Path, tmp_path: Path
) -> None:
    report = on_labels(zoo, tmp_path, model, "fuse,int8", calib, test, preprocess)
    assert report.fidelity is not None
    assert report.fidelity.drop is not None
    assert report.fidelity.drop <= 0.005
    assert report.after.file_bytes <= size * report.before.file_bytes
    assert report.passes[-1].status == "applied"


@pytest.mark.parametrize(("macs", "bound"), [(0.7, 0.010), (0.5, 0.025)])
def test_a_pruned_resnet56_keeps_its_accuracy(macs: float, bound: float, zoo: Path, tmp_path: Path) -> None:
    passes = f"prune(macs={macs}),fuse,int8"
    report = on_labels(zoo, tmp_path, "cifar10_resnet56_bn", passes, "cifar10_train", "cifar10_test", NORMALIZED)
    assert [record.status for record in report.passes][::2] == ["applied", "applied"]
    assert report.before.macs is not None
    assert report.after.macs is not None
    assert report.after.macs <= (macs + 0.01) * report.before.macs
    assert report.fidelity is not None
    assert report.fidelity.drop is not None
    assert report.fidelity.drop <= bound
