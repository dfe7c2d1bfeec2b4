"""Bad input gets one line on standard error and exit code 2 within five seconds, and nothing is written."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

import onnxedge

MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
tiny (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
<float[4, 3, 1, 1] w, float[4] b>
{ y = Conv(x, w, b) }
"""

Arguments = list[str]
Case = Callable[[Path, Path], Arguments]
CASES: dict[str, tuple[Case, str]] = {}


def case(message: str) -> Callable[[Case], Case]:
    """Register a kind of bad input under its function's name, with a part of the line that it must give."""

    def register(function: Case) -> Case:
        CASES[function.__name__] = (function, message)
        return function

    return register


def tiny() -> onnx.ModelProto:
    model = onnx.parser.parse_model(MODEL)
    rng = np.random.default_rng(0)
    del model.graph.initializer[:]
    model.graph.initializer.append(onnx.numpy_helper.from_array(rng.standard_normal((4, 3, 1, 1)).astype("f"), "w"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(rng.standard_normal(4).astype("f"), "b"))
    return model


@case("no such file")
def missing_file(good: Path, folder: Path) -> Arguments:
    return [str(folder / "absent.onnx")]


@case("is empty")
def empty_file(good: Path, folder: Path) -> Arguments:
    (folder / "empty.onnx").touch()
    return [str(folder / "empty.onnx")]


@case("not a")
def truncated_file(good: Path, folder: Path) -> Arguments:
    data = good.read_bytes()
    (folder / "cut.onnx").write_bytes(data[: len(data) * 2 // 3])
    return [str(folder / "cut.onnx")]


@case("not a")
def another_format(good: Path, folder: Path) -> Arguments:
    (folder / "image.onnx").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    return [str(folder / "image.onnx")]


@case("is not a file")
def a_folder(good: Path, folder: Path) -> Arguments:
    return [str(folder)]


@case("not a valid ONNX model")
def cyclic_graph(good: Path, folder: Path) -> Arguments:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["":17]> g (float[4] x) => (float[4] y) { a = Add(x, y) y = Relu(a) }'
    )
    onnx.save(model, folder / "cycle.onnx")
    return [str(folder / "cycle.onnx")]


@case("opset 999 is not known")
def future_opset(good: Path, folder: Path) -> Arguments:
    model = tiny()
    model.opset_import[0].version = 999
    onnx.save(model, folder / "future.onnx")
    return [str(folder / "future.onnx")]


@case("raw_data size")
def raw_data_of_wrong_length(good: Path, folder: Path) -> Arguments:
    model = tiny()
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    (folder / "short.onnx").write_bytes(model.SerializeToString())
    return [str(folder / "short.onnx")]


@case("reaches out of the model's folder")
def hostile_external_path(good: Path, folder: Path) -> Arguments:
    model = tiny()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    (folder / "hostile.onnx").write_bytes(model.SerializeToString())
    return [str(folder / "hostile.onnx")]


@case("did you mean 'prune'")
def unknown_pass(good: Path, folder: Path) -> Arguments:
    return [str(good), "--passes", "prun,fuse"]


@case("did you mean 'macs'")
def unknown_option_of_a_pass(good: Path, folder: Path) -> Arguments:
    return [str(good), "--passes", "prune(mac=0.5)"]


@case("did you mean 'tensorrt'")
def unknown_target(good: Path, folder: Path) -> Arguments:
    return [str(good), "--target", "tensort"]


@case("no such")
def missing_calibration(good: Path, folder: Path) -> Arguments:
    return [str(good), "--passes", "int8", "--calib", str(folder / "absent.npz")]


@case("input 'x'")
def samples_of_wrong_shape(good: Path, folder: Path) -> Arguments:
    np.savez(folder / "wrong.npz", x=np.zeros((4, 3, 9, 9), np.float32))
    return [str(good), "--passes", "int8", "--calib", str(folder / "wrong.npz")]


@case("did you mean 'resize'")
def unknown_preprocessing(good: Path, folder: Path) -> Arguments:
    return [str(good), "--passes", "int8", "--preprocess", "resiz=8"]


@case("is the input")
def output_is_the_input(good: Path, folder: Path) -> Arguments:
    return [str(good), "-o", str(good)]


@case("no such folder")
def output_in_no_folder(good: Path, folder: Path) -> Arguments:
    return [str(good), "-o", str(folder / "nowhere" / "out.onnx")]


@case("is not a share")
def budget_out_of_range(good: Path, folder: Path) -> Arguments:
    return [str(good), "--passes", "prune(macs=1.5)"]


@case("needs float32[N,3,8,8]")
def input_shape_that_does_not_fit(good: Path, folder: Path) -> Arguments:
    return [str(good), "--input-shape", "x:1x5x8x8"]


@case("recipe")
def recipe_with_unknown_key(good: Path, folder: Path) -> Arguments:
    (folder / "recipe.toml").write_text('pases = "fuse"\n')
    return [str(good), "--recipe", str(folder / "recipe.toml")]


def external(folder: Path, **entries: str) -> Arguments:
    """Write a model whose weight lies in ``w.bin`` as the entries say."""
    model = tiny()
    tensor = model.graph.initializer[0]
    (folder / "w.bin").write_bytes(tensor.raw_data[:16])
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", **entries}.items():
        tensor.external_data.add(key=key, value=value)
    (folder / "external.onnx").write_bytes(model.SerializeToString())
    return [str(folder / "external.onnx")]


@case("offset '-8' is no whole number")
def external_data_with_a_negative_offset(good: Path, folder: Path) -> Arguments:
    return external(folder, offset="-8")


@case("has 16 bytes, the tensor needs 48")
def external_data_cut_short(good: Path, folder: Path) -> Arguments:
    return external(folder)


@case("not a readable ONNX model")
def text_that_is_no_model(good: Path, folder: Path) -> Arguments:
    (folder / "m.textproto").write_text("xx{")
    return [str(folder / "m.textproto")]


@case("File name too long")
def name_too_long(good: Path, folder: Path) -> Arguments:
    return [str(folder / ("a" * 300 + ".onnx"))]


@case("is a device or a pipe")
def output_is_a_device(good: Path, folder: Path) -> Arguments:
    os.mkfifo(folder / "pipe")  # a pipe of our own: run as root, a broken check would replace the machine's device
    return [str(good), "-o", str(folder / "pipe")]


@case("is the input")
def output_lies_in_the_samples(good: Path, folder: Path) -> Arguments:
    (folder / "samples").mkdir()
    for name in ("a", "b"):
        np.savez(folder / "samples" / f"{name}.npz", x=np.zeros((3, 8, 8), np.float32))
    return [str(good), "--calib", str(folder / "samples"), "-o", str(folder / "samples" / "a.npz")]


@case("is the input")
def output_is_the_recipe(good: Path, folder: Path) -> Arguments:
    (folder / "recipe.toml").write_text('passes = "fuse"\n')
    return [str(good), "--recipe", str(folder / "recipe.toml"), "-o", str(folder / "recipe.toml")]


@case("is the input")
def report_is_the_model_under_another_name(good: Path, folder: Path) -> Arguments:
    (folder / "link.onnx").symlink_to(good)
    return [str(good), "-o", str(folder / "out.onnx"), "--report", str(folder / "link.onnx")]


@case("is another file that this run writes")
def report_is_the_output(good: Path, folder: Path) -> Arguments:
    return [str(good), "-o", str(folder / "out.onnx"), "--report", str(folder / "out.onnx")]


@case("no such folder")
def report_in_no_folder(good: Path, folder: Path) -> Arguments:
    return [str(good), "-o", str(folder / "out.onnx"), "--report", str(folder / "nowhere" / "r.json")]


@case("is the input")
def dump_over_the_input(good: Path, folder: Path) -> Arguments:
    (folder / "01-fuse.onnx").write_bytes(good.read_bytes())
    return [str(folder / "01-fuse.onnx"), "--passes", "fuse", "--dump-dir", str(folder), "-o", str(folder / "out.onnx")]


@case("no such file")
def dump_folder_and_missing_calibration(good: Path, folder: Path) -> Arguments:
    return [str(good), "--dump-dir", str(folder / "dump"), "--calib", str(folder / "absent.npz")]


@case("sample 5 holds NaN")
def samples_that_are_not_finite_after_a_dump(good: Path, folder: Path) -> Arguments:
    x = np.zeros((8, 3, 8, 8), np.float32)
    x[5, 0, 0, 0] = np.nan
    np.savez(folder / "nan.npz", x=x)
    passes = ["--passes", "fold,int8", "--dump-dir", str(folder / "dump")]
    return [str(good), *passes, "--calib", str(folder / "nan.npz")]


@case("which are not read")
def samples_that_are_pickles(good: Path, folder: Path) -> Arguments:
    np.savez(folder / "pickle.npz", x=np.array([{"a": 1}], object))
    return [str(good), "--calib", str(folder / "pickle.npz")]


@case("cut short")
def packed_samples_that_claim_terabytes(good: Path, folder: Path) -> Arguments:
    header = io.BytesIO()
    facts = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 3, 8, 8)}
    np.lib.format.write_array_header_1_0(header, facts)
    with zipfile.ZipFile(folder / "huge.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(100))
    return [str(good), "--calib", str(folder / "huge.npz")]


@case("raised SystemExit")
def samples_whose_function_ends_the_process(good: Path, folder: Path) -> Arguments:
    (folder / "leaving.py").write_text("import sys\ndef samples():\n    sys.exit(0)\n")
    return [str(good), "--calib", f"{folder / 'leaving.py'}:samples"]


@case("does not fit into this machine's memory")
def input_shape_beyond_memory(good: Path, folder: Path) -> Arguments:
    return [str(good), "--input-shape", "x:1000000000x3x8x8"]


@case("'1e999999999' is not a number")
def number_with_a_billion_digits(good: Path, folder: Path) -> Arguments:
    return [str(good), "--passes", "prune(macs=1e999999999)"]


@case("channel_multiple: 0; needs at least 1")
def target_with_impossible_numbers(good: Path, folder: Path) -> Arguments:
    (folder / "chip.toml").write_text('name = "chip"\nchannel_multiple = 0\n')
    return [str(good), "--target", str(folder / "chip.toml")]


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, tmp_path: Path) -> None:
    build, message = CASES[name]
    good, folder = tmp_path / "good.onnx", tmp_path / "work"
    folder.mkdir()
    onnx.save(tiny(), good)
    before = good.read_bytes()
    arguments = build(good, folder)
    files = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-m", "onnxedge", "optimize", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
    )
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert message in lines[0]
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == files, "something was written"
    assert good.read_bytes() == before


DOUBLINGS = " ".join(f"c{i + 1} = Concat<axis = 0>(c{i}, c{i})" for i in range(33))
BOMBS = {
    "constant": """<ir_version: 8, opset_import: ["" : 17]> bomb (float[1] x) => (float[1] y)
        <int64[3] shape = {3000, 3000, 3000}>
        { big = ConstantOfShape(shape) sum = ReduceSum<keepdims = 0>(big) y = Add(sum, x) }""",
    "expand": """<ir_version: 8, opset_import: ["" : 17]> bomb (float[1] x) => (float[1] y)
        <int64[3] shape = {3000, 3000, 3000}, float[1] one = {1.0}>
        { big = Expand(one, shape) sum = ReduceSum<keepdims = 0>(big) y = Add(sum, x) }""",
    "tile": """<ir_version: 8, opset_import: ["" : 17]> bomb (float[1] x) => (float[1] y)
        <int64[1] count = {27000000000}, float[1] one = {1.0}>
        { big = Tile(one, count) sum = ReduceSum<keepdims = 0>(big) y = Add(sum, x) }""",
    "range": """<ir_version: 8, opset_import: ["" : 17]> bomb (float[1] x) => (float[1] y)
        <int64 start = {0}, int64 stop = {27000000000}, int64 step = {1}>
        { big = Range(start, stop, step) sum = ReduceSum<keepdims = 0>(big) f = Cast<to = 1>(sum) y = Add(f, x) }""",
    "doubling": f"""<ir_version: 8, opset_import: ["" : 17]> bomb (float[1] x) => (float[1] y) <float[1] c0 = {{1.0}}>
        {{ {DOUBLINGS} sum = ReduceSum<keepdims = 0>(c33) y = Add(sum, x) }}""",
    "doubling of a free dimension": f"""<ir_version: 8, opset_import: ["" : 17]> bomb (float[N] c0) => (float[M] y)
        {{ {DOUBLINGS} y = Relu(c33) }}""",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_graph_that_makes_100_gigabytes(name: str, tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(BOMBS[name]), tmp_path / "bomb.onnx")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30)); import onnxedge.cli as c"
    arguments = ["optimize", "bomb.onnx", "--passes", "fold,fuse", "-o", "out.onnx"]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{limit}; c.main({arguments})",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "nothing was run or measured" in done.stdout
    assert (tmp_path / "out.onnx").stat().st_size < 10_000


def test_a_loop_without_end() -> None:
    model = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        endless (float[1] x) => (float[1] y) <int64 count = {9000000000000000000}, bool go = {1}>
        { y = Loop <body = b (int64 i, bool c, float[1] a) => (bool d, float[1] e) { d = Identity(c) e = Relu(a) }>
              (count, go, x) }
        """
    )
    (line,) = onnxedge.optimize(model, "fold,fuse").report.unmeasured
    assert line == "nothing was run or measured: one run of the model takes over 2 s, perhaps because of Loop '-> y'"
