"""Which pass is taken back: the first that the loss of accuracy stays from, not one whose loss was made up for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from onnxedge.never_worse import _base, _culprit


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
    assert _culprit(stages(*losses), (), Judge(), None, base=0) == culprit  # type: ignore[arg-type]


def test_passes_that_did_nothing_are_none() -> None:
    assert _culprit(stages(0.05, 0.05, idle=0), (), Judge(), None, base=0) == 2  # type: ignore[arg-type]


def step(name: str) -> Any:
    """Return a pass: `student`, `train` (towards the original), `teach` (elsewhere), `lossy`, `exact`."""
    return SimpleNamespace(
        makes_student=name == "student",
        trains=name in ("train", "teach"),
        aims_elsewhere=lambda: name == "teach",
        accuracy="exact" if name == "exact" else "lossy",
    )


@pytest.mark.parametrize(
    ("names", "labelled", "base"),
    [
        ("lossy train lossy", False, 0),
        ("teach lossy", False, 1),
        ("exact teach lossy", False, 2),
        ("lossy teach lossy", False, 0),  # training is to bring back what the cut cost
        ("teach lossy", True, 0),
        ("student lossy", True, 1),
        ("student train lossy", True, 2),
        ("exact student lossy teach exact", False, 4),
    ],
)
def test_what_is_held_against_which_answers(names: str, labelled: bool, base: int) -> None:
    passes = [step(name) for name in names.split()]
    assert _base(stages(*[0.0] * len(passes)), passes, labelled=labelled) == base


def test_the_culprit_behind_what_was_trained() -> None:
    assert _culprit(stages(0.5, 0.0, 0.01, 0.05, 0.06), (), Judge(), None, base=2) == 4  # type: ignore[arg-type]
