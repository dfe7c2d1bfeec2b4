"""What is known of values while folding: never what was known of a value that is gone."""

from __future__ import annotations

import gc

import onnx_ir as ir
from conftest import parse
from onnxedge_passes.cleanup.shapes.inference import Types


def test_a_new_value_is_not_taken_for_a_dropped_one() -> None:
    """A value that took over the ``id`` of a dropped one does not take over its type, as when a free batch became 1."""
    types = Types(17, lambda value: None)
    for size in range(200):
        value = ir.val("v", const_value=ir.tensor([0] * (size % 5 + 1)) if size % 2 else ir.tensor(0))
        assert types.dims(value) == ([size % 5 + 1] if size % 2 else [])
        del value
        gc.collect(0)


def test_inferred_names_of_dimensions_do_not_outlive_an_inference() -> None:
    from onnxedge.verify import infer_shapes

    model = parse("g (float[N,4] x, int64[2] s) => (float[A,B] y) { r = Reshape(x, s)  y = Relu(r) }")
    infer_shapes(model)
    first = next(iter(model.graph)).outputs[0]
    first.shape = ir.Shape(["unk__7", 4])
    infer_shapes(model)
    assert "unk__7" not in [str(d) for d in first.shape]
