"""Prune trained models without training or labels and print what accuracy is left, beside what others leave.

    python benchmarks/prune.py                        # all models, budgets and methods, one seed
    python benchmarks/prune.py --words resnet20 --seeds 3
    python benchmarks/prune.py --methods prune        # without those that it is compared with
    python benchmarks/prune.py --reuse                # take runs of an earlier call again
    python benchmarks/prune.py --option repair=block  # an option of `prune`; may be given more than once

Calibration takes unlabelled samples of the training file, other ones for each seed; the test file is only measured on.
Methods: `prune` as it comes; `l2`: filter norms, the same groups, widths and allocation, BatchNormalization statistics
measured again; `onnxsim`, its structured pruner at the sparsity that meets the budget, by weights alone and `wanda`
with calibration. The models lie in $ONNXEDGE_ZOO (default ../shared/zoo).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnxedge_passes.prune import Prune
from onnxedge_passes.prune.allocation import Measure, allocate, widths
from onnxedge_passes.prune.compensation import masked_constants
from onnxedge_passes.prune.importance import curves
from onnxedge_passes.prune.prune import analyse, prepare
from onnxedge_passes.prune.stream import Stream
from onnxedge_passes.prune.trial import masked
from zoo import IMAGENET, ZOO

from onnxedge.api import (
    Array,
    Context,
    Session,
    constant,
    find_importance,
    load,
    model_macs,
    open_data,
    refresh_scopes,
    weight_axes,
)
from onnxedge.target import load_packaged_target

RESULTS = Path(os.environ.get("ONNXEDGE_BENCH_CACHE", Path.home() / ".cache" / "onnxedge-bench")) / "results" / "prune"
SAMPLES = 512


@dataclass(frozen=True)
class Case:
    """Name a model, its data, and by budget the points that it may lose."""

    model: str
    calib: str
    test: str
    preprocess: str
    goals: dict[float, float]


CASES = (
    Case("cifar10_resnet56_bn", "cifar10_train", "cifar10_test", IMAGENET, {0.7: 0.4, 0.5: 1.2, 0.3: 5.0}),
    Case("cifar10_resnet20_bn", "cifar10_train", "cifar10_test", IMAGENET, {0.7: 1.0, 0.5: 3.8}),
    Case("kwt1_speech12", "speech_commands_calib", "speech_commands_test", "scale=1/32768", {0.7: 2.0}),
)


@dataclass(frozen=True)
class Job:
    """One run: a model, the share of MACs that is kept, a seed, and options of `prune`."""

    case: Case
    macs: float
    seed: int
    options: dict[str, Any]

    @property
    def path(self) -> Path:
        """Where the model lies."""
        return ZOO / "models" / f"{self.case.model}.onnx"

    def context(self, model: ir.Model) -> Context:
        """Return what a pass works with: samples of the training file, drawn by the seed, without labels."""
        with np.load(ZOO / "data" / f"{self.case.calib}.npz") as data:
            x = data["x"]
        picked = np.random.default_rng(self.seed).permutation(len(x))[:SAMPLES]
        calibration = open_data({"x": x[picked]}, Session(model).inputs, self.case.preprocess)
        target = load_packaged_target("onnxedge.targets", "ort-cpu")
        context = Context(target, calibration, original=model.clone(), seed=self.seed)
        context.begin("prune")
        refresh_scopes(model)
        return context


Pruned = tuple[ir.Model, float]  # the model, and the share of its MACs that is left


def prune(job: Job) -> Pruned:
    """Run the pass."""
    model = load(job.path)
    context = job.context(model)
    step = Prune(macs=job.macs, **{"samples": SAMPLES, **job.options})
    step.requires(model, context)
    figures = step.run(model, context).figures
    for note in context.notes:
        logging.getLogger(__name__).info("%s: %s", note.where, note.reason)
    return model, figures["macs_after"] / figures["macs_before"]


def l2(job: Job) -> Pruned:
    """Remove the filters of least norm, then measure the BatchNormalization statistics again, layer by layer.

    BatchNormalization is folded before: new statistics come to a scale and a shift per channel that give each layer's
    output the mean and deviation which it had.
    """
    model = load(job.path)
    context = job.context(model)
    normalised = prepare(model, context)
    groups = analyse(model, context)
    found = curves(groups, find_importance("l2"), None, normalised, 1e-3)
    choices = [widths(group, 16, may_vanish=False) for group in groups.free]
    plan = allocate(Measure(groups, "macs"), found, choices, job.macs)
    removed = np.zeros(len(groups.component), bool)
    for group, kept, curve in zip(groups.free, plan.kept, found, strict=True):
        removed[group.units[curve.order[: len(group.units) - kept]]] = True
    constants = masked_constants(groups, removed)
    feeds = list(context.calibration.feeds(32))
    before, after = Stream(model, feeds), Stream(model, feeds)
    for (node, index), array in constants.items():
        after.replace(node, index, array)
    for node in [reader.node for reader in groups.labels.readers if reader.node in normalised]:
        axes, output = weight_axes(node), node.outputs[0]
        assert axes is not None
        wanted, drifted = (stream.fetch([output])[0] for stream in (before, after))
        (mean_then, deviation_then), (mean_now, deviation_now) = moments(wanted), moments(drifted)
        scale = deviation_then / np.maximum(deviation_now, 1e-6)
        shift = mean_then - scale * mean_now
        for array in drifted:  # held by the stream: what comes after sees it
            array *= scale.reshape(-1, 1, 1).astype(array.dtype)
            array += shift.reshape(-1, 1, 1).astype(array.dtype)
        weight = constants.get((node, axes.index), constant(node.inputs[axes.index]))
        bias = constant(node.inputs[2])
        assert weight is not None
        assert bias is not None
        constants[node, axes.index] = (weight * scale.reshape(-1, 1, 1, 1)).astype(weight.dtype)
        constants[node, 2] = (scale * bias + shift).astype(bias.dtype)
    return masked(model, constants), plan.share


def moments(arrays: list[Array]) -> tuple[Array, Array]:
    """Return mean and standard deviation of each channel of images [N, C, H, W]."""
    wide = np.concatenate(arrays).astype(np.float64)
    return wide.mean(axis=(0, 2, 3)), wide.std(axis=(0, 2, 3))


def onnxsim_weights(job: Job) -> Pruned:
    """Run onnxsim's structured pruner, which ranks by the norm of the weights."""
    import onnxsim

    return at_sparsity(job, lambda proto, sparsity: onnxsim.apply_structured_pruning(proto, sparsity))


def onnxsim_wanda(job: Job) -> Pruned:
    """Run onnxsim's structured pruner, which ranks by weights times activations of the calibration samples."""
    import onnxsim

    model = load(job.path)
    samples = list(job.context(model).calibration.feeds(1, 64))
    return at_sparsity(
        job,
        lambda proto, sparsity: onnxsim.apply_structured_wanda_pruning(proto, samples, len(samples), sparsity=sparsity),
    )


def at_sparsity(job: Job, run: Callable[[onnx.ModelProto, float], onnx.ModelProto]) -> Pruned:
    """Simplify, then find the sparsity whose result meets the budget, to 1 part in 64."""
    import onnxsim

    simple, _ = onnxsim.simplify(onnx.load(job.path))
    full = counted(simple)
    low, high = 0.0, 1.0
    best: Pruned | None = None
    for _ in range(6):
        middle = (low + high) / 2
        made = run(simple, middle)
        share = counted(made) / full
        if share <= job.macs:
            best, high = (ir.from_proto(made), share), middle
        else:
            low = middle
    if best is None:
        raise ValueError(f"{share:.2f} of the MACs are left at sparsity {middle:.2f}")
    return best


def counted(proto: onnx.ModelProto) -> int:
    """Count the multiply-accumulates."""
    return model_macs(ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True)))


METHODS: dict[str, Callable[[Job], Pruned]] = {
    "prune": prune,
    "l2": l2,
    "onnxsim": onnxsim_weights,
    "onnxsim wanda": onnxsim_wanda,
}


def accuracy(case: Case, model: ir.Model) -> float:
    """Return the share of the test file that is classified right, in percent."""
    with np.load(ZOO / "data" / f"{case.test}.npz") as data:
        x, y = data["x"], data["y"]
    session = Session(model)
    feeds = open_data({"x": x}, session.inputs, case.preprocess).feeds(64)
    scores = np.concatenate([next(iter(session.run(feed).values())) for feed in feeds])
    return 100 * float((scores.reshape(len(y), -1).argmax(axis=1) == y).mean())


def measured(job: Job, method: str, *, reuse: bool) -> dict[str, Any]:
    """Run one job, or read what it gave before: accuracy, share of MACs, CPU seconds; or why there is no model."""
    told = ",".join(f"{key}={value}" for key, value in sorted(job.options.items())) if method == "prune" else ""
    name = f"{job.case.model}-{method}-{job.macs:g}-{job.seed}-{told}".replace(" ", "-")
    record = RESULTS / f"{name}.json"
    if reuse and record.exists():
        return dict(json.loads(record.read_text()))
    start = time.process_time()
    try:
        model, share = METHODS[method](job)
        facts = {"macs": share, "seconds": time.process_time() - start, "accuracy": accuracy(job.case, model)}
    except Exception as err:  # what a peer raises is its own affair; the table says so
        if method == "prune":
            raise
        facts = {"error": f"{type(err).__name__}: {err}".splitlines()[0][:90]}
    RESULTS.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(facts))
    return facts


def row(case: Case, macs: float, base: float, method: str, runs: list[dict[str, Any]]) -> str:
    """Return a row of the table: points lost, mean and range over the seeds."""
    name = f"| {case.model} | {macs:g} | {method} |"
    wrong = [run["error"] for run in runs if "error" in run]
    if wrong:
        return f"{name} - | - | - | {case.goals[macs]:g} | - | {wrong[0]} |"
    lost = [base - run["accuracy"] for run in runs]
    met = ("yes" if mean(lost) <= case.goals[macs] else "no") if method == "prune" else ""
    return (
        f"{name} {mean(run['macs'] for run in runs):.3f} | {mean(run['accuracy'] for run in runs):.2f} | "
        f"{mean(lost):.2f} ({min(lost):.2f} to {max(lost):.2f}) | {case.goals[macs]:g} | "
        f"{mean(run['seconds'] for run in runs):.0f} | {met} |"
    )


def chosen(words: list[str]) -> Iterator[Case]:
    """Return the cases whose model's name holds one of the words."""
    return (case for case in CASES if not words or any(word in case.model for word in words))


def main() -> None:
    """Print the table, a row at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", nargs="*", default=[], help="models whose name holds one of these")
    parser.add_argument("--seeds", type=int, default=1, help="runs with seeds 0 to N - 1")
    parser.add_argument("--budgets", nargs="*", type=float, help="shares of MACs; default: those with a goal")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="option of `prune`")
    parser.add_argument("--reuse", action="store_true", help="take runs of an earlier call")
    arguments = parser.parse_args()
    logging.getLogger("onnxsim").setLevel(logging.ERROR)
    options = {key: parsed(value) for key, value in (pair.split("=", 1) for pair in arguments.option)}
    print("| model | budget | method | MACs | accuracy | points lost | goal | CPU s | met |\n|" + "---|" * 9)
    for case in chosen(arguments.words):
        base = accuracy(case, load(ZOO / "models" / f"{case.model}.onnx"))
        for macs in case.goals:
            for method in arguments.methods:
                if arguments.budgets and macs not in arguments.budgets:
                    continue
                jobs = [Job(case, macs, seed, options) for seed in range(arguments.seeds)]
                runs = [measured(job, method, reuse=arguments.reuse) for job in jobs]
                print(row(case, macs, base, method, runs), flush=True)


def parsed(text: str) -> Any:
    """Read an option's value."""
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    main()
