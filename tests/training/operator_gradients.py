"""Compare gradients of onnxruntime-training with finite differences, operator by operator; prints JSON.

Runs beside onnxruntime-training, as the worker does, and so imports nothing of onnxedge. A case is the expression that
``y`` is computed by from the parameter ``p``, its shape, and constants.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, parser

_RNG = np.random.default_rng(5)
_TABLE = _RNG.standard_normal((3, 4)).astype(np.float32) + np.float32(0.1)
_KERNEL = _RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)
_ROWS = np.array([[1], [2], [0]])


@dataclass
class Case:
    body: str
    shape: tuple[int, ...] = (3, 4)
    constants: dict[str, Any] = field(default_factory=dict)
    opset: int = 17
    positive: bool = False


_UNARY = "Relu Sigmoid Tanh Erf Exp Abs Neg Softmax LogSoftmax Identity Sin Cos LeakyRelu Dropout Trilu Flatten"
_BINARY = "Add Sub Mul Div Min Max"
_REDUCTIONS = "ReduceMean ReduceL2 ReduceLogSumExp"
CASES = {
    **{name: Case(f"y = {name}(p1)") for name in _UNARY.split()},
    **{name: Case(f"y = {name}(p1)", positive=True) for name in ("Sqrt", "Log", "Reciprocal")},
    **{name: Case(f"y = {name}<axes=[1]>(p1)") for name in _REDUCTIONS.split()},
    **{f"{name} 18": Case(f"y = {name}(p1, a)", constants={"a": [1]}, opset=18) for name in _REDUCTIONS.split()},
    **{name: Case(f"y = {name}(p1, q)", constants={"q": _TABLE}) for name in _BINARY.split()},
    "Gelu": Case("y = Gelu(p1)", opset=20),
    "Gelu tanh": Case('y = Gelu<approximate="tanh">(p1)', opset=20),
    "ReduceSum": Case("y = ReduceSum(p1, a)", constants={"a": [0]}),
    "GlobalAveragePool": Case("y = GlobalAveragePool(p1)", (2, 3, 4, 4)),
    "Div below": Case("y = Div(q, p1)", constants={"q": _TABLE}, positive=True),
    "Pow": Case("y = Pow(p1, q)", constants={"q": np.float32(2)}),
    "MatMul": Case("y = MatMul(p1, q)", (2, 3), {"q": _TABLE}),
    "MatMul of stacks": Case("y = MatMul(p1, q)", (2, 3, 3), {"q": _TABLE}),
    "Gemm": Case("y = Gemm<alpha=0.5,transA=1>(p1, q)", (3, 2), {"q": _TABLE}),
    "Concat": Case("y = Concat<axis=0>(p1, q)", constants={"q": _TABLE}),
    "Split": Case("y, y9 = Split<axis=0>(p1, s)", (4, 4), {"s": [2, 2]}),
    "Slice": Case("y = Slice(p1, a, b, c, d)", (4, 4), {"a": [0], "b": [99], "c": [1], "d": [2]}),
    "Gather": Case("y = Gather<axis=1>(p1, a)", (4, 4), {"a": [3, 1, 1]}),
    "GatherElements": Case("y = GatherElements<axis=1>(p1, a)", constants={"a": _ROWS}),
    "GatherND": Case("y = GatherND(p1, a)", constants={"a": _ROWS}),
    "ScatterElements": Case("y = ScatterElements<axis=1>(p1, a, q)", constants={"a": _ROWS, "q": _TABLE[:, :1]}),
    "ScatterND": Case("y = ScatterND(p1, a, q)", constants={"a": [[1]], "q": _TABLE[:1]}),
    "Transpose": Case("y = Transpose<perm=[1, 0]>(p1)"),
    "Reshape": Case("y = Reshape(p1, a)", constants={"a": [4, 3]}),
    "Expand": Case("y = Expand(p1, a)", (3, 1), {"a": [2, 3, 5]}),
    "Tile": Case("y = Tile(p1, a)", (3, 2), {"a": [1, 3]}),
    "Pad": Case("y = Pad(p1, a)", (3, 3), {"a": [1, -1, 0, 1]}),
    "Squeeze": Case("y = Squeeze(p1, a)", (3, 1), {"a": [1]}),
    "Unsqueeze": Case("y = Unsqueeze(p1, a)", (3, 1), {"a": [1]}),
    "Where": Case("c = Greater(p1, z) y = Where(c, p1, q)", constants={"q": _TABLE, "z": np.float32(0)}),
    "Clip": Case("y = Clip(p1, a, b)", constants={"a": np.float32(-0.5), "b": np.float32(0.5)}),
    "TopK": Case("y, i = TopK(p1, a)", constants={"a": [2]}),
    "TopK of the least": Case("y, i = TopK<largest=0,axis=0>(p1, a)", constants={"a": [1]}),
    "Cast": Case("d = Cast<to=11>(p1) y = Cast<to=1>(d)"),
    "Round": Case("y = Round(p1)"),
    "Conv": Case("y = Conv<pads=[1, 1, 1, 1],strides=[2, 2]>(p1, w)", (2, 3, 5, 5), {"w": _KERNEL}),
    "Conv, weight": Case("y = Conv<dilations=[2, 1]>(x, p1)", (2, 3, 2, 3), {"x": _RNG.random((2, 3, 5, 5), "f4")}),
    "Conv, groups": Case("y = Conv<group=3>(p1, w)", (2, 3, 5, 5), {"w": _KERNEL[:3, :1]}),
    "MaxPool": Case("y = MaxPool<kernel_shape=[3, 3],strides=[2, 2],pads=[1, 1, 1, 1]>(p1)", (2, 2, 4, 4)),
    "LayerNormalization": Case("y, m, s = LayerNormalization(p1, g, b)", constants={"g": _TABLE[0], "b": _TABLE[1]}),
    "LayerNormalization, scale": Case("y, m, s = LayerNormalization(q, p1, p1)", (4,), {"q": _TABLE}),
}


#: Rounded on the way: there are no finite differences, and the gradient is that of the identity.
STEPS = {"Round"}


def error(case: Case, *, smooth: bool = True) -> float:
    """Return the largest difference of both gradients, relative to the largest of the numeric one."""
    import onnxruntime
    from onnxruntime.training import artifacts
    from onnxruntime.training.api import CheckpointState, Module

    rng, options = np.random.default_rng(0), onnxruntime.SessionOptions()
    p = rng.standard_normal(case.shape).astype(np.float32)
    p = np.abs(p) + np.float32(0.5) if case.positive else p
    head = f'<ir_version: 8, opset_import: ["": {case.opset}]> g (float[1] one)'
    forward = parser.parse_model(f"{head} => (float y) {{ p1 = Mul(p, one) {case.body} }}")
    forward.graph.output[0].type.tensor_type.ClearField("shape")
    one, constants = np.ones(1, np.float32), {name: np.asarray(c) for name, c in case.constants.items()}

    def with_constants(model: onnx.ModelProto, **more: Any) -> onnx.ModelProto:
        made = onnx.ModelProto()
        made.CopyFrom(model)
        made.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in {**constants, **more}.items())
        return made

    def run(value: Any) -> Any:
        data = with_constants(forward, p=value).SerializeToString()
        return onnxruntime.InferenceSession(data, options).run(None, {"one": one})[0].astype(np.float64)

    factor = rng.standard_normal(run(p).shape).astype(np.float32)
    whole = f"{{ p1 = Mul(p, one) {case.body} scaled = Mul(y, factor) loss = ReduceSum<keepdims=0>(scaled) }}"
    model = with_constants(parser.parse_model(f"{head} => (float loss) {whole}"), p=p, factor=factor)
    with tempfile.TemporaryDirectory() as folder:
        artifacts.generate_artifacts(
            model, requires_grad=["p"], frozen_params=[], loss=None, optimizer=None, artifact_directory=folder
        )
        state = CheckpointState.load_checkpoint(f"{folder}/checkpoint")
        module = Module(f"{folder}/training_model.onnx", state, f"{folder}/eval_model.onnx")
        module.train()
        for _ in range(2):  # the second time in memory that was used before
            module(one)
            found = state.parameters["p"].grad.copy()
            module.lazy_reset_grad()
    slopes, step = np.zeros(p.shape), np.float32(1e-2)
    for index in np.ndindex(*p.shape) if smooth else ():
        above, below = p.copy(), p.copy()
        above[index] += step
        below[index] -= step
        slopes[index] = ((run(above) - run(below)) * factor).sum() / (2 * float(step))
    slopes = slopes if smooth else factor
    return float(np.abs(found - slopes).max() / max(np.abs(slopes).max(), 1e-9))


def main() -> None:
    """Print the error of each case, or what went wrong."""
    for name in ("optim", "amp"):
        sys.modules[f"onnxruntime.training.{name}"] = types.ModuleType(name)
    import onnxruntime

    vars(onnx)["IR_VERSION"] = 8
    onnxruntime.set_default_logger_severity(4)
    sys.path.insert(0, str(Path(__file__).parents[2] / "onnxedge" / "training"))
    importlib.import_module("run_package").register_gradients()
    answers: dict[str, Any] = {}
    for name, case in CASES.items():
        try:
            answers[name] = error(case, smooth=name not in STEPS)
        except Exception as err:  # the runtime's exceptions share no base
            answers[name] = " ".join(str(err).split())[:200]
    sys.stdout.write(f"\n{json.dumps(answers)}\n")


if __name__ == "__main__":
    main()
