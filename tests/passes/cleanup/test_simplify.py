"""simplify: onnxsim's result is taken over, or the model left alone with the reason."""

from __future__ import annotations

import onnx
import pytest
from onnxedge_passes.cleanup.simplify import Simplify


def test_a_shape_chain_goes(check) -> None:
    check(
        Simplify(),
        "g (float[1, 8, 1, 1] x) => (float[1, 8] y) <int64 i = {1}, int64[1] z = {0}, int64[1] m = {-1}>"
        " { s = Shape(x) n = Gather(s, i) u = Unsqueeze(n, z) t = Concat<axis=0>(m, u) r = Reshape(x, t) y = Relu(r) }",
        "g (float[1, 8, 1, 1] x) => (float[1, 8] y) <int64[2] t = {-1, 8}> { r = Reshape(x, t) y = Relu(r) }",
    )


def test_a_clean_graph_stays(check) -> None:
    check(Simplify(), "g (float[2] x) => (float[2] y) { y = Relu(x) }")


def test_what_cannot_run_is_left_alone(check) -> None:
    reasons = check(Simplify(), "g (float[2] x) => (float[2] y) { a = acme.Magic(x) y = Relu(a) }", runs=False)
    assert len(reasons) <= 1


def test_a_failure_is_noted(check, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxsim

    asked: list[dict[str, object]] = []

    def fail(proto: onnx.ModelProto, **options: object) -> None:
        asked.append(options)
        raise RuntimeError("no")

    monkeypatch.setattr(onnxsim, "simplify", fail)
    reasons = check(Simplify(), "g (float[2] x) => (float[2] y) { y = Relu(x) }")
    assert len(asked) == 6  # three rungs, in each of the two runs
    assert reasons == ["not simplified: onnxsim fails: no"]


def test_a_wrong_result_is_not_taken(check, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxsim

    def spoil(proto: onnx.ModelProto, **options: object) -> tuple[onnx.ModelProto, bool]:
        wrong = onnx.ModelProto()
        wrong.CopyFrom(proto)
        wrong.graph.node[0].op_type = "Neg"
        return wrong, True

    monkeypatch.setattr(onnxsim, "simplify", spoil)
    reasons = check(Simplify(), "g (float[2] x) => (float[2] y) { y = Relu(x) }")
    assert reasons == ["not simplified: output 'y' is another one after onnxsim"]
