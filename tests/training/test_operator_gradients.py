"""The table of operators with gradients against finite differences, in onnxruntime-training itself."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import operator_gradients
import pytest
from onnxedge_passes.train.gradients import DIFFERENTIABLE

from onnxedge.training.overlay import find_environment

#: BatchNormalization goes by the batch while it trains; test_worker.py looks at whole models.
_ELSEWHERE = {"BatchNormalization"}


def test_every_operator_of_the_table_has_a_case() -> None:
    covered = {name.split(" ")[0].rstrip(",") for name in operator_gradients.CASES}
    assert covered == DIFFERENTIABLE - _ELSEWHERE


def test_gradients() -> None:
    where = find_environment()
    if where is None:
        pytest.skip("needs onnxruntime-training: run `onnxedge training install`")
    script = Path(operator_gradients.__file__)
    variables = {**os.environ, "PYTHONPATH": str(where.overlay), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [where.python, str(script)], capture_output=True, text=True, env=variables, timeout=300, check=True
    )
    answers = json.loads(done.stdout.splitlines()[-1])
    assert set(answers) == set(operator_gradients.CASES)
    wrong = {name: found for name, found in answers.items() if isinstance(found, str) or found > 2e-3}
    assert wrong == {}
