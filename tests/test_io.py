"""Load, save, external data: what is trusted, what is refused, what is kept."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from onnxedge.errors import UserError
from onnxedge.model import io
from onnxedge.model.content import content_of
from onnxedge.model.edit import set_constant
from onnxedge.model.files import scratch_directory
from onnxedge.model.graph import constant, graphs_of
from onnxedge.model.names import refresh_scopes
from onnxedge.model.serialize import has_external_data, to_proto, written_bytes
from onnxedge.model.skeleton import Skeleton
from onnxedge.runtime import Session
from onnxedge.verify import infer_shapes

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
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
    assert has_external_data(model)
    io.save(model, tmp_path / "out.onnx", external=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.onnx", "out.onnx.data"]
    feed = {"image": np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)}
    first = Session(fixtures / "external_data.onnx").run(feed)
    second = Session(tmp_path / "out.onnx").run(feed)
    third = Session(io.load(tmp_path / "out.onnx")).run(feed)
    assert all(np.array_equal(first[k], second[k]) and np.array_equal(first[k], third[k]) for k in first)
    io.save(model, tmp_path / "inside.onnx")
    assert io.file_bytes(tmp_path / "inside.onnx") == (tmp_path / "inside.onnx").stat().st_size > 200_000


def test_what_is_lost_on_loading_is_told(tiny: Path) -> None:
    assert io.losses(io.load(tiny)) == ()
    model = onnx.load(tiny)
    model.training_info.add().algorithm.name = "step"
    onnx.save(model, tiny)
    assert [loss.split()[0] for loss in io.losses(io.load(tiny))] == ["training_info"]


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
    with scratch_directory() as folder:
        stale = folder.parent / "999999999-left"
        stale.mkdir(exist_ok=True)
        with scratch_directory() as other:
            assert other != folder
            assert not stale.exists()
            assert folder.exists()
    assert not folder.exists()


def _in_files(tmp_path: Path, count: int = 3) -> Path:
    """Write a model whose weights lie in several files, one of them read twice, and small ones among them."""
    rng = np.random.default_rng(0)
    text = ['<ir_version: 8, opset_import: ["" : 17]> g (float[N, 32] x) => (float[N, 32] y) {']
    text += [f"v{i + 1} = MatMul(v{i}, w{i})" for i in range(count)] + [f"a = Add(v{count}, b) y = Add(a, b)", "}"]
    model = onnx.parser.parse_model(" ".join(text).replace("v0", "x"))
    for index, array in enumerate([*rng.standard_normal((count, 32, 32)), rng.standard_normal(32)]):
        name = f"w{index}" if index < count else "b"
        part, data = tmp_path / f"part{index % 2}.bin", array.astype(np.float32).tobytes()
        tensor = model.graph.initializer.add(name=name, data_type=1, dims=array.shape, data_location=1)
        entries = {"location": part.name, "offset": part.stat().st_size if part.exists() else 0, "length": len(data)}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        with part.open("ab") as file:
            file.write(data)
    path = tmp_path / "parts.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def _answer(path: Path) -> np.ndarray:
    return Session(path).run({"x": np.random.default_rng(1).standard_normal((2, 32)).astype(np.float32)})["y"]


def test_weights_in_several_files_are_copied_unread_into_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _in_files(tmp_path)
    model = io.load(path)
    with monkeypatch.context() as patch:
        patch.setattr(ir.ExternalTensor, "tobytes", lambda self: pytest.fail(f"{self.name} was read"))
        first = io.save(model, tmp_path / "a.onnx", external=True)
    assert first == [tmp_path / "a.onnx", tmp_path / "a.onnx.data"]
    tensors = {t.name: t for t in onnx.load(tmp_path / "a.onnx", load_external_data=False).graph.initializer}
    outside = [name for name, tensor in tensors.items() if tensor.data_location == onnx.TensorProto.EXTERNAL]
    assert outside == ["w0", "w1", "w2"]
    places = [onnx.external_data_helper.ExternalDataInfo(tensors[name]) for name in ("w0", "w1", "w2")]
    assert [(p.location, p.offset % 64, p.length) for p in places] == [("a.onnx.data", 0, 4096)] * 3
    assert np.array_equal(_answer(tmp_path / "a.onnx"), _answer(path))
    io.save(io.load(path), tmp_path / "b.onnx", external=True)
    assert (tmp_path / "a.onnx.data").read_bytes() == (tmp_path / "b.onnx.data").read_bytes()
    io.save(io.load(tmp_path / "a.onnx"), tmp_path / "c.onnx", external=True)
    assert (tmp_path / "a.onnx.data").read_bytes() == (tmp_path / "c.onnx.data").read_bytes()


def test_the_same_region_is_written_once(tmp_path: Path) -> None:
    path = _in_files(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    tensors = {t.name: t for t in proto.graph.initializer}
    del tensors["w2"].external_data[:]
    tensors["w2"].external_data.extend(tensors["w0"].external_data)
    path.write_bytes(proto.SerializeToString())
    io.save(io.load(path), tmp_path / "out.onnx", external=True)
    assert (tmp_path / "out.onnx.data").stat().st_size == 2 * 4096
    assert np.array_equal(_answer(tmp_path / "out.onnx"), _answer(path))


def test_large_weights_begin_at_pages(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(TEXT)
    for number in range(2):
        array = np.full((300, 300 + number), number, np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, f"u{number}"))
    io.save(io.from_proto(model), tmp_path / "out.onnx", external=True)
    tensors = onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer
    places = [onnx.external_data_helper.ExternalDataInfo(t) for t in tensors if t.data_location == 1]
    assert [place.offset % 4096 for place in places] == [0, 0]


def test_weights_of_a_replaced_model_do_not_stay(tmp_path: Path) -> None:
    model = io.load(_in_files(tmp_path))
    out, data = tmp_path / "out.onnx", tmp_path / "out.onnx.data"
    io.save(model, out, external=True)
    assert io.save(model, out) == [out]
    assert not data.exists()
    data.write_bytes(b"of somebody else")
    io.save(model, out)
    assert data.read_bytes() == b"of somebody else"


@pytest.mark.parametrize("external", [False, True])
def test_only_what_replaces_a_file_is_flushed(tmp_path: Path, external: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loses power has the old model or the new one; a new file needs no disk to be whole for all processes."""
    model, done = io.load(_in_files(tmp_path)), list[str]()
    flush, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("flush"), flush(file)))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("replace"), replace(*paths)))
    parts = 2 if external else 1
    for expected in (["replace"] * parts, ["flush"] * parts + ["replace"] * parts):
        io.save(model, tmp_path / "out.onnx", external=external)
        assert done == expected
        done.clear()


def test_a_file_that_shrank_since_loading_is_said(tmp_path: Path) -> None:
    model = io.load(_in_files(tmp_path))
    (tmp_path / "part0.bin").write_bytes(b"0" * 100)
    with pytest.raises(UserError, match="shorter than when the model was loaded"):
        io.save(model, tmp_path / "out.onnx", external=True)
    assert not list(tmp_path.glob("*out*"))


def test_edited_weights_of_a_large_model_leave_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxedge.model.names.SPILLS_FROM_BYTES", 0)
    monkeypatch.setattr("onnxedge.model.spill.MIN_BYTES", 0)
    model = io.load(_in_files(tmp_path))
    refresh_scopes(model)
    node = next(iter(model.graph))
    array = constant(node.inputs[1])
    assert array is not None
    new = set_constant(node, 1, 2 * array).const_value
    assert isinstance(new, ir.Tensor)
    assert isinstance(new.raw, np.memmap)
    io.save(model, tmp_path / "out.onnx", external=True)
    assert np.allclose(constant(io.load(tmp_path / "out.onnx").graph[0].inputs[1]), 2 * array)


@pytest.mark.parametrize("name", [path.name for path in sorted(FIXTURES.glob("*.onnx"))])
def test_a_model_is_revived_from_its_skeleton(name: str) -> None:
    model = io.load(FIXTURES / name)
    infer_shapes(model)
    before = to_proto(model)
    skeleton = Skeleton(model)
    for graph in list(graphs_of(model)):  # what becomes of the model is nothing to the skeleton
        for node in graph:
            node.attributes.clear()
            node.name = "edited"
        for value in graph.initializers.values():
            value.const_value = None
    revived = skeleton.revive()
    assert to_proto(revived) == before
    assert {id(v.const_value) for g in graphs_of(revived) for v in g.initializers.values()} == {
        id(tensor) for tensor in skeleton.tensors()
    }


def test_content_tells_of_edits() -> None:
    model = io.load(FIXTURES / "branch_if.onnx")
    before = content_of(model)
    assert content_of(model) == before
    inner = list(graphs_of(model))[-1]
    inner[0].attributes["note"] = ir.AttrInt64("note", 1)
    assert content_of(model) != before


def test_a_skeleton_holds_no_weights(fixtures: Path) -> None:
    model = io.load(fixtures / "external_data.onnx")
    before = to_proto(model).SerializeToString()
    proto = Skeleton(model).proto()
    assert proto.ByteSize() < 10_000
    onnx.checker.check_model(proto)
    assert to_proto(model).SerializeToString() == before
    assert abs(written_bytes(Skeleton(model)) - len(before)) < 0.05 * len(before)
