"""int8 end to end on what models and samples come in: many inputs, free shapes, fixed batches, control flow."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from conftest import parse
from onnxedge_passes.quantize import Int8
from precision import sqnr

import onnxedge
from onnxedge.api import Array, Session, optimized_graph
from onnxedge.report.records import PassRecord

pytestmark = pytest.mark.usefixtures("untimed")
C = 32
CONVS = "{i}a = Conv <pads = [1,1,1,1]> ({i}, w0)  {i}r = Relu({i}a)  {i}b = Conv <pads = [1,1,1,1]> ({i}r, w1)"


def model_of(inputs: str, body: str, output: str = "float[N,M,H,W] y", opset: int = 17) -> ir.Model:
    """Return a graph with two weights of convolutions in it, w0 and w1."""
    model = parse(f"g ({inputs}, float[{C},{C},3,3] w0, float[{C},{C},3,3] w1) => ({output}) {{ {body} }}", opset=opset)
    rng = np.random.default_rng(0)
    for name in ("w0", "w1"):
        value = next(v for v in model.graph.inputs if v.name == name)
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor((rng.normal(size=(C, C, 3, 3)) / 9).astype(np.float32))
        model.graph.register_initializer(value)
    return model


def images(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def quantized(model: ir.Model, calib: Any, kernels: int = 2) -> tuple[ir.Model, PassRecord]:
    """Return the quantized model; as many convolutions as told must run in integers."""
    found = onnxedge.optimize(model, [Int8()], calib=calib)
    (record,) = found.report.passes
    assert (record.status, record.verified) == ("applied", "numeric"), (record.reason, found.report.notes)
    assert [n.op_type for n in optimized_graph(found.model).graph.node].count("QLinearConv") == kernels
    return found.model, record


def close(before: ir.Model, after: ir.Model, feed: dict[str, Array], least: float = 25.0) -> None:
    first, other = Session(before).run(feed), Session(after).run(feed)
    assert list(first) == list(other)
    for name, array in first.items():
        assert array.shape == other[name].shape
        if array.dtype.kind == "f" and array.any():
            assert sqnr(array, other[name]) > least, name
        else:
            np.testing.assert_array_equal(array, other[name])


def test_many_inputs_of_several_types_and_shapes() -> None:
    body = f"""{CONVS.format(i="x")}  {CONVS.format(i="z")}  p = Concat <axis = 3> (xb, zb)
      t = Gather <axis = 3> (p, ids)  y = Where(mask, t, k)"""
    inputs = f"float[N,{C},12,12] x, float[N,{C},12,8] z, int64[5] ids, bool[1] mask, float[1] k"
    model = model_of(inputs, body)
    calib = {
        "x": images(24, C, 12, 12), "z": 3 * images(24, C, 12, 8, seed=2), "ids": np.array([0, 3, 9, 13, 19]),
        "mask": np.array([True]), "k": np.zeros(1, np.float32),
    }  # fmt: skip
    found, _ = quantized(model, calib, 4)
    feed = calib | {"x": images(3, C, 12, 12, seed=5), "z": 3 * images(3, C, 12, 8, seed=6)}
    close(model, found, feed)
    close(model, found, feed | {"mask": np.array([False])})


def test_samples_of_many_sizes() -> None:
    model = model_of(f"float[N,{C},H,W] x", f"{CONVS.format(i='x')}  y = Relu(xb)")
    sizes = [(12, 12), (16, 9), (8, 20), (15, 15)] * 6
    found, record = quantized(model, [{"x": images(1, C, h, w, seed=h)} for h, w in sizes])
    assert record.figures["held_out_sqnr_db"] > 25
    for side in (7, 12, 31):
        close(model, found, {"x": images(2, C, side, side + 1, seed=side)})


@pytest.mark.parametrize("count", [3, 8, 30])
def test_a_batch_that_the_model_fixes(count: int) -> None:
    """The last batch is filled up, and what fills it up is not counted."""
    model = model_of(f"float[8,{C},12,12] x", f"{CONVS.format(i='x')}  y = Relu(xb)", f"float[8,{C},12,12] y")
    found, _ = quantized(model, {"x": images(count, C, 12, 12)})
    close(model, found, {"x": images(8, C, 12, 12, seed=4)})


IF = """cond = Greater(s, half)
  y = If (cond) <
    then_branch = th () => (float[N,M,H,W] u) {{ n = Neg({inner})  u = Add(n, {outer}) }},
    else_branch = el () => (float[N,M,H,W] v) {{ v = Mul({inner}, {inner}) }}>"""


@pytest.mark.parametrize(("inner", "outer"), [("xr", "xb"), ("xb", "x"), ("xb", "xb")])
def test_bodies_that_read_what_becomes_integer(inner: str, outer: str) -> None:
    body = f"half = Constant <value = float {{0.5}}> ()  {CONVS.format(i='x')}  {IF.format(inner=inner, outer=outer)}"
    model = model_of(f"float[N,{C},12,12] x, float s", body)
    calib = {"x": images(24, C, 12, 12), "s": np.array(1, np.float32)}
    found, _ = quantized(model, calib)
    for condition in (0, 1):
        feed = {"x": images(2, C, 12, 12, seed=3), "s": np.array(condition, np.float32)}
        close(model, found, feed, least=22.0)


def test_a_loop_around_a_convolution_stays_float() -> None:
    body = f"""{CONVS.format(i="x")}  t = Constant <value = bool {{1}}> ()
      y = Loop (count, t, xb) <body = b (int64 i, bool go, float[N,M,H,W] c) => (bool more, float[N,M,H,W] d) {{
        more = Identity(go)  e = Conv <pads = [1,1,1,1]> (c, w1)  d = Relu(e) }}>"""
    model = model_of(f"float[N,{C},12,12] x, int64 count", body)
    calib = {"x": images(24, C, 12, 12), "count": np.array(2)}
    found, _ = quantized(model, calib)
    (loop,) = [node for node in found.graph if node.op_type == "Loop"]
    assert [node.op_type for node in loop.attributes["body"].as_graph()] == ["Identity", "Conv", "Relu"]
    for count in (0, 1, 4):
        close(model, found, {"x": images(2, C, 12, 12, seed=3), "count": np.array(count)}, least=20.0)


def test_no_samples_at_all() -> None:
    """Samples are made from the model's own statistics then, and the report says so."""
    model = model_of(f"float[N,{C},12,12] x", f"{CONVS.format(i='x')}  y = Relu(xb)")
    found = onnxedge.optimize(model, [Int8()])
    assert found.report.calibration == "synthetic"
    assert found.report.passes[0].status == "applied"
    close(model, found.model, {"x": images(2, C, 12, 12, seed=3)}, least=20.0)
