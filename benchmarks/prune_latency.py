"""Prune to shares of the float latency and print what the clock and the test file say, float and INT8.

    python benchmarks/prune_latency.py                        # the curve of resnet56, then two larger models
    python benchmarks/prune_latency.py --shares 0.7 --seed 1
    python benchmarks/prune_latency.py --minutes 20           # start no row after that many minutes; default 6

Calibration takes unlabelled samples of cifar10_train, the test file is only measured on. Latency is that of one thread,
runs in turns with the float model, the faster quarter of each. The second table cuts larger models without refitting
(their answers do not matter there) and compares what the table of timed layers predicted at the asked share with the
clock. The 224x224 ResNet-50 with random weights is made by ``benchmarks/peers.py``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from onnxedge_passes.prune import Prune
from onnxedge_passes.prune.allocation import allocate
from onnxedge_passes.prune.prune import analyse, prepare
from onnxedge_passes.prune.run import Pruning
from onnxedge_passes.prune.trial import in_turns
from prune import CASES, Job, accuracy
from zoo import IMAGENET, ZOO

import onnxedge
from onnxedge.api import Context, Session, from_arrays, load, refresh_scopes
from onnxedge.target import load_packaged_target

CASE = CASES[0]
SHARES = (0.7, 0.8, 0.6, 0.5, 0.45, 0.4, 0.35)
CACHE = Path.home() / ".cache" / "onnxedge-bench"
LARGER = (
    ZOO / "models" / "imagenet_mobilenetv2_torch_ptq_fp32.onnx",
    *sorted(CACHE.glob("resnet50-torchscript-6*.onnx")),
)


def curve(share: float, seed: int) -> str:
    """Return a row: prune to a share of the latency, then quantize."""
    start = time.process_time()
    job = Job(CASE, share, seed, {})
    model = load(job.path)
    whole, before = Session(model.clone()), accuracy(CASE, model)
    context = job.context(model)
    step = Prune(latency=share)
    step.requires(model, context)
    figures = step.run(model, context).figures
    spent = time.process_time() - start
    feed = next(iter(context.calibration.feeds(1)))
    after = accuracy(CASE, model)
    with np.load(ZOO / "data" / f"{CASE.calib}.npz") as data:
        x = data["x"][np.random.default_rng(seed).permutation(len(data["x"]))[:256]]
    small = onnxedge.optimize(
        model, "fuse,int8", calib={"x": x}, preprocess=IMAGENET, verify="off", measure=False, seed=seed
    ).model
    dropped = sum(width["after"] == 0 for width in figures["widths"])
    return (
        f"| {share:g} | {figures['latency_predicted']:.3f} | {in_turns(whole, Session(model), feed):.3f} | "
        f"{figures['macs_after'] / figures['macs_before']:.2f} | {dropped} | {after:.2f} | {before - after:.2f} | "
        f"{in_turns(whole, Session(small), feed):.3f} | {before - accuracy(CASE, small):.2f} | {spent:.0f} |"
    )


def prediction(path: Path, shares: tuple[float, ...]) -> list[str]:
    """Return rows: what the timed layers say of a cut, and what the clock says."""
    model = load(path)
    refresh_scopes(model)
    spec = Session(model).inputs[0]
    shape = [size if isinstance(size, int) else 1 for size in spec.shape]
    samples = np.random.default_rng(0).standard_normal((16, *shape[1:])).astype(np.float32)
    data = from_arrays(Session(model).inputs, {spec.name: samples})
    context = Context(load_packaged_target("onnxedge.targets", "ort-cpu"), data, original=model.clone())
    context.begin("prune")
    gammas = prepare(model, context)
    start = time.perf_counter()
    pruning = Pruning(
        Prune(latency=0.5, importance="l2", samples=16, timing_s=240.0), analyse(model, context), gammas, context
    )
    found, meter = pruning.curves(), pruning.meter
    spent = time.perf_counter() - start
    rows = []
    for share in shares:
        plan = allocate(meter, found, pruning.choices(), share)
        ratio = pruning.clock.ratio(pruning.removed(plan, found))
        _, corrected = pruning.timed_plan(found, pruning.choices(), share)
        rows.append(
            f"| {path.stem[:24]} | {share:g} | {plan.share:.3f} | {ratio:.3f} | {100 * (plan.share / ratio - 1):+.0f} |"
            f" {corrected:.3f} | {100 * (corrected / share - 1):+.0f} % | {spent:.0f} |"
        )
    return rows


def main() -> None:
    """Print both tables, a row at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", nargs="*", type=float, default=list(SHARES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--larger", nargs="*", type=Path, default=list(LARGER), help="models of the second table")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    print("| model | asked | predicted | clock | off | corrected | off the budget | s |\n|" + "---|" * 8)
    for path in arguments.larger:
        if time.monotonic() < end:
            print("\n".join(prediction(path, (0.7, 0.5))), flush=True)
    print("\n| share | predicted | latency | MACs | dropped | top-1 | lost | INT8 latency | INT8 lost | CPU s |")
    print("|" + "---|" * 10)
    for share in arguments.shares:
        if time.monotonic() < end:
            print(curve(share, arguments.seed), flush=True)


if __name__ == "__main__":
    main()
