"""What the tests of calibration share: a chain of convolutions, its samples, and calibration without a pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import helper, numpy_helper
from onnxedge_passes.quantize.calibration.calibrate import calibrate
from onnxedge_passes.quantize.calibration.observed import Choice, Observed
from onnxedge_passes.quantize.grids import channel_axes

from onnxedge.api import Array, Context, Data, Unit, model_inputs, open_data, place
from onnxedge.model.io import from_proto
from onnxedge.target import load_packaged_target
from onnxedge.verify import infer_shapes

CHANNELS, SIDE = 16, 12
CHOICES: tuple[Choice, ...] = (("minmax", 0.0), ("average", 0.0), ("percentile", 99.9), ("entropy", 0.0), ("mse", 0.0))


def chain(depth: int = 3, shape: tuple[Any, ...] = ("N", CHANNELS, SIDE, SIDE), opset: int = 17) -> ir.Model:
    """Return convolutions c0, c1.. with Relu r0, r1.. one behind the other; the last one's output is y."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for index in range(depth):
        array = (rng.normal(size=(CHANNELS, CHANNELS, 3, 3)) / 9).astype(np.float32)
        weights += [numpy_helper.from_array(array, f"w{index}")]
        weights += [numpy_helper.from_array(rng.normal(size=CHANNELS).astype(np.float32), f"b{index}")]
        made = f"r{index}" if index < depth - 1 else "y"
        nodes.append(helper.make_node("Conv", [last, f"w{index}", f"b{index}"], [f"c{index}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [made], name=f"relu{index}"))
        last = made
    x, y = (helper.make_tensor_value_info(name, 1, shape) for name in ("x", "y"))
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    model = from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8))
    infer_shapes(model)
    return model


def samples(count: int, side: int = SIDE, seed: int = 1) -> Array:
    return np.random.default_rng(seed).normal(size=(count, CHANNELS, side, side)).astype(np.float32)


def context(model: ir.Model, data: Data, target: str = "ort-cpu") -> Context:
    return Context(load_packaged_target("onnxedge.targets", target), data, original=model.clone())


def units(model: ir.Model, target: str = "ort-cpu") -> tuple[Unit, ...]:
    """Return what the target runs in integers."""
    return place(model, load_packaged_target("onnxedge.targets", target)).integer


def calibrated(
    model: ir.Model, source: Any, methods: tuple[Choice, ...] = CHOICES, **options: Any
) -> dict[str, Observed]:
    """Calibrate on all samples of a source, and compare on them where ranges are mixed."""
    data = source if isinstance(source, Data) else open_data(source, model_inputs(model))
    run = context(model, data)
    rules = run.target.quantization
    assert rules is not None
    placed = units(model)
    axes = channel_axes(placed)
    limit = options.pop("limit", 10**6)
    return calibrate(model, placed, (data, data), run, rules, methods=methods, samples=limit, channels=axes, **options)
