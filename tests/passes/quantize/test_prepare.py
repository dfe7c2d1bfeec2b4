"""Before and after kernels are placed: sizes that shape arithmetic hides, what the runtime runs in float."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnxedge_passes.quantize import Int8, search
from precision import kinds, normal

from onnxedge.api import Context, Difference, model_inputs, optimized_graph, refresh_scopes
from onnxedge.data import from_arrays
from onnxedge.model.io import from_proto
from onnxedge.target import load_packaged_target
from onnxedge.verify import infer_shapes


def tokens() -> ir.Model:
    """Return two products with biases, the first behind a Reshape to sizes that the graph computes itself."""
    node = helper.make_node
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["batch"]),
        node("Concat", ["batch", "rest"], ["wanted"], axis=0),
        node("Reshape", ["x", "wanted"], ["r"]),
        node("MatMul", ["r", "w0"], ["m0"], name="first"),
        node("Add", ["m0", "b0"], ["a0"]),
        node("Relu", ["a0"], ["h"]),
        node("MatMul", ["h", "w1"], ["m1"], name="second"),
        node("Add", ["m1", "b1"], ["y"]),
    ]
    weights: dict[str, Any] = {
        "w0": normal(96, 256), "b0": normal(256), "w1": normal(256, 96), "b1": normal(96),
        "zero": np.array([0], np.int64), "rest": np.array([64, 96], np.int64),
    }  # fmt: skip
    x = helper.make_tensor_value_info("x", 1, [1, 8, 8, 96])
    y = helper.make_tensor_value_info("y", 1, [None, 64, 96])
    held = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], held)
    model = from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    infer_shapes(model)
    refresh_scopes(model)
    return model


def quantized(model: ir.Model) -> tuple[Any, Context]:
    data = from_arrays(model_inputs(model), {"x": normal(32, 8, 8, 96)})
    target = load_packaged_target("onnxedge.targets", "ort-cpu")
    context = Context(target, data, original=model.clone())
    return Int8(min_sqnr=0.0, rounding="nearest").run(model, context), context


def test_sizes_that_shape_arithmetic_hides_are_learned_first() -> None:
    model = tokens()
    result, _ = quantized(model)
    assert "Shape" not in kinds(model)
    assert result.figures["different_nodes"] == 0
    assert "Gemm" not in {node.op_type for node in optimized_graph(model).graph.node}
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_what_the_runtime_would_run_in_float_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def one(model: ir.Model, placement: Any, _: Context) -> tuple[Difference, ...]:
        return tuple(
            Difference(unit.node, "integer", "Gemm") for unit in placement.integer if unit.node.name == "first"
        )

    monkeypatch.setattr(search, "differences", one)
    result, context = quantized(tokens())
    assert result.figures["integer_nodes"] > 0
    reasons = {note.where: note.reason for note in context.notes}
    assert reasons["MatMul 'first'"] == "left float: ONNX Runtime would run it in float, as Gemm"
