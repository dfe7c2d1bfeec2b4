"""What tests share: where fixtures and the zoo lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "fixtures"
ZOO = Path(os.environ.get("ONNXEDGE_ZOO", ROOT.parent / "shared" / "zoo"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests on real models where the zoo is not there."""
    if (ZOO / "models").is_dir():
        return
    skip = pytest.mark.skip(reason=f"needs the zoo: {ZOO} is not there (set ONNXEDGE_ZOO)")
    for item in items:
        if "zoo" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the clock out: what a test asserts must not hang on how busy the machine is."""
    monkeypatch.setattr("onnxedge.measure.Judge.speed", lambda *_: None)
    monkeypatch.setattr("onnxedge_passes.quantize.timing._latency", lambda *_: None)


@pytest.fixture
def fixtures() -> Path:
    """Return the folder of the project's own models and data."""
    return FIXTURES


@pytest.fixture
def zoo() -> Path:
    """Return the folder of real models and data."""
    return ZOO
