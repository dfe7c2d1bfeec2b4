"""Load, save, external data: what is trusted, what is refused, what is kept."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxedge.errors import UserError
from onnxedge.model import io
from onnxedge.runtime import Session

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
tiny (float[N, 4] x) => (float[N, 4] y)
<float[4] w = {1.0, 2.0, 3.0, 4.0}>
{ y = Mul(x, w) }
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.onnx"
    model = onnx.parser.parse_model(TEXT)
    model.metadata_props.add(key="author", value="me")
    model.graph.node[0].name = "the\nnode"
    onnx.save(model, path)
    return path


def test_a_round_trip_keeps_names_and_metadata(tiny: Path, tmp_path: Path) -> None:
    io.save(io.load(tiny), tmp_path / "out.onnx", inputs=(tiny,))
    before, after = onnx.load(tiny), onnx.load(tmp_path / "out.onnx")
    assert [n.name for n in after.graph.node] == [n.name for n in before.graph.node]
    assert list(after.metadata_props) == list(before.metadata_props)
    assert (after.ir_version, list(after.opset_import)) == (before.ir_version, list(before.opset_import))


def test_initializer_metadata_is_not_doubled(tiny: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny)
    model.graph.initializer[0].metadata_props.add(key="unit", value="m")
    model.ir_version = 10
    onnx.save(model, tiny)
    path = tiny
    for number in range(3):
        out = tmp_path / f"out{number}.onnx"
        io.save(io.load(path), out)
        path = out
    assert [(p.key, p.value) for p in onnx.load(path).graph.initializer[0].metadata_props] == [("unit", "m")]


def test_external_data_goes_in_and_out(fixtures: Path, tmp_path: Path) -> None:
    model = io.load(fixtures / "external_data.onnx")
    assert io.has_external_data(model)
    io.save(model, tmp_path / "out.onnx", external=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.onnx", "out.onnx.data"]
    feed = {"image": np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)}
    first = Session(fixtures / "external_data.onnx").run(feed)
    second = Session(tmp_path / "out.onnx").run(feed)
    third = Session(io.load(tmp_path / "out.onnx")).run(feed)
    assert all(np.array_equal(first[k], second[k]) and np.array_equal(first[k], third[k]) for k in first)
    io.save(model, tmp_path / "inside.onnx")
    assert io.file_bytes(tmp_path / "inside.onnx") == (tmp_path / "inside.onnx").stat().st_size > 200_000


def test_the_input_is_never_overwritten(tiny: Path, fixtures: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.onnx"
    link.symlink_to(tiny)
    hard = tmp_path / "hard.onnx"
    os.link(tiny, hard)
    for path in (tiny, link, hard):
        with pytest.raises(UserError, match="is the input"):
            io.save(io.load(tiny), path, inputs=(tiny,))
    with pytest.raises(UserError, match="is a folder"):
        io.save(io.load(tiny), tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        io.save(io.load(tiny), tmp_path / "nowhere" / "out.onnx")


def _external(tmp_path: Path, location: str, length: int = 16) -> Path:
    model = onnx.parser.parse_model(TEXT)
    tensor = model.graph.initializer[0]
    del tensor.float_data[:]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="length", value=str(length))
    path = tmp_path / "external.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["/etc/passwd", "../secret", "a/../../secret", "link", "pipe", "absent"])
def test_hostile_external_data_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(b"0" * 16)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "pipe")
    with pytest.raises(UserError, match="external data"):
        io.load(_external(folder, location))


def test_short_external_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"0" * 15)
    with pytest.raises(UserError, match="has 15 bytes, the tensor needs 16"):
        io.load(_external(tmp_path, "w"))


def test_scratch_of_killed_runs_is_removed() -> None:
    with io.scratch_directory() as folder:
        stale = folder.parent / "999999999-left"
        stale.mkdir(exist_ok=True)
        with io.scratch_directory() as other:
            assert other != folder
            assert not stale.exists()
            assert folder.exists()
    assert not folder.exists()
