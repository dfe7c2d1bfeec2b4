"""Which pass is taken back: the first that the loss of accuracy stays from, not one whose loss was made up for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from onnxedge.never_worse import _culprit


class Judge:
    """A judge for whom a model is its own loss of accuracy."""

    def fidelity(self, model: float) -> float:
        return model

    def fault_in_fidelity(self, fidelity: float) -> str:
        return "loses" if fidelity > 0.02 else ""


def stages(*losses: float, idle: int = -1) -> list[Any]:
    statuses = ["no change" if number == idle else "applied" for number in range(len(losses))]
    records = [SimpleNamespace(status=status) for status in statuses]
    made = [SimpleNamespace(model=loss, record=record) for loss, record in zip(losses, records, strict=True)]
    return [SimpleNamespace(model=0.0, record=None), *made]


@pytest.mark.parametrize(
    ("losses", "culprit"),
    [
        ((0.0, 0.05, 0.05), 2),
        ((0.05, 0.05, 0.06), 1),
        ((0.05, 0.0, 0.05, 0.03), 3),  # cut, trained, cut, trained: the first cut was made up for
        ((0.05, 0.01, 0.05), 3),
        ((0.0, 0.0, 0.03), 3),
        ((0.03,), 1),
    ],
)
def test_the_culprit_of_lost_accuracy(losses: tuple[float, ...], culprit: int) -> None:
    assert _culprit(stages(*losses), (), Judge(), None, accuracy=True) == culprit  # type: ignore[arg-type]


def test_passes_that_did_nothing_are_none() -> None:
    assert _culprit(stages(0.05, 0.05, idle=0), (), Judge(), None, accuracy=True) == 2  # type: ignore[arg-type]
