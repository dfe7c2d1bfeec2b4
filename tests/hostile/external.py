"""External data that lies elsewhere, is no file, or is shorter than said."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from hostile.maker import TINY, Maker, parse, write

WEIGHT = np.arange(12, dtype=np.float32).tobytes()


def _model(folder: Path, data: bytes | None = WEIGHT, **entries: str) -> Path:
    """Write a model whose weight lies in ``w.bin``, unless the entries say otherwise."""
    model = parse(TINY)
    tensor = model.graph.initializer[0]
    for field in ("raw_data", "float_data"):
        tensor.ClearField(field)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    if data is not None:
        (folder / "w.bin").write_bytes(data)
    for key, value in {"location": "w.bin", **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return write(model, folder)


def _says(data: bytes | None = WEIGHT, **entries: str) -> Maker:
    return lambda folder: _model(folder, data, **entries)


def _placed(place: Callable[[Path], object]) -> Maker:
    def make(folder: Path) -> Path:
        place(folder / "w.bin")
        return _model(folder, None)

    return make


def _outside(folder: Path) -> Path:
    (folder / "outside").mkdir()
    (folder / "outside" / "w.bin").write_bytes(WEIGHT)
    return folder / "outside" / "w.bin"


def _symlink(file: Path) -> None:
    file.symlink_to(_outside(file.parent))


def _linked_folder(folder: Path) -> Path:
    inner = folder / "inner"
    inner.mkdir()
    _outside(folder)
    (inner / "link").symlink_to(folder / "outside")
    return _model(inner, None, location="link/w.bin")


def _absolute(folder: Path) -> Path:
    return _model(folder, None, location=str(_outside(folder)))


def _sparse(file: Path) -> None:
    with file.open("wb") as handle:
        handle.truncate(3 << 30)


def _huge(folder: Path) -> Path:
    """A weight of 3 GiB that is one hole in a file: cheap to write, dear to read."""
    model = parse("g (float[N, 1024] x) => (float[N, 786432] y) <float[1] w = {1}> { a = MatMul(x, w) y = Relu(a) }")
    tensor = model.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.ClearField("dims")
    tensor.dims.extend([1024, 786432])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    _sparse(folder / "w.bin")
    return write(model, folder)


def _edited(edit: Callable[[onnx.TensorProto], object]) -> Maker:
    def make(folder: Path) -> Path:
        path = _model(folder)
        model = onnx.load(path, load_external_data=False)
        edit(model.graph.initializer[0])
        return write(model, folder)

    return make


def _in_constant(folder: Path) -> Path:
    model = parse("g (float[3] x) => (float[3] y) { c = Constant<value = float[3] {1, 2, 3}>() y = Add(x, c) }")
    tensor = model.graph.node[0].attribute[0].t
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../w.bin")
    return write(model, folder)


def _itself(folder: Path) -> Path:
    return _model(folder, None, location="m.onnx", length="48", offset="0")


MODELS: dict[str, Maker] = {
    "well": _says(),
    "absolute": _absolute,
    "parent in the middle": _says(location="a/../../w.bin"),
    "parent with backslashes": _says(location="..\\w.bin"),
    "symbolic link": _placed(_symlink),
    "linked folder": _linked_folder,
    "pipe": _placed(os.mkfifo),
    "device": _placed(lambda file: file.symlink_to("/dev/zero")),
    "device by name": _says(None, location="/dev/zero"),
    "folder": _placed(Path.mkdir),
    "this folder": _says(location="."),
    "missing": _says(None),
    "link to nothing": _placed(lambda file: file.symlink_to("absent")),
    "link to itself": _placed(lambda file: file.symlink_to("w.bin")),
    "model itself": _itself,
    "empty": _says(b""),
    "a byte short": _says(WEIGHT[:-1]),
    "longer than the tensor": _says(WEIGHT * 2),
    "offset beyond the end": _says(offset="4096"),
    "offset of 2^63": _says(offset=str(2**63)),
    "offset of 2^200": _says(offset=str(2**200)),
    "offset in words": _says(offset="zero"),
    "offset in fractions": _says(offset="0.5"),
    "offset in Arabic digits": _says(offset="\u0661"),
    "offset with spaces": _says(offset=" 0 "),
    "offset unaligned": _says(b"abc" + WEIGHT, offset="3"),
    "length negative": _says(length="-1"),
    "length 0": _says(length="0"),
    "length less than the tensor": _says(length="44"),
    "length more than the tensor": _says(WEIGHT * 2, length="96"),
    "length of 2^64": _says(length=str(2**64)),
    "location empty": _says(location=""),
    "location with NUL": _says(location="w.bin\x00.txt"),
    "location with a newline": _says(location="w\n.bin"),
    "location of 1 MB": _says(location="w" * 1_000_000),
    "no location": _edited(lambda t: t.external_data.pop(0)),
    "no entries": _edited(lambda t: t.ClearField("external_data")),
    "location twice": _edited(lambda t: t.external_data.add(key="location", value="/etc/passwd")),
    "raw data too": _edited(lambda t: setattr(t, "raw_data", WEIGHT)),
    "entry nobody knows": _edited(lambda t: t.external_data.add(key="checksum", value="0")),
    "of strings": _edited(lambda t: setattr(t, "data_type", onnx.TensorProto.STRING)),
    "of type 0": _edited(lambda t: setattr(t, "data_type", 0)),
    "of negative dimensions": _edited(lambda t: t.dims.__setitem__(0, -4)),
    "of no elements": _edited(lambda t: t.dims.__setitem__(0, 0)),
    "of 2^63 elements": _edited(lambda t: t.dims.__setitem__(0, 2**62)),
    "in a Constant node": _in_constant,
    "3 GiB hole": _huge,
}
