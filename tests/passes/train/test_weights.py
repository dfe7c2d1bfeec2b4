"""Trained weights put back by name into the original graph, all or none."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxedge_passes.train.weights import put_weights

from onnxedge.api import Array, Session, UserError, to_proto

TEXT = """g (float[N, 2] x) => (float[N, 2] y) <float[2] b = {1, 2}, int64[1] i = {0}> {
    w = Constant<value = float[2, 2] {1, 2, 3, 4}>()
    m = MatMul(x, w)
    y = Add(m, b)
}"""


def model(ir_version: int = 8, text: str = TEXT) -> ir.Model:
    head = f'<ir_version: {ir_version}, opset_import: ["": 17]>'
    return ir.serde.deserialize_model(onnx.parser.parse_model(f"{head} {text}"))


def outputs(model: ir.Model) -> Array:
    return Session(model).run({"x": np.eye(2, dtype=np.float32)})["y"]


def test_initializers_and_nodes() -> None:
    trained = model()
    weights = {"w": np.full((2, 2), 5, np.float32), "b": np.array([1, 2], np.float32)}
    assert put_weights(trained, weights) == 1
    onnx.checker.check_model(to_proto(trained), full_check=True)
    np.testing.assert_array_equal(outputs(trained), [[6, 7], [6, 7]])
    assert [node.op_type for node in trained.graph] == ["Constant", "MatMul", "Add"]
    assert put_weights(trained, weights) == 0


def test_initializers_that_are_inputs_too() -> None:
    trained = model(3, "g (float[N, 2] x, float[2] b) => (float[N, 2] y) <float[2] b = {1, 2}> { y = Add(x, b) }")
    assert put_weights(trained, {"b": np.array([3, 3], np.float32)}) == 1
    np.testing.assert_array_equal(outputs(trained), [[4, 3], [3, 4]])


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("ww", np.ones((2, 2), np.float32), "has no constant 'ww'"),
        ("m", np.ones((2, 2), np.float32), "has no constant 'm'"),
        ("w", np.ones(4, np.float32), r"float32\[4\], the model has FLOAT\[2, 2\]"),
        ("w", np.ones((2, 2)), "is float64"),
        ("i", np.ones(1, np.float32), "the model has INT64"),
        ("w", np.full((2, 2), np.nan, np.float32), "is not finite"),
    ],
)
def test_refused_whole(name: str, array: Array, message: str) -> None:
    trained = model()
    with pytest.raises(UserError, match=message):
        put_weights(trained, {"b": np.zeros(2, np.float32), name: array})
    assert to_proto(trained) == to_proto(model())
