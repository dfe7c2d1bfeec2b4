"""Tensors whose bytes, dimensions and types do not belong together."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from hostile.maker import Maker, changed, parse, proto, spliced

T = onnx.TensorProto
Edit = Callable[[onnx.TensorProto], object]
ADD = "g (float[N, 4] x) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}> { a = Neg(w) b = Add(x, w) y = Mul(b, a) }"
CONSTANT = spliced("c = Constant<value = float[1] {1}>() y = Add(x, c)")
CAST = "g (float[N, 3] x) => (float[N, 3] y) <float[3] w = {1, 2, 3}> { a = Cast<to=1>(w) y = Add(x, a) }"


def _weight(edit: Edit, text: str = ADD, opset: int = 17) -> Maker:
    return changed(lambda model: edit(model.graph.initializer[0]), text, opset)


def _constant(edit: Edit) -> Maker:
    return changed(lambda model: edit(model.graph.node[0].attribute[0].t), CONSTANT)


def _raw(data: bytes) -> Edit:
    def edit(tensor: onnx.TensorProto) -> None:
        tensor.ClearField("float_data")
        tensor.raw_data = data

    return edit


def _dims(*dims: int) -> Edit:
    def edit(tensor: onnx.TensorProto) -> None:
        del tensor.dims[:]
        tensor.dims.extend(dims)

    return edit


def _odd(kind: int, data: bytes) -> Edit:
    """Make a tensor of three elements of another type."""

    def edit(tensor: onnx.TensorProto) -> None:
        tensor.data_type = kind
        _raw(data)(tensor)

    return edit


def _both(tensor: onnx.TensorProto) -> None:
    tensor.raw_data = bytes(16)


def _strings(tensor: onnx.TensorProto) -> None:
    tensor.data_type = T.STRING
    _raw(b"a\0b\0c\0d\0")(tensor)


def _sparse(indices: list[int], dims: list[int], values: int = 2) -> Maker:
    def build() -> onnx.ModelProto:
        model = parse("g (float[N, 4] x) => (float[N, 4] y) { y = Add(x, w) }")
        data = onnx.helper.make_tensor("w", T.FLOAT, [values], [1.0] * values)
        index = onnx.helper.make_tensor("i", T.INT64, [len(indices)], indices)
        model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(data, index, dims))
        return model

    return proto(build)


MODELS: dict[str, Maker] = {
    "raw data too short": _weight(_raw(bytes(15))),
    "raw data too long": _weight(_raw(bytes(17))),
    "raw data of a terabyte's tensor": _weight(lambda t: (_raw(bytes(16))(t), _dims(1 << 20, 1 << 20)(t))),
    "raw data of none": _weight(_raw(b"")),
    "no data at all": _weight(lambda t: t.ClearField("float_data")),
    "too few numbers": _weight(lambda t: t.float_data.pop()),
    "too many numbers": _weight(lambda t: t.float_data.append(5.0)),
    "raw and typed data": _weight(_both),
    "numbers in another field": _weight(lambda t: (t.ClearField("float_data"), t.double_data.extend([1, 2, 3, 4]))),
    "integers in a float": _weight(lambda t: (t.ClearField("float_data"), t.int32_data.extend([1, 2, 3, 4]))),
    "negative dimension": _weight(_dims(-4)),
    "two negative dimensions": _weight(_dims(-2, -2)),
    "dimension 2^63-1": _weight(_dims(2**63 - 1)),
    "dimensions that overflow to 4": _weight(_dims(2**32, 2**32, 4)),
    "dimensions that overflow to 0": _weight(_dims(2**32, 2**32)),
    "no elements but data": _weight(_dims(0)),
    "no elements of 2^62 rows": _weight(lambda t: (t.ClearField("float_data"), _dims(2**62, 0)(t))),
    "no elements": _weight(lambda t: (t.ClearField("float_data"), _dims(0)(t))),
    "scalar of four": _weight(_dims()),
    "other rank": _weight(_dims(2, 2)),
    "rank 64": _weight(_dims(*[1] * 63, 4)),
    "rank 10,000": _weight(_dims(*[1] * 9999, 4)),
    "type 0": _weight(lambda t: setattr(t, "data_type", 0)),
    "type 99": _weight(lambda t: setattr(t, "data_type", 99)),
    "type -1": _weight(lambda t: setattr(t, "data_type", -1)),
    "type string": _weight(lambda t: setattr(t, "data_type", T.STRING)),
    "strings in raw data": _weight(_strings),
    "segment": _weight(lambda t: t.segment.MergeFrom(T.Segment(begin=0, end=2))),
    "external without a place": _weight(lambda t: setattr(t, "data_location", T.EXTERNAL)),
    "place nobody knows": _weight(lambda t: t.MergeFromString(b"\x70\x07")),
    "numbers that are none": _weight(_raw(b"\x01\x00\x80\x7f" * 2 + b"\xff\xff\xff\xff" * 2)),
    "bool of 7": _weight(_odd(T.BOOL, b"\x07\x80\xff"), CAST),
    **{
        f"{T.DataType.Name(kind)} of 3 in {len(data)} bytes": _weight(_odd(kind, data), CAST, 24)
        for kind, data in (
            (T.INT4, b"\x12\x03"),
            (T.INT4, b"\x12"),
            (T.UINT4, b"\x12\xff"),
            (T.UINT4, b"\x12\x03\x04"),
            (T.FLOAT8E4M3FN, b"\x01\x7f\xff"),
            (T.FLOAT8E5M2, b"\x01\x7c\xff"),
            (T.FLOAT8E4M3FNUZ, b"\x80\x01"),
            (T.BFLOAT16, b"\x01\x02\xc0\x7f\x80\xff"),
            (T.BFLOAT16, b"\x01\x02\x03\x04\x05"),
            (T.FLOAT16, b"\x01\x7c\x00\x7c\x00\xfc"),
            (T.FLOAT16, b"\x01"),
            (T.FLOAT4E2M1, b"\x12\x03"),
            (T.INT8, b"\x80\x01"),
            (T.COMPLEX64, bytes(24)),
            (T.UINT64, b"\xff" * 24),
        )
    },
    "Constant too short": _constant(_raw(bytes(3))),
    "Constant too long": _constant(_raw(bytes(5))),
    "Constant of a negative dimension": _constant(_dims(-1)),
    "Constant of 2^62 elements": _constant(_dims(2**62)),
    "Constant of type 0": _constant(lambda t: setattr(t, "data_type", 0)),
    "Constant of type 99": _constant(lambda t: setattr(t, "data_type", 99)),
    "sparse": _sparse([0, 3], [4]),
    "sparse out of range": _sparse([0, 99], [4]),
    "sparse negative": _sparse([-1, 3], [4]),
    "sparse out of order": _sparse([3, 0], [4]),
    "sparse of other counts": _sparse([0, 1, 3], [4]),
    "sparse of 2^62": _sparse([0, 3], [2**62]),
    "sparse of a terabyte": _sparse([0, 3], [1 << 20, 1 << 20]),
}
