"""fuse after fold: fixtures and real models keep their outputs, and what must be found is found."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnxedge_passes.cleanup.fold import Fold
from onnxedge_passes.cleanup.freeze_initializers import FreezeInitializers
from onnxedge_passes.fuse.fuse import Fuse

from onnxedge.api import Pass, Session, load, opset
from onnxedge.data import synthesise

FIXTURES = ("digits_resnet", "sequence_transformer", "detector", "branch_if", "local_function", "external_data")
REAL = {
    "cifar10_resnet20_bn": {"BatchNormalization": 0, "Conv": 19},
    "cifar10_resnet56_bn": {"BatchNormalization": 0, "Conv": 55},
    "imagenet_mobilenetv2_torch_ptq_fp32": {"Pad": 0, "Conv": 52},
    "kwt1_speech12": {"LayerNormalization": 24, "FastGelu": 12, "GlobalAveragePool": 0, "Tanh": 0},
    "mlperftiny_ad_autoencoder_float": {"Gemm": 10, "MatMul": 0, "Add": 0},
    "mlperftiny_ic_resnet8_cifar10_float": {"Gemm": 1},
    "mlperftiny_kws_dscnn_float": {"Gemm": 1},
    "mlperftiny_vww_mobilenetv1_025_96_float": {"Gemm": 1},
    "mnist_cntk": {},
    "silero_vad_16k_op15": {"Constant": 0},
    "ultraface_rfb320": {"BatchNormalization": 35, "Shape": 0},
    "yunet_n_320": {"Conv": 59},
}


def optimized(path: Path, applied, *passes: Pass, target: str = "ort-cpu") -> ir.Model:
    """Return a model after passes, each checked for outputs, opset, interface and a second run that changes nothing."""
    original, model = load(path), load(path)
    feeds = list(synthesise(original, count=2).feeds(size=2))
    expected = [Session(original, level="disable").run(feed) for feed in feeds]
    version = opset(model)
    for step in passes:
        applied(step, model, target)
        session = Session(model, level="disable")
        for feed, outputs in zip(feeds, expected, strict=True):
            for name, found in session.run(feed).items():
                close(found, outputs[name], exact=step.accuracy == "exact" and step is passes[0])
    assert applied(passes[-1], model, target)[0].rewrites == 0
    assert opset(model) == version
    assert [v.name for v in model.graph.outputs] == [v.name for v in original.graph.outputs]
    return model


def close(found: np.ndarray, expected: np.ndarray, *, exact: bool) -> None:
    assert found.dtype == expected.dtype
    if exact or found.dtype.kind != "f":
        np.testing.assert_array_equal(found, expected)
    else:
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * float(np.abs(expected).max(initial=1e-6)))


def counts(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.all_nodes())


@pytest.mark.parametrize("target", ["ort-cpu", "generic", "tensorrt"])
@pytest.mark.parametrize("name", FIXTURES)
def test_fixtures(name: str, target: str, applied, fixtures: Path) -> None:
    model = optimized(fixtures / f"{name}.onnx", applied, Fold(), Fuse(), target=target)
    assert not counts(model)["BatchNormalization"]
    if target != "ort-cpu":
        assert {node.domain for node in model.graph.all_nodes()} <= {"", "onnxedge.fixtures"} | {
            key[0] for key in model.functions
        }


def test_a_transformer_is_recognised(applied, fixtures: Path) -> None:
    found = counts(optimized(fixtures / "sequence_transformer.onnx", applied, Fold(), Fuse()))
    assert found["LayerNormalization"] == 4
    assert found["Gelu"] == 2


@pytest.mark.zoo
@pytest.mark.parametrize("name", REAL)
def test_real_models(name: str, applied, zoo: Path) -> None:
    found = counts(optimized(zoo / "models" / f"{name}.onnx", applied, Fold(), Fuse()))
    assert {key: found[key] for key in REAL[name]} == REAL[name]


@pytest.mark.zoo
def test_frozen_initializers_let_batchnorm_fold(applied, zoo: Path) -> None:
    path = zoo / "models" / "ultraface_rfb320.onnx"
    found = counts(optimized(path, applied, FreezeInitializers(), Fold(), Fuse()))
    assert found["BatchNormalization"] == 0


def test_why_not_is_said_where_nothing_is_fused(check) -> None:
    """The rules that found nothing do not run again, and what they said stays."""
    head = "g (float[N,4] x) => (float[N,4] a, float[N,4] y) <float c = {2}, float d = {3}>"
    assert check(Fuse(), f"{head} {{ a = Mul(x, c) y = Mul(a, d) }}") == [
        "constants not merged: the inner value has other readers or is exported"
    ]


def test_work_grows_as_the_nodes_do(rewritten) -> None:
    """Counted in calls, of which there are as many on any machine."""

    def calls(count: int) -> int:
        chain = " ".join(f"x{i + 1} = {'Relu' if i % 3 else 'Neg'}(x{i})" for i in range(count))
        events = Counter[str]()
        sys.setprofile(lambda frame, event, argument: events.update((event,)))
        try:
            rewritten(Fuse(), f"g (float[2] x0) => (float[2] y) {{ {chain} y = Relu(x{count}) }}")
        finally:
            sys.setprofile(None)
        return events["call"] + events["c_call"]

    calls(10)  # what is imported or kept at the first run
    assert calls(2000) < 4.2 * calls(500)
