"""Files of ranges on the command line: shards that are merged, edited ones, and wrong ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chains import chain, samples
from click.testing import Result
from samples import run
from test_ranges import scales

from onnxedge.api import load, save

X = samples(32)
HALVES = {"a": X[:16], "b": X[16:] * np.float32(2)}


def quantize(folder: Path, passes: str, *more: str | Path, calib: str = "all") -> Result:
    """Run ``onnxedge optimize`` on a chain of convolutions; the output is ``o.onnx``."""
    if not (folder / "m.onnx").exists():
        save(chain(), folder / "m.onnx")
        np.save(folder / "all.npy", X)
        for name, part in HALVES.items():
            np.save(folder / f"{name}.npy", part)
    (folder / "o.onnx").unlink(missing_ok=True)
    told = ["optimize", folder / "m.onnx", "--calib", folder / f"{calib}.npy", "-o", folder / "o.onnx", "--no-measure"]
    return run(*told, "--passes", passes, *more)


def shards(folder: Path) -> list[Path]:
    """Observe each half of the samples in a run of its own; return the files, without chosen ranges."""
    files = [folder / f"{name}.json" for name in HALVES]
    for file in files:
        result = quantize(folder, f"int8(method=minmax,min_sqnr=-99,save_ranges={file})", calib=file.stem)
        assert result.exit_code == 0, result.output
        content = json.loads(file.read_text())
        for entry in content["tensors"].values():
            del entry["range"]
        file.write_text(json.dumps(content))
    return files


def test_shards_are_merged(tmp_path: Path) -> None:
    first, second = shards(tmp_path)
    made = {}
    for name, files in {
        "first": (first,),
        "second": (second,),
        "both": (first, second),
        "turned": (second, first),
    }.items():
        options = [text for file in files for text in ("--ranges", str(file))]
        result = quantize(tmp_path, "int8(method=minmax,min_sqnr=-99)", *options)
        assert result.exit_code == 0, result.output
        made[name] = scales(load(tmp_path / "o.onnx"))
    low, high = np.minimum(*(p.min() for p in HALVES.values())), np.maximum(*(p.max() for p in HALVES.values()))
    fitted = [part[: 12 * 16 // 16] for part in HALVES.values()]  # a quarter of the samples is held out
    assert 0.5 * (high - low) / 255 < made["both"][0][0] <= (high - low) / 255 * 1.0001
    assert fitted
    assert made["both"] == made["turned"]
    for one, other, both in zip(made["first"], made["second"], made["both"], strict=True):
        assert both[0] >= max(one[0], other[0]) * 0.9999
    assert made["both"] != made["first"]


def test_an_edited_file_is_taken_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    assert quantize(tmp_path, f"int8(min_sqnr=-99,save_ranges={file})").exit_code == 0
    before = scales(load(tmp_path / "o.onnx"))
    content = json.loads(file.read_text())
    content["tensors"]["r0"]["range"] = [0.0, 51.0]
    file.write_text(json.dumps(content, indent=2))
    result = quantize(tmp_path, "int8(min_sqnr=-99)", "--ranges", file)
    assert result.exit_code == 0, result.output
    after = scales(load(tmp_path / "o.onnx"))
    assert after[1] == (pytest.approx(0.2), 0)
    assert [after[i] for i in (0, 2, 3)] == [before[i] for i in (0, 2, 3)]


def tensors(entry: Any) -> str:
    return json.dumps({"format": "onnxedge ranges 1", "tensors": {"x": entry}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "r.json: ranges cannot be read"),
        ("", "r.json: neither JSON nor a calibration cache of TensorRT"),
        ("{", "r.json: neither JSON nor a calibration cache of TensorRT"),
        ("[]", "r.json: no ranges: needs"),
        ('{"format": "onnxedge ranges 9", "tensors": {}}', "r.json: no ranges: needs"),
        (tensors([3, 1]), "r.json: tensor 'x': range: min 3 is greater than max 1"),
        (tensors([0, float("nan")]), "r.json: tensor 'x': range: nan is no finite float32"),
        (tensors(["0", 1]), "r.json: tensor 'x': range: '0' is no number"),
        (tensors({"low": 0}), "r.json: tensor 'x': needs a range [low, high], or min and max"),
        ("TRT-8601-EntropyCalibration2\nx: zz\n", "r.json: line 2: needs NAME: and 8 hexadecimal digits"),
    ],
)
def test_a_wrong_file_is_one_line_and_nothing_is_written(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "r.json"
    if text is not None:
        file.write_text(text)
    result = quantize(tmp_path, "fold,int8", "--ranges", file)
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert message in " ".join(line.strip() for line in lines).replace(str(tmp_path) + "/", "")
    assert "Traceback" not in result.output
    assert not (tmp_path / "o.onnx").exists()


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(b"\xff\xfe\x00\x01" * 9)
    result = quantize(tmp_path, "int8", "--ranges", tmp_path / "r.json")
    assert result.exit_code == 2
    assert "ranges cannot be read" in result.stderr
    result = quantize(tmp_path, "int8", "--ranges", tmp_path)
    assert result.exit_code == 2
    assert "ranges cannot be read" in result.stderr
