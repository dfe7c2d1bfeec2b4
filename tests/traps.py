"""What the tests of traps share: a small model in text, inputs for it, and all that must hold behind ``fold,fuse``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import conformance
import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper

import onnxedge
from onnxedge.api import to_proto

Feed = Mapping[str, Any]


def parse(text: str, opset: int = 17, ir_version: int = 8, **weights: np.ndarray) -> onnx.ModelProto:
    """Return a model from the text of its graph, with further initializers."""
    domains = '"com.microsoft": 1, "local": 1'
    head = f'<ir_version: {ir_version}, opset_import: ["": {opset}, {domains}]>'
    model = onnx.parser.parse_model(f"{head} {text}")
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return model


def feeds_for(model: onnx.ModelProto) -> list[Feed]:
    """Return inputs for two sizes of the dimensions that are not fixed, with zeros of both signs among them."""
    feeds = []
    for size in (3, 1):
        rng, feed = np.random.default_rng(size), {}
        names = {tensor.name for tensor in model.graph.initializer}
        for value in model.graph.input:
            if value.name in names or not value.type.HasField("tensor_type"):
                continue
            dims = [d.dim_value if d.HasField("dim_value") else size for d in value.type.tensor_type.shape.dim]
            dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            array = np.asarray(rng.standard_normal(dims) * 3)
            if dtype.kind == "f" and array.size > 4:
                array.ravel()[:2] = 0.0, -0.0
            feed[value.name] = array.astype(dtype) if dtype.kind != "b" else np.asarray(array > 0)
        feeds.append(feed)
    return feeds


def hold(model: onnx.ModelProto, feeds: Sequence[Feed] | None = None) -> None:
    """Assert that nothing is wrong with what ``fold`` and ``fuse`` make of a model."""
    onnx.checker.check_model(model)
    case = conformance.Case("trap", model, feeds_for(model) if feeds is None else feeds, [], 0.0, 0.0)
    outcome = conformance.conform(case)
    assert not outcome.skipped
    assert not outcome.faults, "\n".join(outcome.faults)


def optimized(model: onnx.ModelProto, passes: str = "fold,fuse", **options: Any) -> onnx.ModelProto:
    """Return what the passes make of a model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxedge.measure.Judge.speed", lambda *_: None)
        done = onnxedge.optimize(model, passes, **options)
    assert [r.reason for r in done.report.passes if r.status == "rolled back"] == []
    return to_proto(done.model)


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]
