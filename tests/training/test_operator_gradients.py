"""Gradients of both engines against finite differences, operator by operator."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import operator_gradients
import pytest
from onnx import helper, numpy_helper, parser
from onnxedge_passes.train.gradients import DIFFERENTIABLE
from operator_gradients import Case

from onnxedge.api import Array, Backward, NoGradient, Session
from onnxedge.autodiff.table import RULES
from onnxedge.training.overlay import find_environment

#: BatchNormalization goes by the batch while it trains; test_worker.py looks at whole models.
_ELSEWHERE = {"BatchNormalization"}


def test_every_operator_of_the_table_has_a_case() -> None:
    covered = {name.split(" ")[0].rstrip(",") for name in operator_gradients.CASES}
    assert covered == DIFFERENTIABLE - _ELSEWHERE


def test_gradients() -> None:
    where = find_environment()
    if where is None:
        pytest.skip("needs onnxruntime-training: run `onnxedge training install`")
    script = Path(operator_gradients.__file__)
    variables = {**os.environ, "PYTHONPATH": str(where.overlay), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [where.python, str(script)], capture_output=True, text=True, env=variables, timeout=300, check=True
    )
    answers = json.loads(done.stdout.splitlines()[-1])
    assert set(answers) == set(operator_gradients.CASES)
    wrong = {name: found for name, found in answers.items() if isinstance(found, str) or found > 2e-3}
    assert wrong == {}


_RNG = np.random.default_rng(3)


def draw(*shape: int) -> Array:
    return _RNG.standard_normal(shape).astype(np.float32)


IMAGE, WEIGHT, TABLE = draw(2, 3, 7, 6), draw(4, 3, 3, 2), draw(3, 4)
PARAMETERS = {"g": np.abs(draw(3)) + 1, "b": draw(3), "m": draw(3), "v": np.abs(draw(3)) + np.float32(0.5)}
LIVE = "y, m1, v1 = BatchNormalization<training_mode=1,momentum=0.0>"
#: What engine ort alone has a rule for, or more forms of.
MORE = {
    "Conv, same, upper": Case('y = Conv<auto_pad="SAME_UPPER">(p1, w)', (2, 3, 4, 5), {"w": WEIGHT}),
    "Conv, same, lower, weight": Case(
        'y = Conv<auto_pad="SAME_LOWER",strides=[2, 1]>(x, p1)', (4, 3, 3, 2), {"x": IMAGE}
    ),
    "Conv, pads apart, weight": Case("y = Conv<pads=[0, 2, 1, 0]>(x, p1)", (4, 3, 3, 2), {"x": IMAGE}),
    "Conv, pads apart": Case("y = Conv<pads=[0, 2, 1, 0],dilations=[1, 2]>(p1, w)", (2, 3, 5, 4), {"w": WEIGHT}),
    "Conv, dilations, weight": Case("y = Conv<pads=[2, 1, 2, 1],dilations=[2, 3]>(x, p1)", (4, 3, 3, 2), {"x": IMAGE}),
    "Conv, wide pads, weight": Case("y = Conv<pads=[4, 3, 0, 5]>(x, p1)", (2, 3, 2, 2), {"x": IMAGE}),
    "Conv, no pads, weight": Case("y = Conv(x, p1)", (2, 3, 5, 4), {"x": IMAGE}),
    "Conv, strides, weight": Case("y = Conv<strides=[2, 3],pads=[1, 0, 1, 1]>(x, p1)", (4, 3, 3, 2), {"x": IMAGE}),
    "Conv, long strides, weight": Case("y = Conv<strides=[2],pads=[3, 2]>(x, p1)", (2, 2, 19), {"x": draw(2, 2, 40)}),
    "Conv, dilated strides": Case("y = Conv<strides=[2],dilations=[2]>(x, p1)", (2, 2, 17), {"x": draw(2, 2, 40)}),
    "Conv, 1x1": Case("y = Conv(p1, w)", (2, 3, 3, 3), {"w": WEIGHT[:, :, :1, :1]}),
    "Conv, 1x1, weight": Case("y = Conv(x, p1)", (4, 3, 1, 1), {"x": IMAGE}),
    "Conv, 1x1 apart": Case("y = Conv<strides=[3, 2]>(p1, w)", (2, 3, 5, 4), {"w": WEIGHT[:, :, :1, :1]}),
    "Conv, a line": Case("y = Conv<pads=[2, 1]>(p1, w)", (2, 3, 6), {"w": WEIGHT[:, :, :, 0]}),
    "Conv, a line, weight": Case("y = Conv<pads=[2, 1]>(x, p1)", (4, 3, 3), {"x": IMAGE[:, :, :, 0]}),
    "Conv, a volume, weight": Case(
        "y = Conv<pads=[1, 0, 1, 0, 1, 1]>(x, p1)", (2, 2, 2, 2, 2), {"x": draw(2, 2, 3, 3, 3)}
    ),
    "Conv, groups, weight": Case("y = Conv<group=2,strides=[2, 1]>(x, p1)", (4, 2, 2, 3), {"x": draw(2, 4, 5, 5)}),
    "Conv, depthwise": Case("y = Conv<group=3,pads=[1, 1, 1, 1]>(p1, w)", (2, 3, 4, 4), {"w": draw(6, 1, 3, 3)}),
    "Conv, depthwise, weight": Case("y = Conv<group=3,pads=[1, 1, 1, 1]>(x, p1)", (3, 1, 3, 3), {"x": IMAGE}),
    "Conv, bias": Case("y = Conv(x, w, p1)", (4,), {"x": IMAGE, "w": WEIGHT}),
    "ConvTranspose": Case("y = ConvTranspose<strides=[2, 2],pads=[1, 0, 0, 1]>(p1, w)", (2, 4, 3, 3), {"w": WEIGHT}),
    "BatchNormalization": Case("y = BatchNormalization(p1, g, b, m, v)", (2, 3, 4), PARAMETERS),
    "BatchNormalization, scale": Case("y = BatchNormalization(x, p1, p1, m, v)", (3,), {**PARAMETERS, "x": IMAGE}),
    "BatchNormalization, live": Case(f"{LIVE}(p1, g, b, m, v)", (2, 3, 2, 3), PARAMETERS),
    "BatchNormalization, live, scale": Case(f"{LIVE}(x, p1, p1, m, v)", (3,), {**PARAMETERS, "x": IMAGE}),
    "BatchNormalization, live, rows": Case(f"{LIVE}(p1, g, b, m, v)", (5, 3), PARAMETERS),
    "MatMul, a row": Case("y = MatMul(p1, q)", (3,), {"q": draw(2, 3, 4)}),
    "MatMul, a column": Case("y = MatMul(q, p1)", (4,), {"q": draw(2, 3, 4)}),
    "MatMul, two vectors": Case("y = MatMul(q, p1)", (4,), {"q": draw(4)}),
    "MatMul, one of many": Case("y = MatMul(q, p1)", (1, 4, 2), {"q": draw(5, 2, 3, 4)}),
    "Gemm, both turned": Case("y = Gemm<alpha=0.5,transA=1,transB=1>(q, p1)", (2, 3), {"q": TABLE}),
    "Gemm, sum": Case("y = Gemm<beta=2.0>(q, r, p1)", (1, 4), {"q": TABLE[:, :3], "r": TABLE}),
    "Pow, exponent": Case("y = Pow(q, p1)", constants={"q": np.abs(TABLE) + np.float32(0.5)}),
    "Pow, three": Case("y = Pow(p1, q)", constants={"q": np.float32(3)}),
    "Pow, one": Case("y = Pow(p1, q)", constants={"q": np.float32(1)}),
    "Pow, of each": Case("y = Pow(p1, q)", constants={"q": np.array([0, 1, 2, 0.5], np.float32)}, positive=True),
    "Pow, integer": Case("y = Pow(p1, q)", constants={"q": np.array(2)}),
    "Sum": Case("y = Sum(p1, q, p1)", constants={"q": draw(2, 3, 4)}),
    "Mean": Case("y = Mean(p1, q, p1)", constants={"q": TABLE}),
    "Max, three": Case("y = Max(p1, q, r)", constants={"q": TABLE, "r": TABLE[::-1].copy()}),
    "Min, wide": Case("y = Min(q, p1)", (4,), {"q": TABLE}),
    "ReduceMax": Case("y = ReduceMax<axes=[1],keepdims=0>(p1)"),
    "ReduceMin": Case("y = ReduceMin(p1)"),
    "ReduceL1": Case("y = ReduceL1<axes=[0],keepdims=0>(p1)"),
    "ReduceSumSquare": Case("y = ReduceSumSquare<axes=[-1]>(p1)"),
    "ReduceLogSum": Case("y = ReduceLogSum<axes=[-1]>(p1)", positive=True),
    "ReduceSum, none": Case("y = ReduceSum<noop_with_empty_axes=1>(p1)"),
    "HardSigmoid": Case("y = HardSigmoid(p1)"),
    "HardSwish": Case("y = HardSwish(p1)"),
    "Softmax, first": Case("y = Softmax<axis=0>(p1)"),
    "LogSoftmax, first": Case("y = LogSoftmax<axis=0>(p1)"),
    "LayerNormalization, one output": Case("y = LayerNormalization(p1, g)", constants={"g": TABLE[0]}),
    "LayerNormalization, two axes": Case("y = LayerNormalization<axis=1>(p1, g, g)", (2, 3, 4), {"g": TABLE}),
    "AveragePool": Case("y = AveragePool<kernel_shape=[3, 2],strides=[2, 1],pads=[1, 1, 0, 1]>(p1)", (2, 2, 5, 4)),
    "AveragePool, up": Case("y = AveragePool<kernel_shape=[2],strides=[2],ceil_mode=1>(p1)", (2, 2, 5)),
    "AveragePool, padding": Case("y = AveragePool<kernel_shape=[2],pads=[1, 1],count_include_pad=1>(p1)", (2, 2, 5)),
    "AveragePool, same": Case('y = AveragePool<kernel_shape=[3],strides=[2],auto_pad="SAME_LOWER">(p1)', (2, 2, 6)),
    "MaxPool, up": Case("y = MaxPool<kernel_shape=[2, 3],strides=[2, 2],ceil_mode=1>(p1)", (2, 2, 5, 4)),
    "MaxPool, dilations": Case("y = MaxPool<kernel_shape=[2, 2],dilations=[1, 2]>(p1)", (1, 2, 4, 4)),
    "MaxPool, same": Case('y = MaxPool<kernel_shape=[2],strides=[2],auto_pad="SAME_UPPER">(p1)', (2, 2, 5)),
    "MaxPool, old": Case(
        "y = MaxPool<kernel_shape=[3, 3],strides=[2, 2],pads=[1, 1, 1, 1]>(p1)", (2, 2, 4, 4), opset=13
    ),
    "Gather, computed": Case(
        "i = Cast<to=7>(f) y = Gather<axis=1>(p1, i)", (2, 3, 4), {"f": np.float32([[1, 1], [0, -1]])}
    ),
    "Gather, rows": Case("i = Cast<to=6>(f) y = Gather(p1, i)", (5, 3), {"f": np.float32([4, 0, 4])}),
    "GatherElements, one": Case("y = GatherElements<axis=0>(p1, i)", (3, 4), {"i": np.array([[2, -1, 0, 1]])}),
    "ScatterElements, updates": Case(
        "y = ScatterElements<axis=1>(q, i, p1)", (3, 1), {"q": TABLE, "i": [[1], [2], [0]]}
    ),
    "ScatterND, updates": Case("y = ScatterND(q, i, p1)", (1, 4), {"q": TABLE, "i": [[1]]}),
    "TopK, first axis": Case("y, i = TopK<axis=0>(p1, a)", (4, 3), {"a": [2]}),
    "Pad, axes": Case("y = Pad(p1, a, , b)", (3, 3), {"a": [1, 2], "b": [1]}, opset=18),
    "Slice, no axes": Case("y = Slice(p1, a, b, , d)", (5, 4), {"a": [1, 0], "b": [5, 4], "d": [2, 3]}),
    "Trilu, lower": Case("y = Trilu<upper=0>(p1)"),
    "Cast, half": Case("d = Cast<to=10>(p1) y = Cast<to=1>(d)"),
}
#: Rounded on the way: there are no finite differences.
STEPS = {*operator_gradients.STEPS, "Cast, half"}


def rules_error(case: Case, *, smooth: bool = True) -> float:
    """Return the largest difference from finite differences, relative to the largest of those."""
    rng = np.random.default_rng(0)
    p = rng.standard_normal(case.shape).astype(np.float32)
    p = np.abs(p) + np.float32(0.5) if case.positive else p
    head = f'<ir_version: 8, opset_import: ["": {case.opset}]> g (float[N] p1) => (float[N] y)'
    model = parser.parse_model(f"{head} {{ {case.body} }}")
    model.graph.input[0].type.tensor_type.ClearField("shape")
    constants = {name: np.asarray(value) for name, value in case.constants.items()}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())

    def run(outputs: list[str], value: Array, **more: Array) -> list[Array]:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        del copy.graph.output[:]
        copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        copy.graph.input.extend(
            helper.make_tensor_value_info(k, onnx.TensorProto.FLOAT, a.shape) for k, a in more.items()
        )
        found = Session(copy, level="disable").run({"p1": value, **more})
        return [found[name] for name in outputs]

    names = [name for node in model.graph.node for name in node.output]
    values = dict(zip(names, run(names, p), strict=True)) | {"p1": p} | constants
    shapes, dtypes = ({key: getattr(a, part) for key, a in values.items()} for part in ("shape", "dtype"))
    back = Backward(list(model.graph.node), shapes, constants, dtypes, case.opset)
    gradient = back.differentiate({"y": "seed"}, ["p1"])["p1"]
    factor = rng.standard_normal(values["y"].shape).astype(np.float32)
    slopes, step = np.zeros(p.shape), np.float32(1e-2)
    for index in np.ndindex(*p.shape) if smooth else ():
        above, below = p.copy(), p.copy()
        above[index] += step
        below[index] -= step
        apart = run(["y"], above)[0].astype(np.float64) - run(["y"], below)[0]
        slopes[index] = (apart * factor).sum() / (2 * float(step))
    model.graph.node.extend(back.nodes)
    model.graph.initializer.extend(back.constants)
    found = run([gradient], p, seed=factor)[0]
    assert found.shape == p.shape
    if not smooth:
        slopes = factor
    return float(np.abs(found - slopes).max() / max(np.abs(slopes).max(), 1e-9))


def test_every_rule_has_a_case() -> None:
    covered = {name.split(" ")[0].rstrip(",") for name in (*operator_gradients.CASES, *MORE)}
    assert covered == set(RULES)
    assert set(RULES) >= DIFFERENTIABLE


@pytest.mark.parametrize("name", [*operator_gradients.CASES, *MORE])
def test_rule(name: str) -> None:
    case = {**operator_gradients.CASES, **MORE}[name]
    assert rules_error(case, smooth=name not in STEPS) < 3e-3


@pytest.mark.parametrize(
    ("body", "opset", "reason"),
    [
        ("y = Ceil(p1)", 17, "Ceil"),
        ("d = Cast<to=11>(p1) e = Mul(d, d) y = Cast<to=1>(e)", 17, "Mul in float64"),
        ("i = Cast<to=7>(q) y = Gather(p1, i)", 13, "below opset 16"),
        ('y = Pad<mode="reflect">(p1, a)', 17, "Pad other than with a constant"),
        ("y, m1, v1 = BatchNormalization<training_mode=1>(p1, v, v, v, v)", 17, "no statistics of the batch"),
        ('y = ScatterND<reduction="add">(p1, a, q)', 17, "with a reduction"),
    ],
)
def test_forms_without_a_gradient(body: str, opset: int, reason: str) -> None:
    constants = {"q": np.zeros((1,), np.float32), "a": np.array([1, 0, 0, 0]), "v": np.ones(4, np.float32)}
    if "Scatter" in body:
        constants |= {"a": np.array([[1]]), "q": TABLE[:1]}
    with pytest.raises(NoGradient, match=reason):
        rules_error(Case(body, constants=constants, opset=opset))
