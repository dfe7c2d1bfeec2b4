"""Promises in numbers: exact, rounding, lossy; shapes, non-finite values, integers, quantized models."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from onnxedge.model.interface import Interface
from onnxedge.passes import Accuracy
from onnxedge.verify import Broken, check_numbers, check_structure, infer_shapes

ONE = np.ones((2, 3), np.float32)


def check(old: np.ndarray, new: np.ndarray, promise: Accuracy, *, quantized: bool = False) -> float:
    return check_numbers([{"y": old}], [{"y": new}], promise, quantized=quantized).max_abs_diff


def test_exact_means_every_bit() -> None:
    nan = np.array([np.nan, np.inf, 1.0], np.float32)
    assert check(nan, nan.copy(), "exact") == 0.0
    with pytest.raises(Broken, match=r"not bit-equal: differs by up to 1\.19e-07"):
        check(ONE, np.nextafter(ONE, 2 * ONE), "exact")


def test_rounding_is_held_to_the_magnitude() -> None:
    assert check(1e4 * ONE, 1e4 * ONE + 1, "rounding") == 1.0
    with pytest.raises(Broken, match="more than rounding explains"):
        check(ONE, ONE * 1.01, "rounding")
    with pytest.raises(Broken, match=r"SQNR 20\.0 dB"):
        check(ONE, ONE * 1.1, "rounding", quantized=True)
    check(ONE, ONE * 1.01, "rounding", quantized=True)


@pytest.mark.parametrize("promise", ["exact", "rounding", "lossy"])
def test_shape_type_and_finiteness_always_hold(promise: Accuracy) -> None:
    with pytest.raises(Broken, match="became"):
        check(ONE, ONE[:1], promise)
    with pytest.raises(Broken, match="became"):
        check(ONE, ONE.astype(np.float64), promise)
    with pytest.raises(Broken, match="not finite"):
        check(ONE, ONE * np.nan, promise)


def test_integers_may_hardly_change() -> None:
    old = np.arange(1000)
    new = old.copy()
    new[:10] += 1
    check(old, new, "rounding")
    new[:11] += 1
    with pytest.raises(Broken, match=r"1\.1% of the values changed"):
        check(old, new, "rounding")


def model(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model('<ir_version: 8, opset_import: ["":17]>' + text))


def test_the_interface_stays() -> None:
    before = model("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    check_structure(model("g (float[N,4] x) => (float[N,4] y) { y = Abs(x) }"), Interface.of(before))
    for text, message in (
        ("g (float[N,4] x) => (float[N,4] z) { z = Relu(x) }", "outputs changed"),
        ("g (float[N,4] x) => (double[N,4] y) { y = Cast<to=11>(x) }", "changed from FLOAT to DOUBLE"),
        ("g (float[2,4] x) => (float[2,4] y) { y = Relu(x) }", "a free dimension was fixed"),
        ("g (float[N,5] x) => (float[N,5] y) { y = Relu(x) }", "changed shape"),
    ):
        with pytest.raises(Broken, match=message):
            check_structure(model(text), Interface.of(before))


def test_shape_inference_ends_on_a_repeated_einsum_index() -> None:
    trap = model(
        'g (float[2,3,3] x, float[2,3,3] z) => (float[2,3,3] y) { y = Einsum<equation="...ii,...jj->...ij">(x, z) }'
    )
    infer_shapes(trap)
