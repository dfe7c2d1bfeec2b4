"""Models of odd forms that once broke a run or a figure of the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

import onnxedge
from onnxedge.data import model_inputs
from onnxedge.data.fit import Batching
from onnxedge.measure import measure_size
from onnxedge.model import io

pytestmark = pytest.mark.usefixtures("untimed")


def _model(text: str, opset: int = 17, **weights: object) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
    for name, array in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return proto


def _weight(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.2).astype(np.float32)


def test_a_model_whose_answers_change_is_not_compared() -> None:
    """Random operators: nothing can be verified by numbers, so that nothing is blamed for the difference either."""
    text = "g (float[N,16] x) => (float[N,8] y) { a = MatMul(x,w) n = RandomNormalLike(a) r = Add(a,n) y = MatMul(r,v)}"
    done = onnxedge.optimize(_model(text, w=_weight(16, 32), v=_weight(32, 8)), "fold,prune(macs=0.5),int8")
    assert all(record.status == "no change" for record in done.report.passes)
    assert "change from run to run, because of RandomNormalLike" in done.report.unmeasured[0]


def test_answers_that_are_not_numbers_are_compared_as_such() -> None:
    """NaN in the outputs is no difference between the masked and the cut model."""
    text = "g (float[N,16] x) => (float[N,8] y) { a = MatMul(x,w) b = Log(a) y = MatMul(b,v) }"
    done = onnxedge.optimize(_model(text, w=_weight(16, 32), v=_weight(32, 8)), "prune(macs=0.5)")
    assert "raised" not in done.report.passes[0].reason


def test_macs_count_what_runs() -> None:
    """Shapes that only a run tells are counted as they are, not as nothing."""
    text = """g (float[N,3,H,W] x) => (float[N,8,P,Q] y) {
        s = Shape(x)  f = Cast<to=1>(s)  i = Cast<to=7>(f)  r = Reshape(x,i)  y = Conv<kernel_shape=[3,3]>(r,w) }"""
    model = io.from_proto(_model(text, w=_weight(8, 3, 3, 3)))
    feed = {"x": np.zeros((1, 3, 10, 10), np.float32)}
    assert measure_size(model, feed=feed).macs == 8 * 8 * 8 * 27


def test_macs_are_known_behind_the_runtimes_own_operators() -> None:
    """Below opset 13 weights are restored by ``com.microsoft`` nodes, which onnx's inference does not know."""
    text = """g (float[N,8,12,12] x) => (float[N,16,12,12] y) {
        a = Conv<kernel_shape=[3,3],pads=[1,1,1,1]>(x,w)  b = Relu(a)
        y = Conv<kernel_shape=[3,3],pads=[1,1,1,1]>(b,v) }"""
    model = _model(text, 11, w=_weight(16, 8, 3, 3), v=_weight(16, 16, 3, 3))
    done = onnxedge.optimize(model, "int8")
    assert done.report.passes[0].status == "applied"
    assert done.report.passes[0].after.macs == done.report.before.macs


def test_the_declared_outputs_stay(tmp_path: Path) -> None:
    """What is learnt of an output's sizes does not change the interface."""
    text = "g (float[N,16] x) => (float[N,'any'] y) { a = MatMul(x,w)  b = Identity(a)  y = Relu(b) }".replace("'", "")
    onnxedge.optimize(_model(text, w=_weight(16, 32)), "fold", output=tmp_path / "out.onnx")
    shape = onnx.load(tmp_path / "out.onnx").graph.output[0].type.tensor_type.shape
    assert [d.dim_param for d in shape.dim] == ["N", "any"]


def test_a_shared_embedding_is_not_stored_twice() -> None:
    """Folding the Transpose of a weight that is read elsewhere too would double it, however small the model is."""
    text = """g (int64[N,T] i) => (float[N,T,64] y) {
        e = Gather(t,i)  a = MatMul(e,w)  b = Relu(a)  u = Transpose<perm=[1,0]>(t)  y = MatMul(b,u) }"""
    done = onnxedge.optimize(_model(text, t=_weight(64, 32), w=_weight(32, 32)), "fold")
    assert done.report.passes[0].status == "no change"


def test_pruning_leaves_no_larger_model() -> None:
    """What is folded to look through a graph must not outweigh what is cut."""
    text = """g (float[N,16] x) => (float[N,64] y) {
        a = MatMul(x,w)  b = Relu(a)  c = MatMul(b,v)  k = Tile(t,r)  y = Add(c,k) }"""
    tiled = {"t": _weight(1, 64), "r": np.array([4096, 1])}
    proto = _model(text.replace("[N,", "[4096,"), w=_weight(16, 32), v=_weight(32, 64), **tiled)
    done = onnxedge.optimize(proto, "prune(macs=0.5)")
    assert done.report.after.weight_bytes <= done.report.before.weight_bytes


def test_images_are_batched_along_their_first_axis() -> None:
    """A channel axis called B is no batch."""
    text = "g (float[A,B,C,D] x) => (float[A,E,F,G] y) { y = Conv<kernel_shape=[1,1]>(x,w) }"
    inputs = model_inputs(io.from_proto(_model(text, w=_weight(8, 3, 1, 1))))
    assert Batching.of(inputs).axes == (0,)


def test_inputs_that_cannot_be_synthesised_do_not_stop_the_run() -> None:
    """A sequence cannot be made up, so the model is checked in structure alone, and the report says so."""
    text = """g (seq(float[2]) s, int64 i) => (float[2] y) { a = Identity(s)  y = SequenceAt(a, i) }"""
    report = onnxedge.optimize(_model(text), "fold,fuse").report
    assert any("cannot be synthesised" in line for line in report.unmeasured)
    assert [record.status for record in report.passes] != []
    assert not any(record.status == "rolled back" for record in report.passes)
