"""The docs page of the passes says what the passes say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_the_page_of_the_passes_is_not_stale() -> None:
    script = Path(__file__).resolve().parent.parent / "docs" / "make.py"
    done = subprocess.run([sys.executable, str(script), "--check"], check=False)
    assert done.returncode == 0, "docs/passes.md is stale: run python docs/make.py"
