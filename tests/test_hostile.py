"""Hostile models: each is optimized rightly, or refused with one line and exit code 2, within 1 GB; nothing crashes.

Each runs in a fork of a process that has all imported, under a limit of memory, so that native code may crash there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hostile import MODELS
from hostile.trial import Server, attempt

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Return the process that is forked."""
    with Server() as started:
        yield started


@pytest.mark.parametrize("name", MODELS)
def test_hostile_model(name: str, server: Server) -> None:
    """It ends in time, in bounds, with equal outputs or one line."""
    trial = attempt(MODELS[name], server.start, server.compare)
    assert trial.result != "WRONG", trial.detail
