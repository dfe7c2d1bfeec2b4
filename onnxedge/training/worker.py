"""The process of an engine: files in, files out, progress as lines of JSON on standard output.

It may run beside ``onnxruntime-training`` and not beside ``onnxruntime``, in an older Python, and so imports nothing of
onnxedge but its neighbours :mod:`optimizers`, :mod:`run` and one ``run_...``. Its one argument is a folder:

- ``job.json``: see :func:`onnxedge.training.engine.train`; ``model.onnx``: the composed graph, output 0 the loss;
- ``input.<index>.npy``: float or integer [S, ...], a row a sample, memory-mapped; ``weights.npy``:
  [2, terms], of the first step and of the last;
- of engine ``ort``: ``step.onnx``, ``update.onnx``, ``start.npz``, see :mod:`run_stock`;
- ``state.npz``: what a run that was stopped goes on from; written whole after each epoch;
- ``trained.npz``: the parameters and running statistics by index, at the end.

Where the job says ``asks``, it says ``next`` before each epoch and reads a line of JSON from standard input: ``epochs``
that there will be, the last one where that is no more than it has; by then the inputs may be others.
"""

from __future__ import annotations

import importlib
import json
import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
_ENGINES = {"ort-training": ("run_package", "Package"), "ort": ("run_stock", "Stock")}


def main(folder: str) -> None:
    """Train what lies in a folder."""
    run = importlib.import_module("run")
    with open(os.path.join(folder, "job.json"), encoding="utf-8") as file:
        job = json.load(file)
    module, kind = _ENGINES[job["engine"]]
    optimizer = importlib.import_module("optimizers").Optimizer(job, job["spared"], 1)
    engine = getattr(importlib.import_module(module), kind)(folder, job, optimizer)
    run.say(kind="ready")
    run.Run(folder, job, engine).train_all()


if __name__ == "__main__":
    sys.path[0] = _HERE
    sys.stdout = sys.stderr  # what libraries print does not get between the lines
    try:
        main(sys.argv[1])
    except Exception as err:  # whatever it is goes to the parent as one line
        text = " ".join(str(err).split())[:500] or type(err).__name__
        importlib.import_module("run").say(kind="failed", reason=text, type=type(err).__name__)
        sys.exit(1)
