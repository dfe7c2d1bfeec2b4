"""Files of ranges: saved, read, edited, merged from shards; TensorRT's caches; what is wrong in them is said."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from chains import CHOICES, calibrated, chain, samples
from onnxedge_passes.quantize import Int8
from onnxedge_passes.quantize.calibration.calibrate import save
from onnxedge_passes.quantize.calibration.files import read_ranges
from precision import apply, kinds

from onnxedge.api import UserError, constant, load, to_proto
from onnxedge.api import save as save_model
from onnxedge.pipeline import format_pass, parse_pipeline
from onnxedge.registry import find_pass


def scales(model: ir.Model) -> list[tuple[float, int]]:
    """Return scale and zero point of each Q, in order."""
    found = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    return [(float(constant(n.inputs[1])), int(constant(n.inputs[2]))) for n in found]  # type: ignore[arg-type]


def written(path: Path, tensors: dict[str, Any]) -> str:
    path.write_text(json.dumps({"format": "onnxedge ranges 1", "tensors": tensors}))
    return str(path)


def recorded(path: Path, x: Any) -> str:
    """Save what is observed of a chain on some samples, without ranges."""
    record: dict[str, Any] = {}
    seen = calibrated(chain(), {"x": x}, record=record)
    save(path, record, seen, ("minmax", 0.0))
    content = json.loads(path.read_text())
    for entry in content["tensors"].values():
        del entry["range"]
    path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize("method", ["auto", "minmax", "entropy"])
def test_what_is_saved_makes_the_same_model(tmp_path: Path, method: Any) -> None:
    file = str(tmp_path / "ranges.json")
    first, second = chain(), chain()
    x = {"x": samples(32)}
    apply(Int8(method=method, save_ranges=file, min_sqnr=-99, rounding="nearest"), first, x)
    assert len(scales(first)) == 4
    apply(Int8(ranges=(file,), min_sqnr=-99, rounding="nearest"), second, {"x": x["x"] * 7})
    assert scales(second) == scales(first)
    assert to_proto(first).SerializeToString(True) == to_proto(second).SerializeToString(True)


def test_the_file_is_for_people(tmp_path: Path) -> None:
    file = tmp_path / "ranges.json"
    apply(Int8(method="average", save_ranges=str(file)), chain(), {"x": samples(32)})
    lines = file.read_text().splitlines()
    assert lines[0] == '{"format": "onnxedge ranges 1", "tensors": {'
    assert [line.split(":")[0] for line in lines[1:-1]] == ['  "x"', '  "r0"', '  "r1"', '  "y"']
    entry = json.loads(file.read_text())["tensors"]["x"]
    assert list(entry)[:3] == ["range", "min", "max"]
    assert entry["min"] < entry["range"][0] < entry["range"][1] < entry["max"]
    assert len(lines[1]) < 30_000


@pytest.mark.parametrize("form", [[-2.0, 6.0], {"range": [-2.0, 6.0]}, {"min": -2, "max": 6}])
def test_an_edited_range_is_taken_as_it_is(tmp_path: Path, form: Any) -> None:
    model = chain()
    apply(Int8(ranges=(written(tmp_path / "r.json", {"x": form}),), min_sqnr=-99), model, {"x": samples(32)})
    assert scales(model)[0] == (pytest.approx(8 / 255), 64)


def test_a_range_holds_zero_and_one_of_nothing_is_harmless(tmp_path: Path) -> None:
    model = chain()
    file = written(tmp_path / "r.json", {"x": [2.0, 5.1], "r0": [0, 0]})
    apply(Int8(ranges=(file,), min_sqnr=-99), model, {"x": samples(32)})
    assert scales(model)[0] == (pytest.approx(5.1 / 255), 0)
    assert "QuantizeLinear" in kinds(model)


def test_tensors_that_are_not_quantized_may_stand_in_the_file(tmp_path: Path) -> None:
    model = chain()
    apply(Int8(ranges=(written(tmp_path / "r.json", {"c1": [-1, 1]}),)), model, {"x": samples(32)})
    assert len(scales(model)) == 4


def test_shards_merge_to_what_one_run_sees(tmp_path: Path) -> None:
    x = samples(48)
    x[30:] *= 2
    parts = [recorded(tmp_path / f"{i}.json", part) for i, part in enumerate((x[:10], x[10:40], x[40:]))]
    whole = calibrated(chain(), {"x": x})
    merged = calibrated(chain(), {"x": x[:1]}, files=parts)
    assert list(merged) == list(whole)
    for name, entry in merged.items():
        other = whole[name]
        assert (entry.low, entry.high, entry.samples) == (other.low, other.high, 48)
        for choice in CHOICES:
            tolerance = 0.08 if choice[0] in ("entropy", "mse") else 1e-3
            np.testing.assert_allclose(entry.ranges[choice], other.ranges[choice], rtol=tolerance, atol=1e-6)


def test_merged_ranges_without_observations_hold_both(tmp_path: Path) -> None:
    files = [written(tmp_path / f"{i}.json", {"x": ends}) for i, ends in enumerate(([-1, 2], [-3, 1], [0, 1]))]
    assert read_ranges(files).fixed == {"x": (-3.0, 2.0)}
    assert read_ranges([*files, written(tmp_path / "y.json", {"y": [0, 1]})]).names() == ["x", "y"]


def test_equal_ranges_of_shards_stay(tmp_path: Path) -> None:
    file = str(tmp_path / "r.json")
    apply(Int8(save_ranges=file), chain(), {"x": samples(32)})
    one, two = read_ranges([file]), read_ranges([file, file])
    assert one.fixed == two.fixed
    assert two.observed["x"].samples == 2 * one.observed["x"].samples


def cache(scale_of: dict[str, float], head: str = "TRT-8601-EntropyCalibration2") -> str:
    lines = [f"{name}: {struct.pack('!f', scale).hex()}" for name, scale in scale_of.items()]
    return "\n".join([head, *lines, ""])


@pytest.mark.parametrize("head", ["TRT-8601-EntropyCalibration2", "TRT-100300-MinMaxCalibration"])
def test_caches_of_tensorrt(tmp_path: Path, head: str) -> None:
    file = tmp_path / "calib.cache"
    file.write_text(cache({"x": 0.03, "r0": 0.02, "(Unnamed Layer* 3) [Shuffle]_output": 0.5, "a: b": 1.0}, head))
    found = read_ranges([str(file)])
    assert found.fixed["x"] == pytest.approx((-127 * 0.03, 127 * 0.03))
    assert found.fixed["a: b"] == (-127.0, 127.0)
    here, there = chain(), chain()
    _, notes = apply(Int8(ranges=(str(file),), min_sqnr=-99), here, {"x": samples(32)})
    assert "2 tensors of the calibration cache are not in the model" in notes
    first, second = scales(here)[:2]
    assert first[0] == pytest.approx(254 * 0.03 / 255)
    assert first[1] in (127, 128)
    assert second == (pytest.approx(127 * 0.02 / 255), 0)  # behind a Relu: no half of the codes for nothing
    apply(Int8(ranges=(str(file),), min_sqnr=-99), there, {"x": samples(32)}, "tensorrt")
    assert scales(there)[:2] == [(pytest.approx(0.03), 0), (pytest.approx(0.02), 0)]


def test_a_cache_takes_a_sign_from_the_samples(tmp_path: Path) -> None:
    model = chain()
    file = tmp_path / "calib.cache"
    file.write_text(cache({"x": 0.03}))
    apply(Int8(ranges=(str(file),), min_sqnr=-99), model, {"x": np.abs(samples(32))})
    assert scales(model)[0] == (pytest.approx(127 * 0.03 / 255), 0)


WRONG: list[tuple[str, str]] = [
    ("", "neither JSON nor a calibration cache of TensorRT"),
    ("{", "neither JSON nor a calibration cache"),
    ("[1, 2]", "no ranges: needs"),
    ("[" * 100_000, "neither JSON nor a calibration cache"),
    ('{"tensors": []}', "no ranges: needs"),
    ('{"format": "other 3", "tensors": {}}', "no ranges: needs"),
    ('{"tensors": {"x": [1, NaN]}}', "tensor 'x': range: nan is no finite float32"),
    ('{"tensors": {"x": [-Infinity, 1]}}', "-inf is no finite float32"),
    ('{"tensors": {"x": [0, 1e39]}}', r"1e\+39 is no finite float32"),
    ('{"tensors": {"x": [2, 1]}}', "tensor 'x': range: min 2 is greater than max 1"),
    ('{"tensors": {"x": {"min": 2, "max": 1}}}', "min 2 is greater than max 1"),
    ('{"tensors": {"x": [1]}}', r"\[1\] is not \[low, high\]"),
    ('{"tensors": {"x": ["0", 1]}}', "'0' is no number"),
    ('{"tensors": {"x": [true, 1]}}', "True is no number"),
    ('{"tensors": {"x": 3}}', r"tensor 'x': needs a range \[low, high\], or min and max"),
    ('{"tensors": {"x": {}}}', "tensor 'x': needs a range"),
    ('{"tensors": {"x": [0, 1], "x": [0, 2]}}', "'x' stands there twice"),
    ('{"tensors": {"x": {"min": 0, "max": 1, "samples": 0}}}', "samples: 0 is no positive whole number"),
    ('{"tensors": {"x": {"min": 0, "max": 1, "samples": 1.5}}}', "samples: 1.5 is no positive whole number"),
    ('{"tensors": {"x": {"min": 0, "max": 1, "samples": 1, "mean": 3}}}', "mean is no list of numbers"),
    ('{"tensors": {"x": {"min": 0, "max": 1, "samples": 1, "mean": [null]}}}', "mean: None is no number"),
    ('{"tensors": {"x": {"min": 0, "max": 1, "samples": 1, "histogram": "!"}}}', "histogram: cannot be unpacked"),
    ('{"tensors": {"x": {"min": 0, "max": 1, "samples": 1, "histogram": "eJwDAAAAAAE="}}}', "is not 8192 counts"),
    ("TRT-8601-EntropyCalibration2\nx 3c010a14\n", "line 2: needs NAME: and 8 hexadecimal digits"),
    ("TRT-8601-EntropyCalibration2\nx: 3c01\n", "line 2: needs NAME"),
    ("TRT-8601-EntropyCalibration2\nx: 7fc00000\n", "line 2: tensor 'x': scale nan is not finite"),
    ("TRT-8601-EntropyCalibration2\nx: bf800000\n", "scale -1 is not finite and positive"),
    ("TRT-8601-EntropyCalibration2\n\n", "without tensors"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_wrong_files(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "r.json"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        apply(Int8(ranges=(str(file),)), chain(), {"x": samples(8)})
    assert str(error.value).startswith(f"{file}: ")
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("absent.json", "binary", "."):
        with pytest.raises(UserError, match="ranges cannot be read"):
            apply(Int8(ranges=(str(tmp_path / name),)), chain(), {"x": samples(8)})


@pytest.mark.parametrize("text", ['{"tensors": {"r9": [0, 1]}}', '{"tensors": {"x": [0, 1], "w0": [0, 1]}}'])
def test_tensors_that_the_model_has_not(tmp_path: Path, text: str) -> None:
    file = tmp_path / "r.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"int8: ranges: the model has no tensor '(r9|w0)'"):
        apply(Int8(ranges=(str(file),)), chain(), {"x": samples(8)})
    file.write_text(cache({"elsewhere": 1.0}))
    with pytest.raises(UserError, match="the model has no tensor 'elsewhere'"):
        apply(Int8(ranges=(str(file),)), chain(), {"x": samples(8)})


def test_the_file_that_is_read_is_not_written(tmp_path: Path) -> None:
    file = written(tmp_path / "r.json", {})
    with pytest.raises(UserError, match="is the input"):
        apply(Int8(ranges=(file,), save_ranges=file), chain(), {"x": samples(8)})


def test_pipeline_text(tmp_path: Path) -> None:
    (step,) = parse_pipeline("int8(ranges=[a/b.json,c d.json],save_ranges=e.json)", find_pass)
    assert isinstance(step, Int8)
    assert step.ranges == ("a/b.json", "c d.json")
    assert parse_pipeline(format_pass(step), find_pass) == (step,)


def test_ranges_on_the_command_line(tmp_path: Path) -> None:
    from samples import run

    save_model(chain(), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", samples(16))
    told = ["optimize", tmp_path / "m.onnx", "--calib", tmp_path / "x.npy", "--no-measure", "-o", tmp_path / "o.onnx"]
    result = run(*told, "--passes", f"int8(save_ranges={tmp_path}/r.json,min_sqnr=-99)")
    assert result.exit_code == 0, result.output
    first = scales(load(tmp_path / "o.onnx"))
    result = run(*told, "--passes", f"int8(ranges={tmp_path}/r.json,min_sqnr=-99)")
    assert result.exit_code == 0, result.output
    assert scales(load(tmp_path / "o.onnx")) == first
    result = run(*told, "--passes", "fold,int8(min_sqnr=-99)", "--ranges", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    assert scales(load(tmp_path / "o.onnx")) == first
    result = run(*told, "--passes", "fold", "--ranges", tmp_path / "r.json")
    assert result.exit_code == 2
    assert "--ranges: no pass of 'fold' reads ranges" in result.output
    written(tmp_path / "r.json", {"r7": [0, 1]})
    result = run(*told, "--passes", "int8", "--ranges", tmp_path / "r.json")
    assert result.exit_code == 2
    assert "the model has no tensor 'r7'; did you mean 'r1'" in result.output.replace("\n", " ")
