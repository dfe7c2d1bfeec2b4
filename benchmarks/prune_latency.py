"""Prune to shares of the float latency and print what the clock and the test file say, float and INT8.

    python benchmarks/prune_latency.py                        # two larger models, then the curve of resnet56
    python benchmarks/prune_latency.py --shares 0.7 --int8 --larger --seeds 3
    python benchmarks/prune_latency.py --minutes 20           # start no row after that many minutes; default 20

Calibration takes 512 unlabelled samples of cifar10_train, the test file is only measured on. What is asked for in INT8
is the latency of the INT8 model: ``prune`` quantizes what it times. *predicted* is what the table of timed layers says
of the plan in float, *on the clock* what ``prune`` measured of it, *measured* the finished file against the file that
came in: median of turns on one thread, in processor time and, in brackets, in wall time. The larger models are cut
without refitting (their answers do not matter here); *off* is the measured latency against the one asked for. The
224x224 ResNet-50 with random weights is made by ``python benchmarks/networks resnet50``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxedge_passes.prune import Prune
from onnxedge_passes.prune.trial import in_turns
from prune import CASES, SAMPLES, Job, accuracy
from zoo import IMAGENET, ZOO

import onnxedge
from onnxedge.api import Context, Feed, Session, from_arrays, latency_ratio, load, refresh_scopes
from onnxedge.target import load_packaged_target

CASE = CASES[0]
CACHE = Path.home() / ".cache" / "onnxedge-bench"
LARGER = (
    ZOO / "models" / "imagenet_mobilenetv2_torch_ptq_fp32.onnx",
    *sorted(CACHE.glob("resnet50-torchscript-6*.onnx")),
)


def curve(share: float, seed: int, options: Mapping[str, Any], behind: tuple[str, ...]) -> str:
    """Return a row of the first table."""
    start = time.process_time()
    job = Job(CASE, share, seed, {})
    original = load(job.path)
    model = original.clone()
    context = job.context(model)
    figures = pruned(model, context, Prune(latency=share, behind=behind, samples=SAMPLES, **options))
    spent = time.process_time() - start
    if behind:
        with np.load(ZOO / "data" / f"{CASE.calib}.npz") as data:
            x = data["x"][np.random.default_rng(seed).permutation(len(data["x"]))[:256]]
        passes, calib = ",".join(behind), {"x": x}
        model = onnxedge.optimize(
            model, passes, calib=calib, preprocess=IMAGENET, verify="off", measure=False, seed=seed
        ).model
    widths = figures["widths"]
    dropped = sum(width["after"] == 0 for width in widths)
    narrowed = sum(0 < width["after"] < width["before"] for width in widths)
    before, after = accuracy(CASE, original), accuracy(CASE, model)
    return (
        f"| {share:g} | {','.join(behind) or 'float'} | {seed} | {timings(figures, original, model, context)} | "
        f"{figures['macs_after'] / figures['macs_before']:.2f} | {dropped} | {narrowed} | "
        f"{figures['sqnr_db']:.1f} | {before:.2f} | {after:.2f} | {before - after:.2f} | {spent:.0f} |"
    )


def pruned(model: ir.Model, context: Context, step: Prune) -> Mapping[str, Any]:
    """Run the pass and return its figures."""
    step.requires(model, context)
    return step.run(model, context).figures


def timings(figures: Mapping[str, Any], original: ir.Model, model: ir.Model, context: Context) -> str:
    """Return predicted, by the clock of `prune`, and measured once more on the finished model."""
    cpu, wall = measured(Session(original), Session(model), next(iter(context.calibration.feeds(1))))
    return f"{figures['latency_predicted']:.3f} | {figures['latency_measured']:.3f} | {cpu:.3f} [{wall:.3f}]"


def measured(first: Session, second: Session, feed: Feed) -> tuple[float, float]:
    """Return the ratio of the latencies in processor time and in wall time."""
    return in_turns(first, second, feed), latency_ratio(first, second, feed).ratio


def promised(path: Path, share: float) -> str:
    """Return a row of the second table: what the timed layers say of a cut, and what the clock says."""
    model = load(path)
    original = model.clone()
    refresh_scopes(model)
    spec = Session(model).inputs[0]
    shape = [size if isinstance(size, int) else 1 for size in spec.shape]
    samples = np.random.default_rng(0).standard_normal((16, *shape[1:])).astype(np.float32)
    data = from_arrays(Session(model).inputs, {spec.name: samples})
    context = Context(load_packaged_target("onnxedge.targets", "ort-cpu"), data, original=original)
    context.begin("prune")
    start = time.perf_counter()
    figures = pruned(model, context, Prune(latency=share, importance="l2", samples=16, repair="none"))
    spent = time.perf_counter() - start
    cpu, wall = measured(Session(original), Session(model), next(iter(data.feeds(1))))
    return (
        f"| {path.stem[:24]} | {share:g} | {figures['latency_predicted']:.3f} | {figures['latency_measured']:.3f} | "
        f"{cpu:.3f} [{wall:.3f}] | {100 * (cpu / share - 1):+.0f} % | "
        f"{figures['macs_after'] / figures['macs_before']:.2f} | {spent:.0f} |"
    )


def main() -> None:
    """Print both tables, a row at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", nargs="*", type=float, default=[0.7, 0.8, 0.6, 0.5], help="of the float latency")
    parser.add_argument("--int8", nargs="*", type=float, default=[0.45, 0.35], help="the same, quantized behind")
    parser.add_argument("--repair", default="block", choices=["block", "least-squares", "none"])
    parser.add_argument("--seeds", type=int, default=1, help="runs with seeds 0 to N - 1")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--larger", nargs="*", type=Path, default=list(LARGER), help="models of the first table")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    print("| model | asked | predicted | on the clock | measured | off | MACs | s |\n|" + "---|" * 8)
    for path, share in ((path, share) for path in arguments.larger for share in (0.7, 0.5)):
        if time.monotonic() < end:
            print(promised(path, share), flush=True)
    print("\n| asked | of | seed | predicted | on the clock | measured | MACs | dropped | narrowed | SQNR dB", end="")
    print(" | top-1 before | after | lost | CPU s |\n|" + "---|" * 14)
    quantized = ("fuse", "int8")
    jobs = [*((share, ()) for share in arguments.shares), *((share, quantized) for share in arguments.int8)]
    for seed in range(arguments.seeds):
        for share, behind in jobs:
            if time.monotonic() < end:
                print(curve(share, seed, {"repair": arguments.repair}, behind), flush=True)


if __name__ == "__main__":
    main()
