"""What a float convolution at the head of a residual network costs: a Transpose at each end of every block."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnxedge_passes.quantize import Int8

from onnxedge.api import Context, model_inputs, optimized_graph, place, refresh_scopes
from onnxedge.data import from_arrays
from onnxedge.model.io import from_proto
from onnxedge.target import load_packaged_target
from onnxedge.verify import infer_shapes

CPU = load_packaged_target("onnxedge.targets", "ort-cpu")


def residual(blocks: int, shortcut: bool = True) -> ir.Model:
    """Return a convolution of 3 channels and blocks of two; ``shortcut`` has the block's input added behind them."""
    rng, node = np.random.default_rng(0), helper.make_node
    weights: dict[str, Any] = {"w": rng.normal(size=(16, 3, 3, 3)), "b": np.zeros(16)}
    nodes = [node("Conv", ["x", "w", "b"], ["c"], name="head", pads=[1] * 4), node("Relu", ["c"], ["v0"])]
    for index in range(blocks):
        last = f"v{index}"
        for part in "ab":
            weights[name := f"w{index}{part}"] = rng.normal(size=(16, 16, 3, 3)) / 12
            nodes.append(node("Conv", [last, name, "b"], [last := f"c{index}{part}"], pads=[1] * 4))
            if part == "a":
                nodes.append(node("Relu", [last], [last := f"r{index}"]))
        if shortcut:
            nodes.append(node("Add", [last, f"v{index}"], [last := f"s{index}"]))
        nodes.append(node("Relu", [last], [f"v{index + 1}"]))
    nodes.append(node("GlobalAveragePool", [f"v{blocks}"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("y", 1, [1, 16, 1, 1])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    model = from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    infer_shapes(model)
    refresh_scopes(model)
    return model


@pytest.mark.parametrize(("blocks", "shortcut", "expected"), [(1, True, False), (6, True, True), (6, False, False)])
def test_the_head_is_integer_where_it_would_hold_up_the_layout_of_many_blocks(
    blocks: int, shortcut: bool, expected: bool
) -> None:
    head = {unit.node.name for unit in place(residual(blocks, shortcut), CPU).integer}
    assert ("head" in head) == expected


def test_no_block_is_entered_by_a_transpose() -> None:
    model = residual(6)
    array = np.random.default_rng(1).normal(size=(16, 3, 16, 16)).astype(np.float32)
    data = from_arrays(model_inputs(model), {"x": array})
    Int8(min_sqnr=0.0).run(model, Context(CPU, data, original=model.clone()))
    nodes = [node.op_type for node in optimized_graph(model).graph.node]
    assert nodes.count("QLinearConv") == 13
    assert nodes.count("Transpose") <= 2
