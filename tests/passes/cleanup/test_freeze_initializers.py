"""freeze-initializers: only what has a default stops being an input."""

from __future__ import annotations

import onnx.parser
from onnxedge_passes.cleanup.freeze_initializers import FreezeInitializers

import onnxedge


def test_defaults_become_constants(check) -> None:
    check(
        FreezeInitializers(),
        "g (float[2] x, float[2] w = {1, 2}) => (float[2] y) { y = Mul(x, w) }",
        "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Mul(x, w) }",
    )


def test_a_model_without_any_stays(check) -> None:
    check(FreezeInitializers(), "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Mul(x, w) }")


def test_ir_version_3_becomes_4(rewritten) -> None:
    model, _ = rewritten(
        FreezeInitializers(),
        "g (float[2] x, float[2] w = {1, 2}) => (float[2] y) { y = Mul(x, w) }",
        opset=8,
        ir_version=3,
    )
    assert model.ir_version == 4


def test_the_manager_takes_it_and_the_passes_behind_see_constants() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]>'
        "g (float[2] x, float[2] w = {1, 2}) => (float[2] y) { v = Neg(w) y = Mul(x, v) }"
    )
    made = onnxedge.optimize(model, "freeze-initializers,fold", measure=False)
    assert [record.status for record in made.report.passes] == ["applied", "applied"]
    assert [value.name for value in made.model.graph.inputs] == ["x"]
    assert [node.op_type for node in made.model.graph] == ["Mul"]


def test_fold_takes_them_for_constants_below_ir_version_4() -> None:
    text = "g (float[2] x, float[2] w = {1, 2}) => (float[2] y) { v = Neg(w) y = Mul(x, v) }"
    for ir_version, target, inputs in ((3, "ort-cpu", 1), (3, "generic", 2), (4, "ort-cpu", 2)):
        model = onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : 8]>' + text)
        made = onnxedge.optimize(model, "fold", measure=False, target=target)
        assert len(made.model.graph.inputs) == inputs
