"""What is said, refused and taken over: speed, bounds, options, never worse, integers behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper
from prune.topologies import images
from samples import run
from sparsified import ALL, HALF, attention, has_pattern, residual, sparsify, weights

import onnxedge
from onnxedge.api import UserError, to_proto
from onnxedge.report.records import Speed


@pytest.mark.parametrize(
    ("target", "options", "told", "pattern"),
    [
        (
            "ort-cpu",
            {"ratio": 0.5},
            "not faster: target ort-cpu has no kernels for such zeros; the weights take",
            False,
        ),
        ("ort-cpu", {"pattern": HALF}, "not faster: target ort-cpu has no kernels", True),
        ("tensorrt", {"min_sqnr_db": -9.0}, "target tensorrt has kernels for 2:4 once its sparsity flag is set", True),
        ("tensorrt", {"ratio": 0.5}, "no kernels for such zeros, only for pattern=2:4", False),
    ],
)
def test_speed_is_spoken_of_as_the_target_has_it(
    target: str, options: dict[str, Any], told: str, pattern: bool
) -> None:
    model = attention()
    result, reasons = sparsify(model, images((6, 16)), target, **options, **ALL)
    assert any(told in reason for reason in reasons)
    assert (result.figures["pattern"] == "2:4") == pattern
    assert all(has_pattern(weight) for weight in weights(model).values()) == pattern
    assert result.figures["deflated_bytes_after"] < result.figures["deflated_bytes_before"]
    # of 32 bits 16 stay, and one a weight says where: two bits for each of two in four, or a bit for each
    assert result.figures["packed_bytes"] == result.figures["weight_bytes"] * 17 // 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.5, "pattern": HALF}, "both given"),
        ({"ratio": 1.0}, "ratio=1 is no share"),
        ({"ratio": float("nan")}, "is no share"),
        ({"pattern": HALF, "allocation": "global"}, "allocation=global needs a ratio"),
        ({"samples": 3}, "samples=3 is too few"),
        ({"ridge": 0.0}, "ridge=0 must be a number above 0"),
        ({"min_elements": -1}, "min_elements=-1"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        sparsify(residual(), images((3, 8, 8)), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["sparsify(pattern=4:2)", "sparsify(ratio=2)", "sparsify(ratio=0.5,pattern=2:4)"])
def test_the_command_line_refuses_in_one_line(text: str, fixtures: Path, tmp_path: Path) -> None:
    result = run("optimize", fixtures / "digits_resnet.onnx", "--passes", text, "-o", tmp_path / "o.onnx")
    assert result.exit_code == 2
    assert "sparsify" in result.output.strip().splitlines()[-1]
    assert "Traceback" not in result.output
    assert not (tmp_path / "o.onnx").exists()


@pytest.mark.parametrize("passes", ["sparsify(pattern=2:4),fuse,int8", "prune(macs=0.7),sparsify(pattern=2:4),int8"])
@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt"])
@pytest.mark.usefixtures("untimed")
def test_zeros_stay_zeros_through_int8(passes: str, target: str, fixtures: Path) -> None:
    calib = fixtures / "digits_calib.npz"
    made = onnxedge.optimize(fixtures / "digits_resnet.onnx", passes, target=target, calib=calib, max_drop=1.0)
    assert all(record.status == "applied" for record in made.report.passes if not record.text.startswith("fuse"))
    graph = to_proto(made.model).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    source = {
        node.output[0]: node.input[0] for node in graph.node if node.op_type in ("DequantizeLinear", "Cast", "Mul")
    }
    sparse = 0
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        name = node.input[1]
        while name in source:
            name = source[name]
        weight = np.moveaxis(arrays[name], (1, 0), (0, -1))
        if weight.size >= 1024 and len(weight) % 4 == 0:
            assert weight.dtype == np.int8
            assert has_pattern(weight)
            sparse += 1
    assert sparse >= 3


def test_a_model_that_is_no_faster_is_not_taken_back(fixtures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same = Speed(ratio=1.01, low=0.99, high=1.02, cpu_ratio=1.01, before_ms=1.0, after_ms=1.01, rounds=9, threads=1)
    monkeypatch.setattr("onnxedge.measure.Judge.speed", lambda *_: same)
    made = onnxedge.optimize(
        fixtures / "digits_resnet.onnx", "sparsify(ratio=0.5)", calib=fixtures / "digits_calib.npz"
    )
    (record,) = made.report.passes
    assert record.status == "applied"
    assert 0.49 < record.figures["zeros"] / record.figures["elements"] < 0.51
    assert record.figures["sqnr_db"] > 5


def test_plain_sparsify_keeps_to_its_bounds() -> None:
    """Half is tried, then 0.3; with no bound that holds, or no real samples, the model is left alone."""
    model = attention()
    result, reasons = sparsify(model, images((6, 16), 256), min_sqnr_db=200.0, **ALL)
    assert result.rewrites == 0
    assert [told.split(":")[0] for told in reasons] == ["ratio=0.5", "ratio=0.3", "left alone"]
    result, _ = sparsify(attention(), images((6, 16), 256), min_sqnr_db=0.0, **ALL)
    assert result.figures["zeros"] / result.figures["elements"] == 0.5
    result, _ = sparsify(attention(), images((6, 16), 256), min_sqnr_db=result.figures["sqnr_db"] + 1, **ALL)
    assert 0.29 < result.figures["zeros"] / result.figures["elements"] < 0.31
    result, reasons = sparsify(attention(), None, **ALL)
    assert result.rewrites == 0
    assert "without --calib nothing shows what may go" in reasons[0]
