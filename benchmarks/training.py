"""Measure the engines of training beside PyTorch: images per CPU second, and memory above what was there before.

    python benchmarks/training.py [--rounds 5] [--batch 64] [--steps 8]

ResNet-20 of the zoo with batch normalization live, cross-entropy, AdamW with clipping, one thread, images of the
training data. Each engine has a process of its own; they take turns, and the median of the rounds is shown with the
range. PyTorch trains the same architecture, built here.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
ZOO = Path(os.environ.get("ONNXEDGE_ZOO", ROOT.parent / "shared" / "zoo"))
ENGINES = {"ort-training": ("run_package", "Package"), "ort": ("run_stock", "Stock")}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--child", nargs=2, metavar=("ENGINE", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(*given.child, given.batch, given.steps)))
        return
    with tempfile.TemporaryDirectory() as folder:
        environments = prepare(Path(folder), given.batch)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in environments}
        for _ in range(given.rounds):
            for name, variables in environments.items():
                options = ["--batch", str(given.batch), "--steps", str(given.steps)]
                command = [sys.executable, __file__, *options, "--child", name, str(Path(folder) / name)]
                done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
    show(found)


def show(found: dict[str, list[dict[str, float]]]) -> None:
    """Print a row for each engine; ratios are of the same round."""
    print("| engine | images per CPU second | of PyTorch | memory above the start, MB | first loss |")
    print("|---|---|---|---|---|")
    for name, rounds in found.items():
        speeds = [r["speed"] for r in rounds]
        ratios = [r["speed"] / t["speed"] for r, t in zip(rounds, found["torch"], strict=True)]
        cells = [
            f"{statistics.median(speeds):.0f} ({min(speeds):.0f} to {max(speeds):.0f})",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            f"+{statistics.median(r['memory'] for r in rounds):.0f}",
            f"{rounds[0]['loss']:.4f}",
        ]
        print(f"| {name} | {' | '.join(cells)} |")


def prepare(folder: Path, batch: int) -> dict[str, dict[str, str]]:
    """Lay out a job for each engine, and return the variables that each runs with."""
    from onnxedge_passes.train import PrepareTraining

    from onnxedge.api import Context, HardLabels, TrainingSettings, compose, infer_shapes, load, refresh_scopes, train
    from onnxedge.target import load_packaged_target
    from onnxedge.training.overlay import find_environment

    model = load(ZOO / "models" / "cifar10_resnet20_bn.onnx")
    infer_shapes(model)
    refresh_scopes(model)
    target = load_packaged_target("onnxedge.targets", "ort-cpu")  # type: ignore[arg-type]
    _, trainable = PrepareTraining().prepare(model, Context(target, None, original=model.clone()))
    composed = compose(model, [HardLabels(output=model.graph.outputs[0].name or "")])
    data = {model.graph.inputs[0].name or "": images(batch)[0], "labels": images(batch)[1]}
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    where = find_environment()
    result = {"torch": variables, "ort": variables}
    if where is not None:
        result["ort-training"] = {**variables, "PYTHONPATH": str(where.overlay)}
    for name in result:
        if name != "torch":
            train(
                composed, data, folder / name, TrainingSettings(epochs=1, batch=batch), engine=name,
                weights=list(trainable.weights), statistics=trainable.statistics, spared=trainable.spared,
            )  # fmt: skip
    return result


def images(count: int) -> tuple[Any, Any]:
    """Return images, float32 [N, 3, 32, 32], and labels."""
    found = np.load(ZOO / "data" / "cifar10_train.npz")
    x = found["x"][:count].astype(np.float32)
    x = x.transpose(0, 3, 1, 2) if x.shape[-1] == 3 else x
    return np.ascontiguousarray((x / 255 - 0.45) / 0.25), found["y"][:count].astype(np.int64)


def child(name: str, folder: str, batch: int, steps: int) -> dict[str, float]:
    """Train a few steps and return speed, memory and the first loss."""
    step = torch_step(batch) if name == "torch" else engine_step(name, folder, batch)
    before = peak()
    losses, seconds = [step()], []
    step()
    for _ in range(steps):
        began = time.process_time()
        losses.append(step())
        seconds.append(time.process_time() - began)
    return {"speed": batch / statistics.median(seconds), "memory": peak() - before, "loss": losses[0]}


def peak() -> float:
    """Return the most memory so far, in MB."""
    status = Path("/proc/self/status").read_text("utf-8")  # ru_maxrss would be that of the parent, too
    return float(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


def engine_step(name: str, folder: str, batch: int) -> Callable[[], float]:
    """Return a step of an engine; what is measured includes the making of its session."""
    sys.path.insert(0, str(ROOT / "onnxedge" / "training"))
    with open(os.path.join(folder, "job.json"), encoding="utf-8") as file:
        job = json.load(file)
    importlib.import_module("onnxruntime")
    optimizer = importlib.import_module("optimizers").Optimizer(job, job["spared"], 100)
    inputs = importlib.import_module("run").read_inputs(folder, job)
    feed = {key: np.ascontiguousarray(array[:batch]) for key, array in inputs.items()}
    feed[job["weights"]] = np.load(os.path.join(folder, "weights.npy"))[0]
    module, kind = ENGINES[name]
    made: list[Any] = []

    def step() -> float:
        if not made:
            made.append(getattr(importlib.import_module(module), kind)(folder, job, optimizer))
        loss = made[0].batch(feed)
        made[0].update()
        return float(loss)

    return step


def torch_step(batch: int) -> Callable[[], float]:
    """Return a step of PyTorch: ResNet-20 with shortcuts that are cut and padded (He et al. 2016, section 4.2)."""
    torch = importlib.import_module("torch")
    nn, functional = torch.nn, torch.nn.functional
    torch.set_num_threads(1)

    class Block(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, inner: int, outer: int) -> None:
            super().__init__()
            stride = 1 if inner == outer else 2
            self.first, self.norm = nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer)
            self.second, self.last = nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer)
            self.more = (outer - inner) // 2

        def forward(self, x: Any) -> Any:
            y = functional.relu(self.norm(self.first(x)))
            short = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more, self.more)) if self.more else x
            return functional.relu(self.last(self.second(y)) + short)

    widths = [16, 16, 16, 32, 32, 32, 64, 64, 64]
    blocks = [Block(inner, outer) for inner, outer in zip([16, *widths], widths, strict=False)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    start = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    model = nn.Sequential(*start, *blocks, *head)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    x, y = (torch.from_numpy(array) for array in images(batch))

    def step() -> float:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.item())

    return step


if __name__ == "__main__":
    main()
