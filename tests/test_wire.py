"""Weights apart from the rest of a file: the same model comes out, and what is unusual is left to protobuf."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxedge.errors import UserError
from onnxedge.model import io
from onnxedge.model.wire import split
from onnxedge.runtime import Session

TEXT = """
<ir_version: 8, opset_import: ["" : 18]>
g (float[N, 64] x) => (float[N, 64] y) { a = MatMul(x, w) y = Add(a, b) }
"""


def _model() -> onnx.ModelProto:
    """Return a model of one large weight and a small one."""
    model = onnx.parser.parse_model(TEXT)
    rng = np.random.default_rng(0)
    for name, shape in (("w", (64, 64)), ("b", (64,))):
        tensor = onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        tensor.doc_string = f"about {name}"
        model.graph.initializer.append(tensor)
    model.metadata_props.add(key="author", value="me")
    return model


def _answer(model: Path | onnx.ModelProto | ir.Model) -> np.ndarray:
    return Session(model).run({"x": np.random.default_rng(1).standard_normal((2, 64)).astype(np.float32)})["y"]


def test_a_large_weight_is_taken_apart_and_comes_back(tmp_path: Path) -> None:
    model = _model()
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(model, path)
    thin, regions = split(path.read_bytes())
    assert [(index, region.dims) for index, region in regions.items()] == [(0, (64, 64))]
    assert len(thin) < 2000
    loaded = io.load(path)
    weight = loaded.graph.initializers["w"]
    assert isinstance(weight.const_value, ir.Tensor)
    assert weight.const_value.numpy().ctypes.data % 8 == 0  # the runtime and numpy may compute with it where it is
    assert weight.shape == ir.Shape([64, 64])
    io.save(loaded, out)
    again = onnx.load(out)
    assert list(again.graph.initializer) == list(model.graph.initializer)
    assert [node.op_type for node in again.graph.node] == ["MatMul", "Add"]
    assert (again.metadata_props, again.opset_import) == (model.metadata_props, model.opset_import)
    assert np.array_equal(_answer(out), _answer(path))
    assert np.array_equal(_answer(loaded), _answer(path))


def test_declared_shapes_stay(tmp_path: Path) -> None:
    """A weight may be a graph input, a graph output, or be declared among the inner values."""
    model = _model()
    info = onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [64, None])
    for field in (model.graph.input, model.graph.output, model.graph.value_info):
        field.append(info)
        path = tmp_path / "declared.onnx"
        path.write_bytes(model.SerializeToString())
        assert io.load(path).graph.initializers["w"].shape == io.from_proto(model).graph.initializers["w"].shape
        field.pop()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "bool", "int64", "complex64", "uint8"])
def test_every_type_of_whole_bytes(tmp_path: Path, dtype: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    array = np.random.default_rng(0).integers(0, 2, 8192).astype(kind)
    model = _model()
    model.ir_version = 10
    proto = ir.serde.serialize_tensor(ir.tensor(array, name="t"))
    model.graph.initializer.append(proto)
    path = tmp_path / "in.onnx"
    onnx.save(model, path)
    assert 2 in split(path.read_bytes())[1]
    io.save(io.load(path), tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx").graph.initializer[2] == proto


def _two_graphs(model: onnx.ModelProto) -> bytes:
    """Return a model in two halves, which protobuf merges."""
    return model.SerializeToString() + onnx.ModelProto(graph=onnx.GraphProto(doc_string="more")).SerializeToString()


def _doubled_content(model: onnx.ModelProto) -> bytes:
    model.graph.initializer[0].float_data.append(1.0)
    return model.SerializeToString()


def _of_wrong_length(model: onnx.ModelProto) -> bytes:
    model.graph.initializer[0].raw_data += b"0"
    return model.SerializeToString()


def _of_packed_type(model: onnx.ModelProto) -> bytes:
    model.graph.initializer[0].data_type = onnx.TensorProto.INT4
    return model.SerializeToString()


def _of_many_dimensions(model: onnx.ModelProto) -> bytes:
    model.graph.initializer[0].dims.extend([1] * 100)
    return model.SerializeToString()


def _of_negative_dimensions(model: onnx.ModelProto) -> bytes:
    model.graph.initializer[0].dims[:] = [-64, -64]
    return model.SerializeToString()


@pytest.mark.parametrize(
    "unusual",
    [_two_graphs, _doubled_content, _of_wrong_length, _of_packed_type, _of_many_dimensions, _of_negative_dimensions],
)
def test_what_is_unusual_stays_whole(unusual: Callable[[onnx.ModelProto], bytes]) -> None:
    data = unusual(_model())
    assert split(data) == (data, {})


def test_a_weight_of_wrong_length_is_said(tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    path.write_bytes(_of_wrong_length(_model()))
    with pytest.raises(UserError, match="needs 16384"):
        io.load(path)


def test_any_bytes_are_read_as_protobuf_reads_them() -> None:
    """Cut short or with bytes that were changed, the thin model is what protobuf makes of the whole, or both fail."""
    rng, data = random.Random(0), _model().SerializeToString()
    for _ in range(2000):
        mutant = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            place = rng.choice([rng.randrange(len(data)), rng.randrange(200)])
            mutant[place] = rng.randrange(256)
        whole = bytes(mutant[: rng.choice([len(data), rng.randrange(len(data))])])
        thin, regions = split(whole)
        try:
            expected = onnx.ModelProto.FromString(whole)
        except Exception:  # protobuf's own, of several types
            with pytest.raises(Exception):  # noqa: B017, PT011
                onnx.ModelProto.FromString(thin)
            continue
        found = onnx.ModelProto.FromString(thin)
        for index, region in regions.items():
            tensor = found.graph.initializer[index]
            tensor.raw_data = whole[region.offset : region.offset + region.length]
            tensor.dims[:] = region.dims
        assert found == expected
