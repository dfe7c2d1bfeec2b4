"""A killed run leaves nothing or a whole model, an untouched input, and no growing heap of files."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnx
import pytest

from onnxedge.model.files import scratch_directory


def _run(model: Path, output: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "onnxedge", "optimize", str(model), "--passes", "fold,fuse", "-o", str(output), "-q"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("name", ["digits_resnet.onnx", "external_data.onnx"])
def test_sigkill_at_ten_moments(fixtures: Path, tmp_path: Path, name: str) -> None:
    model, output = fixtures / name, tmp_path / "out.onnx"
    files = sorted(fixtures.glob(name + "*"))
    before = [hashlib.sha256(file.read_bytes()).digest() for file in files]
    start = time.monotonic()
    assert _run(model, output).wait(120) == 0
    whole = time.monotonic() - start
    onnx.checker.check_model(output)
    output.unlink()

    moments = random.Random(0)
    leftovers = set()
    for _ in range(10):
        process = _run(model, output)
        time.sleep(moments.uniform(0.3, 1.0) * whole)
        process.kill()
        process.wait(30)
        if output.exists():
            onnx.checker.check_model(output)
        leftovers.add(len(list(tmp_path.iterdir())))
    parts = len(files)  # the model, and its external data where it has some
    assert max(leftovers) <= 2 * parts  # each part, and at most one partial file of it
    assert [hashlib.sha256(file.read_bytes()).digest() for file in files] == before

    assert _run(model, output).wait(120) == 0
    assert not list(tmp_path.glob(".*"))
    with scratch_directory() as scratch:
        assert scratch.parent.parent == Path(tempfile.gettempdir())
        stale = [p for p in scratch.parent.iterdir() if p.name.split("-")[0] == str(process.pid)]
        assert not stale
