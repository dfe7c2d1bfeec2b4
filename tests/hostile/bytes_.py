"""Files that are no models, and models with bytes flipped, cut, put in and left out."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from hostile.maker import TINY, Maker, parse

VARIED = """
g (float[N, 4] x, int64 k) => (float[N, 4] y, float[N, 4] z)
<float[4] w = {1, 2, 3, 4}, bool t = {1}, int64 n = {3}, float[1] h = {0.5}>
{ a = Mul(x, w)
  b = If(t) <then_branch = p () => (float[N, 4] r) { r = Add(a, h) },
             else_branch = q () => (float[N, 4] s) { s = Neg(a) }>
  c = Loop(n, t, b) <body = l (int64 i, bool f, float[N, 4] v) => (bool d, float[N, 4] u)
                             { d = Identity(f) u = Relu(v) }>
  s1 = Shape(c)  m = Reshape(c, s1)
  e = f.scale<alpha = 2.0>(m)  g1 = Constant<value = float[1] {3}>()  y = Add(e, g1)  z = Transpose<perm = [0, 1]>(y) }
"""
FUNCTION = '<domain: "f", opset_import: ["": 17]> scale <alpha> (v) => (o) { o = LeakyRelu<alpha: float = @alpha>(v) }'


def _flip(data: bytearray, rng: np.random.Generator) -> None:
    for position in rng.integers(0, len(data), rng.integers(1, 6)):
        data[position] ^= 1 << int(rng.integers(0, 8))


def _overwrite(data: bytearray, rng: np.random.Generator) -> None:
    start = int(rng.integers(0, len(data)))
    count = int(rng.integers(1, 9))
    data[start : start + count] = rng.bytes(count)


def _cut(data: bytearray, rng: np.random.Generator) -> None:
    del data[int(rng.integers(1, len(data))) :]


def _insert(data: bytearray, rng: np.random.Generator) -> None:
    start = int(rng.integers(0, len(data)))
    data[start:start] = rng.bytes(int(rng.integers(1, 9)))


def _leave_out(data: bytearray, rng: np.random.Generator) -> None:
    start = int(rng.integers(0, len(data)))
    del data[start : start + int(rng.integers(1, 9))]


def _number(data: bytearray, rng: np.random.Generator) -> None:
    """Put an extreme byte where a small number stands: lengths, dimensions, types."""
    small = [i for i, byte in enumerate(data) if 0 < byte < 16]
    data[int(rng.choice(small))] = int(rng.choice([0, 1, 63, 64, 127]))


def _fuzzed(kind: int, spoil: Callable[[bytearray, np.random.Generator], None], seed: int) -> Maker:
    def make(folder: Path) -> Path:
        data = bytearray(parse(VARIED, functions=FUNCTION).SerializeToString(deterministic=True))
        spoil(data, np.random.default_rng([kind, seed]))
        return _file(folder, bytes(data))

    return make


def _file(folder: Path, data: bytes, name: str = "m.onnx") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def _written(data: Callable[[], bytes], name: str = "m.onnx") -> Maker:
    return lambda folder: _file(folder, data(), name)


def _placed(place: Callable[[Path], object]) -> Maker:
    def make(folder: Path) -> Path:
        place(folder / "m.onnx")
        return folder / "m.onnx"

    return make


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model.onnx", parse(TINY).SerializeToString())
    return buffer.getvalue()


def _hole(file: Path, size: int) -> None:
    with file.open("wb") as handle:
        handle.truncate(size)


def _hole_behind_a_model(file: Path) -> None:
    file.write_bytes(parse(TINY).SerializeToString())
    with file.open("r+b") as handle:
        handle.truncate(3 << 30)


KINDS = (_flip, _overwrite, _cut, _insert, _leave_out, _number)
COUNTS = (20, 10, 10, 10, 10, 20)

MODELS: dict[str, Maker] = {
    "text": _written(lambda: b"this is no model\n" * 100),
    "one byte": _written(lambda: b"\x08"),
    "zeros": _written(lambda: bytes(1000)),
    "0xff": _written(lambda: b"\xff" * 1000),
    "zip": _written(_zip),
    "gzip": _written(lambda: gzip.compress(parse(TINY).SerializeToString())),
    "pickle": _written(lambda: pickle.dumps({"a": np.zeros(4)})),
    "numpy": _written(lambda: b"\x93NUMPY" + bytes(200)),
    "ELF": _written(lambda: b"\x7fELF" + bytes(4096)),
    "safetensors": _written(lambda: (15).to_bytes(8, "little") + b'{"__metadata__"' + bytes(16)),
    "HTML of a failed download": _written(lambda: b"<!DOCTYPE html><html><body>404</body></html>"),
    "pointer of Git LFS": _written(
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef\nsize 12345\n"
    ),
    "GraphProto": _written(lambda: parse(TINY).graph.SerializeToString()),
    "TensorProto": _written(lambda: onnx.numpy_helper.from_array(np.ones((2, 3), np.float32), "t").SerializeToString()),
    "NodeProto": _written(lambda: parse(TINY).graph.node[0].SerializeToString()),
    "two models": _written(lambda: parse(TINY).SerializeToString() * 2),
    "model and rubbish": _written(lambda: parse(TINY).SerializeToString() + b"rubbish" * 10),
    "unknown fields": _written(lambda: parse(TINY).SerializeToString() + b"\xf2\x7f\x04abcd"),
    "length of 2^63": _written(lambda: b"\x3a" + b"\xff" * 8 + b"\x7f" + bytes(50)),
    "graph in groups": _written(lambda: b"\x3b" * 5000),
    "JSON": _written(lambda: json.dumps({"ir_version": 8, "graph": {}}).encode(), "m.json"),
    "JSON 100,000 deep": _written(lambda: b'{"graph":' * 100_000, "m.json"),
    "text format that is cut": _written(lambda: b'ir_version: 8 graph { name: "g" node { ', "m.textproto"),
    "text format 100,000 deep": _written(lambda: b"graph { node { attribute { g { " * 100_000, "m.textproto"),
    "ONNX text that is cut": _written(
        lambda: b'<ir_version: 8, opset_import: ["": 17]> g (float[1] x) => ', "m.onnxtxt"
    ),
    "ONNX text": _written(
        lambda: b'<ir_version: 8, opset_import: ["": 17]> g (float[1] x) => (float[1] y) { y = Relu(x) }', "m.onnxtxt"
    ),
    "name without an ending": _written(lambda: parse(TINY).SerializeToString(), "model"),
    "pipe": _placed(os.mkfifo),
    "device": _placed(lambda file: file.symlink_to("/dev/zero")),
    "link to itself": _placed(lambda file: file.symlink_to("m.onnx")),
    "folder": _placed(Path.mkdir),
    "hole of 1 MiB": _placed(lambda file: _hole(file, 1 << 20)),
    "hole of 3 GiB": _placed(lambda file: _hole(file, 3 << 30)),
    "hole of 3 GiB behind a model": _placed(_hole_behind_a_model),
    "hole of a terabyte": _placed(lambda file: _hole(file, 1 << 40)),
    **{
        f"fuzzed by {spoil.__name__.strip('_').replace('_', ' ')} {seed}": _fuzzed(kind, spoil, seed)
        for kind, (spoil, count) in enumerate(zip(KINDS, COUNTS, strict=True))
        for seed in range(count)
    },
}
