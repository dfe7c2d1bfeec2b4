"""freeze-initializers: only what has a default stops being an input."""

from __future__ import annotations

from onnxedge_passes.cleanup.freeze_initializers import FreezeInitializers


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
