"""Prune a model on samples from disk and print what each phase of the whole command takes: processor time and memory.

    python benchmarks/prune_cost.py                         # ResNet-50, 256 samples of 224x224, float32 in an npy file
    python benchmarks/prune_cost.py --form uint8            # pixels in an npy file, and --preprocess
    python benchmarks/prune_cost.py --form png              # a folder of images, and --preprocess
    python benchmarks/prune_cost.py --network vit-tiny      # another one of benchmarks/networks
    python benchmarks/prune_cost.py MODEL.onnx --passes "prune(params=0.5)" --samples 64

The networks have random weights, the samples are smooth noise. The command runs in a process of its own with one
thread; a phase is named as its progress bar, or as the line that the command prints when it begins. The memory is the
most that was resident at once in a phase (Linux). Issue 4 bounds the whole of the first line by 10 minutes and 3 GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from networks import Export, find

CACHE = Path(os.environ.get("ONNXEDGE_BENCH_CACHE", Path.home() / ".cache" / "onnxedge-bench")) / "samples"
PIXELS = "scale=1/255,mean=0.485:0.456:0.406,std=0.229:0.224:0.225,layout=NCHW"


class Phases:
    """Count processor seconds and resident memory by phase; stands for the command's progress bars.

    Attributes:
        found: by phase, CPU seconds and peak MiB, in the order in which they began.
    """

    def __init__(self) -> None:
        """Begin with the imports behind us."""
        self.found: dict[str, list[float]] = {}
        self._name, self._since = "start", 0.0

    def enter(self, name: str) -> str:
        """Begin a phase, and return the one that ends."""
        seconds = time.process_time()
        entry = self.found.setdefault(self._name, [0.0, 0.0])
        entry[0] += seconds - self._since
        entry[1] = max(entry[1], _peak_mib())
        before, self._name, self._since = self._name, name, seconds
        return before

    def track(self, items: Iterable[Any], description: str, total: int | None = None) -> Iterator[Any]:
        """Yield items as a phase of its own."""
        del total
        before = self.enter(description)
        try:
            yield from items
        finally:
            self.enter(f"after {description}" if before != description else before)

    def watch(self, line: str) -> None:
        """Begin a phase with a line that the command prints."""
        self.enter(line)


def _peak_mib() -> float:
    """Return the most memory that was resident since the last call, and forget it."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to what is resident now
    return int(status["VmHWM"].split()[0]) / 1024


def child(model: str, output: str, settings: dict[str, Any]) -> None:
    """Run the command's work and print the phases as JSON."""
    from onnxedge.driver import optimize

    phases = Phases()
    start = time.perf_counter()
    made = optimize(model, output=output, progress=phases, watch=phases.watch, **settings)
    phases.enter("")
    seconds = time.perf_counter() - start
    notes = [f"{note.pass_name}: {note.reason}" for note in made.report.notes if not note.where]
    figures = [record.figures for record in made.report.passes]
    facts = {"phases": phases.found, "seconds": seconds, "verdict": made.report.verdict, "notes": notes}
    print(json.dumps(facts | {"figures": figures}, default=str))


def samples(form: str, count: int, shape: tuple[int, ...]) -> Path:
    """Return a file or a folder of smooth noise, made first where it is not there.

    Args:
        form: ``float32`` [N, *shape] or ``uint8`` [N, H, W, C] in an npy file, or ``png`` images in a folder.
        count: N.
        shape: of one sample, channels first.
    """
    name = "x".join(map(str, (count, *shape)))
    path = CACHE / (f"{name}-png" if form == "png" else f"{name}-{form}.npy")
    if path.exists():
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    pictures = (_smooth(rng, shape) for _ in range(count))
    if form == "float32":
        file = np.lib.format.open_memmap(path, "w+", np.float32, (count, *shape))
        for row, picture in zip(file, pictures, strict=True):
            row[:] = picture
        return path
    pixels = (np.clip(128 + 50 * picture.transpose(1, 2, 0), 0, 255).astype(np.uint8) for picture in pictures)
    if form == "uint8":
        np.save(path, np.stack(list(pixels)))
        return path
    from PIL import Image

    path.mkdir()
    for number, array in enumerate(pixels):
        Image.fromarray(array).save(path / f"{number:04}.png")
    return path


def _smooth(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return float32 noise of several scales, of deviation about 1."""
    total = np.zeros(shape, np.float32)
    for step in (1, 4, 16, 64):
        small = [-(-size // step) for size in shape[1:]]
        noise = rng.standard_normal((shape[0], *small)).astype(np.float32)
        for axis in range(1, len(shape)):
            noise = np.repeat(noise, step, axis=axis)
        total += 0.5 * noise[tuple(slice(0, size) for size in shape)]
    return total


def measured(model: Path, data: Path | None, passes: str, preprocess: str, threads: int) -> dict[str, Any]:
    """Run the command in a process of its own."""
    settings = {"passes": passes, "calib": str(data) if data else None, "threads": threads}
    settings |= {"preprocess": preprocess} if preprocess else {}
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "pruned.onnx")
        command = [sys.executable, __file__, "--child", json.dumps([str(model), output, settings])]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def table(facts: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the table."""
    yield "| phase | CPU s | peak MiB |\n|---|---|---|"
    phases = facts["phases"]
    for name, (seconds, peak) in phases.items():
        if seconds >= 0.5:
            yield f"| {name} | {seconds:.1f} | {peak:.0f} |"
    total, peak = sum(seconds for seconds, _ in phases.values()), max(peak for _, peak in phases.values())
    yield f"| all ({facts['seconds']:.0f} s on the clock) | {total:.1f} | {peak:.0f} |"


def main() -> None:
    """Print the table of one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="an ONNX file instead of a network of benchmarks/networks")
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--calib", type=Path, help="samples of your own")
    parser.add_argument("--form", default="float32", choices=["float32", "uint8", "png"])
    parser.add_argument("--shape", default="3x224x224", help="of a sample, channels first")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--passes", default="prune(macs=0.5)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(*json.loads(given.child))
        return
    model = given.model or find(Export(given.network, "torchscript", free=True, small=False))
    shape = tuple(int(size) for size in given.shape.split("x"))
    data = given.calib or samples(given.form, given.samples, shape)
    facts = measured(model, data, given.passes, PIXELS if given.form != "float32" else "", given.threads)
    print("\n".join(table(facts)), facts["verdict"], *facts["notes"], sep="\n")
    for figures in facts["figures"]:
        print({key: value for key, value in figures.items() if key != "widths"})


if __name__ == "__main__":
    main()
