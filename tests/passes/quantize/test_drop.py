"""int8(max_drop=...): the fewest layers in float that keep the metric; what it is measured on, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnxedge_passes.quantize import Int8
from onnxedge_passes.quantize.sensitivity import fewest
from precision import normal
from test_wide import net, target

import onnxedge
from onnxedge.api import Array, Session, UserError, load
from onnxedge.pipeline import format_pass, parse_pipeline
from onnxedge.registry import find_pass

pytestmark = pytest.mark.usefixtures("untimed")
FIXTURES = Path(__file__).resolve().parents[3] / "fixtures"
BAD = ("/layer1/Relu_output_0", "/layer3/Relu_output_0")  #: what only one convolution makes, and one reads


@pytest.fixture(scope="module")
def harm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a file of ranges that leaves the activations between two pairs of layers no steps."""
    names = [v.name for n in load(FIXTURES / "digits_resnet.onnx").graph for v in n.outputs if v.name in BAD]
    assert len(names) == len(BAD)
    file = tmp_path_factory.mktemp("drop") / "harm.json"
    file.write_text(json.dumps({"format": "onnxedge ranges 1", "tensors": {n: [0, 3000] for n in names}}))
    return str(file)


@pytest.fixture(scope="module")
def bound(harm: str) -> onnxedge.Optimized:
    """Return what is made of it where one point may be lost."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxedge.measure.Judge.speed", lambda *_: None)
        patch.setattr("onnxedge_passes.quantize.timing._latency", lambda *_: None)
        return optimized(f"ranges={harm},max_drop=1%")


def optimized(options: str, **more: Any) -> onnxedge.Optimized:
    given = {"calib": FIXTURES / "digits_calib.npz", "eval": FIXTURES / "digits_eval.npz", **more}
    steps = f"fuse,int8(method=minmax,equalize=off,rounding=nearest,min_sqnr=-99,{options})"
    return onnxedge.optimize(FIXTURES / "digits_resnet.onnx", steps, max_drop=1.0, **given)


def put_back(found: onnxedge.Optimized) -> list[str]:
    return [note.where for note in found.report.notes if "put back to float for max_drop" in note.reason]


def test_the_fewest_layers_go_back(harm: str, bound: onnxedge.Optimized) -> None:
    free = optimized(f"ranges={harm},max_drop=100%")
    assert not put_back(free)
    assert free.report.fidelity is not None
    assert free.report.fidelity.drop is not None
    assert free.report.fidelity.drop > 0.3
    assert bound.report.fidelity is not None
    assert bound.report.fidelity.drop is not None
    assert bound.report.fidelity.drop <= 0.02  # measured on the other half of the samples
    gone = put_back(bound)
    assert 1 <= len(gone) <= 4
    assert all("/layer1/conv" in where or "/layer3/conv" in where for where in gone)
    figures = bound.report.passes[-1].figures
    assert figures["max_drop_lost"] <= 0.01
    assert figures["integer_nodes"] >= 6


def test_a_bound_that_is_kept_anyway_puts_nothing_back() -> None:
    found = optimized("max_drop=2%")
    assert not put_back(found)
    assert found.report.passes[-1].figures["max_drop_lost"] <= 0.02


def test_what_is_chosen_by_is_not_what_is_reported(bound: onnxedge.Optimized) -> None:
    free = optimized("mode=storage")
    assert free.report.fidelity is not None
    assert bound.report.fidelity is not None
    assert free.report.fidelity.samples == 400
    assert bound.report.fidelity.samples == 200
    assert bound.report.passes[-1].figures["max_drop_samples"] == 200
    assert "(200 samples)" in bound.report.evaluation
    said = [note.reason for note in bound.report.notes if note.reason.startswith("max_drop:")]
    assert len(said) == 1
    assert re.search(r"top1 lost on the 200 samples that layers are chosen by; they are no part of those", said[0])


def test_a_metric_of_ones_own_is_bounded(harm: str, bound: onnxedge.Optimized, tmp_path: Path) -> None:
    module = tmp_path / "own_metric.py"
    module.write_text(
        "def right(outputs, labels):\n    return (next(iter(outputs.values())).argmax(1) == labels).mean()\n"
    )
    found = optimized(f"ranges={harm},max_drop=1%", metric=f"{module}:right")
    assert put_back(found) == put_back(bound) != []
    assert found.report.passes[-1].figures["max_drop_metric"] == f"{module}:right"


@pytest.mark.parametrize(("wide", "back"), [(("Conv", "Add"), "activations of 16 bits"), ((), "put back to float")])
def test_16_bits_are_enough_where_the_target_has_them(tmp_path: Path, wide: tuple[str, ...], back: str) -> None:
    module = tmp_path / "first.py"
    module.write_text(
        "def more(outputs, labels):\n    y = outputs['y']\n    return ((y[:, 0] > y[:, 1])[:, 0, 0] == labels).mean()\n"
    )
    x = normal(256, 16, 8, 8, seed=9)
    y = Session(net()).run({"x": x})["y"]
    np.savez(tmp_path / "eval.npz", x=x, labels=(y[:, 0, 0, 0] > y[:, 1, 0, 0]).astype(np.int64))
    found = onnxedge.optimize(
        net(),
        "int8(method=minmax,equalize=off,rounding=nearest,min_sqnr=-99,max_drop=4%)",
        calib={"x": x[:64]},
        eval=tmp_path / "eval.npz",
        metric=f"{module}:more",
        target=target(wide or ("Softmax",)),
        max_drop=1.0,
    )
    assert found.report.passes[0].status == "applied"
    assert found.report.passes[0].figures["max_drop_lost"] <= 0.04
    reasons = [n.reason for n in found.report.notes if "max_drop=4%" in n.reason and not n.reason.startswith("island")]
    assert reasons
    assert all(reason.startswith(f"{back} for max_drop=4%: quantized to 8 bits") for reason in reasons)
    zeros = [node.inputs[2] for node in found.model.graph if node.op_type == "QuantizeLinear"]
    assert any(zero is not None and zero.dtype == ir.DataType.UINT16 for zero in zeros) == bool(wide)


def test_without_labels_the_agreement_is_bounded(harm: str) -> None:
    found = optimized(f"ranges={harm},max_drop=2%", eval=None)
    assert put_back(found)
    figures = found.report.passes[-1].figures
    assert figures["max_drop_metric"] == "agreement"
    assert figures["max_drop_lost"] <= 0.02
    assert found.report.fidelity is not None
    assert found.report.fidelity.agreement is not None
    assert found.report.fidelity.agreement >= 0.95


def test_nothing_may_be_lost_and_everything_goes_back(tmp_path: Path) -> None:
    """Where every layer harms, all are put back; stored weights stay, they lose nothing here."""
    names = [n.outputs[0].name for n in load(FIXTURES / "digits_resnet.onnx").graph if n.op_type in ("Relu", "Add")]
    file = tmp_path / "all.json"
    tensors = {name: [-1e6, 1e6] for name in ("input", *names)}
    file.write_text(json.dumps({"format": "onnxedge ranges 1", "tensors": tensors}))
    found = optimized(f"ranges={file},max_drop=0")
    assert found.report.passes[-1].figures["max_drop_lost"] == 0.0
    assert found.report.fidelity is not None
    assert found.report.fidelity.drop == 0.0
    assert "QLinearConv" not in {n.op_type for n in found.model.graph}


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        (
            "max_drop=0.5%",
            {"calib": None, "eval": None},
            "no samples to count answers on; give labelled",
        ),
        ("max_drop=-1", {}, "is a share, needs 0..1"),
        ("max_drop=101%", {}, "is a share, needs 0..1"),
        ("mode=dynamic,max_drop=1%", {}, "mode=dynamic is bounded by min_sqnr alone"),
    ],
)
def test_what_cannot_be_bounded_is_refused(options: str, data: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        optimized(options, **data)


def test_without_labels_and_classes_there_is_nothing_to_count() -> None:
    model = load(FIXTURES / "detector.onnx")
    shape = [d if isinstance(d, int) else 1 for d in model.graph.inputs[0].shape or ()]
    samples: Array = np.random.default_rng(0).normal(size=(16, *shape[1:])).astype(np.float32)
    with pytest.raises(UserError, match=r"max_drop: no labels came .* min_sqnr"):
        onnxedge.optimize(model, "int8(max_drop=1%)", calib={model.graph.inputs[0].name: samples})


@pytest.mark.parametrize(("text", "share"), [("0.5%", 0.005), ("0.005", 0.005), ("1", 1.0), ("none", None)])
def test_shares_are_read_as_percent_or_number(text: str, share: float | None) -> None:
    (step,) = parse_pipeline(f"int8(max_drop={text})", find_pass)
    assert isinstance(step, Int8)
    assert step.max_drop == share
    assert parse_pipeline(format_pass(step), find_pass) == (step,)


@pytest.mark.parametrize("least", range(1, 14))
def test_fewest_finds_the_least_number(least: int) -> None:
    tried: list[int] = []

    def works(count: int) -> bool:
        tried.append(count)
        return count >= least

    assert fewest(13, works) == least
    assert len(tried) <= 8
    assert 13 not in tried[:4]
