"""Metrics: values worked out by hand, and the streaming comparison against them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from onnxedge.errors import UserError
from onnxedge.metrics import (
    Comparison,
    Metric,
    agreement,
    classification_output,
    compare,
    cosine,
    load_metric,
    max_abs_diff,
    sqnr_db,
    top1,
    top5,
)


def test_sqnr() -> None:
    reference = np.float32([3, 4])
    assert sqnr_db(reference, reference) == math.inf
    assert sqnr_db(reference, np.float32([3, 3.5])) == pytest.approx(20.0)
    assert sqnr_db(np.zeros(2), np.ones(2)) == -math.inf
    assert sqnr_db(reference, np.float32([3, np.nan])) == -math.inf
    assert sqnr_db(np.float32([1, np.inf]), np.float32([1, np.inf])) == math.inf


def test_cosine_and_difference() -> None:
    assert cosine(np.float32([1, 0]), np.float32([1, 1])) == pytest.approx(math.sqrt(0.5))
    assert cosine(np.zeros(2), np.zeros(2)) == 1.0
    assert cosine(np.zeros(2), np.ones(2)) == 0.0
    assert max_abs_diff(np.uint8([0, 255]), np.uint8([1, 0])) == 255.0
    assert max_abs_diff(np.float32([np.nan, np.inf]), np.float32([np.nan, np.inf])) == 0.0
    assert max_abs_diff(np.float32([np.nan]), np.float32([0])) == math.inf
    assert max_abs_diff(np.zeros(0), np.zeros(0)) == 0.0


def test_shapes_must_be_equal() -> None:
    with pytest.raises(UserError, match=r"outputs differ in shape: \[2\] and \[3\]"):
        sqnr_db(np.zeros(2), np.zeros(3))


def test_top1_and_top5() -> None:
    scores = np.float32([[0, 2, 1], [5, 1, 1], [0, 0, 0], [np.nan, 1, 0]])
    assert top1(scores, np.array([1, 1, 0, 1])) == 0.5  # a tie goes to the lower class, a row with NaN is wrong
    assert top5(np.arange(12.0)[None], np.array([7])) == 1.0
    assert top5(np.arange(12.0)[None], np.array([6])) == 0.0
    assert top1(scores[:2, :, None, None], np.array([[1], [0]])) == 1.0
    assert top1(scores[:2], np.eye(3)[[1, 0]]) == 1.0
    assert math.isnan(top1(scores[:0], np.zeros(0, np.int64)))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([3]), r"label 3 is no class of 0\.\.2"),
        (np.array([-1]), "label -1 is no class"),
        (np.array([0.5]), "label 0.5 is no class"),
        (np.array([0, 1]), "2 labels for 1 rows"),
        (np.zeros((1, 4)), r"labels float64\[1, 4\] are no class numbers"),
    ],
)
def test_labels_that_are_no_classes(labels: np.ndarray, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UserError, match=message):
        top1(np.zeros((1, 3)), labels)


def test_which_output_is_class_scores() -> None:
    outputs = {
        "boxes": np.zeros((2, 10, 4)),
        "one": np.zeros((2, 1)),
        "ids": np.array(["a", "b"])[:, None].repeat(2, 1),
        "logits": np.zeros((2, 5, 1, 1)),
        "later": np.zeros((2, 3)),
    }
    assert classification_output(outputs) == "logits"
    assert classification_output({"boxes": outputs["boxes"]}) is None


def test_agreement() -> None:
    first = np.float32([[0, 1], [1, 0], [1, 0]])
    assert agreement(first, np.float32([[0, 9], [0, 1], [np.inf, 0]])) == pytest.approx(1 / 3)


def test_comparison_streams() -> None:
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((50, 7)).astype(np.float32)
    other = reference + rng.standard_normal((50, 7)).astype(np.float32) * 0.5
    state, other_state = reference[:, :3] * 10, other[:, :3] * 10
    labels = rng.integers(0, 7, 50)
    chunks = [slice(i, i + 16) for i in range(0, 50, 16)]
    made = compare(
        (
            {"logits": reference[c], "state": state[c]},
            {"logits": other[c], "state": other_state[c]},
            labels[c],
            len(labels[c]),
        )
        for c in chunks
    )
    assert made.count == made.labelled == 50
    assert made.scores == "logits"
    assert made.sqnr_db_by_output["logits"] == pytest.approx(sqnr_db(reference, other))
    pairs = ((reference, state), (other, other_state))
    everything = [np.concatenate([part.ravel() for part in pair]) for pair in pairs]
    assert made.sqnr_db == pytest.approx(sqnr_db(*everything))
    assert made.cosine == pytest.approx(cosine(*everything))
    assert made.worst_sqnr_db == min(made.sqnr_db_by_output.values())
    assert made.agreement == pytest.approx(agreement(reference, other))
    assert made.top1 == pytest.approx((top1(reference, labels), top1(other, labels)))
    assert made.top5 == pytest.approx((top5(reference, labels), top5(other, labels)))
    assert made.top1_change == pytest.approx(top1(other, labels) - top1(reference, labels))
    wins = (other.argmax(1) == labels).astype(int) - (reference.argmax(1) == labels).astype(int)
    assert made.top1_change_error == pytest.approx(wins.std() / math.sqrt(50))  # the paired standard error


def test_comparison_leaves_padding_out() -> None:
    made = Comparison()
    reference, other = np.float32([[0, 1], [0, 1], [7, 7]]), np.float32([[0, 1], [1, 0], [-9, 9]])
    made.add({"y": reference, "scalar": np.float32(1)}, {"y": other, "scalar": np.float32(1)}, np.array([1, 1]), 2)
    assert (made.count, made.agreement, made.top1, made.max_abs_diff) == (2, 0.5, (1.0, 0.5), 1.0)


def test_comparison_counts_what_is_not_finite() -> None:
    made = Comparison()
    made.add({"y": np.float32([[0, 1]])}, {"y": np.float32([[np.nan, 1]])}, np.array([1]))
    assert made.nonfinite == (0, 1)
    assert made.top1 == (1.0, 0.0)
    assert made.sqnr_db == -math.inf
    assert json.loads(json.dumps(made.figures(), allow_nan=False))["sqnr_db"] == "-inf"


def test_comparison_without_labels_or_scores() -> None:
    made = Comparison()
    made.add({"boxes": np.ones((1, 4, 4))}, {"boxes": np.ones((1, 4, 4))})
    assert math.isnan(made.agreement)
    assert math.isnan(made.top1_change_error)
    assert made.figures()["sqnr_db"] == "inf"
    assert "agreement" not in made.figures()
    assert Comparison().figures()["samples"] == 0


def test_comparison_needs_the_same_outputs() -> None:
    with pytest.raises(UserError, match=r"no output 'logits'; did you mean 'logit'\?"):
        Comparison().add({"logits": np.zeros((1, 2))}, {"logit": np.zeros((1, 2))})


def test_built_in_metrics() -> None:
    metric = load_metric("top1")
    assert isinstance(metric, Metric)
    assert metric({"y": np.float32([[0, 1]])}, np.array([1])) == 1.0
    assert load_metric("none") is None
    with pytest.raises(UserError, match=r"no output is class scores \[N, K\] \(y \[1, 2, 2\]\)"):
        metric({"y": np.zeros((1, 2, 2))}, np.array([1]))


def test_own_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "quality_of_mine.py").write_text(
        "def mean_ap(outputs, labels):\n    return outputs['y'].mean() + labels.sum()\n"
        "def broken(outputs, labels):\n    return outputs['z']\n"
        "constant = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    outputs, labels = {"y": np.ones((2, 2))}, np.array([1, 2])
    for text in ("quality_of_mine:mean_ap", "quality_of_mine.py:mean_ap"):
        metric = load_metric(text)
        assert metric is not None
        assert metric(outputs, labels) == 4.0
    broken = load_metric("quality_of_mine:broken")
    assert broken is not None
    with pytest.raises(UserError, match=r"metric 'quality_of_mine:broken': raised KeyError: 'z'"):
        broken(outputs, labels)
    with pytest.raises(UserError, match=r"has no such function; did you mean 'mean_ap'\?"):
        load_metric("quality_of_mine:mean_pa")
    with pytest.raises(UserError, match="is not callable"):
        load_metric("quality_of_mine:constant")
    with pytest.raises(UserError, match=r"metric 'top2': not known; did you mean 'top\d'\?"):
        load_metric("top2")
    with pytest.raises(UserError, match="no_such_module_here cannot be imported: ModuleNotFoundError"):
        load_metric("no_such_module_here:f")
