"""Prune a model, train it in several ways and print what each gives back: accuracy on test data by seed, and the mean.

    OPENBLAS_NUM_THREADS=1 python benchmarks/distill.py --model resnet56 --macs 0.3 --minutes 25 --seeds 3
    python benchmarks/distill.py --model kwt1 --macs 0.5 --ways pruned distill --select last --epochs 60 --minutes 0 \\
        --options lr=1e-4 batch=16 views=60 alpha=1

The models lie in $ONNXEDGE_ZOO (default ../shared/zoo). ``pruned`` is what `prune` leaves; ``finetune`` trains that on
the labels, ``distill`` on the original's answers and the labels. All three start from the same pruned file. Nothing of
the test file is seen before the end: the epoch is chosen by a tenth of the training samples (--select last takes the
last).
Jobs run one after the other; each result is kept in the cache folder, and a job that was stopped goes on, so that the
same command continues where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxedge
from onnxedge.api import cache_folder
from onnxedge.comparison import compare

ZOO = Path(os.environ.get("ONNXEDGE_ZOO", Path(__file__).resolve().parents[2] / "shared" / "zoo"))
IMAGENET = "scale=1/255,mean=0.485:0.456:0.406,std=0.229:0.224:0.225,layout=NCHW"
REPAIR = "least-squares"
WAYS = ("pruned", "finetune", "distill")


@dataclass(frozen=True)
class Case:
    """Name a model, the data that it is trained and tested on, and how that is augmented."""

    file: str
    train: str
    test: str
    preprocess: str
    augment: str


CASES = {
    "resnet20": Case("cifar10_resnet20_bn", "cifar10_train", "cifar10_test", IMAGENET, "flip,crop:4"),
    "resnet56": Case("cifar10_resnet56_bn", "cifar10_train", "cifar10_test", IMAGENET, "flip,crop:4"),
    "kwt1": Case(
        "kwt1_speech12",
        "speech_commands_calib",
        "speech_commands_test",
        "scale=1/32768",
        "shift:0.1,noise:0.3,scale:0.3",
    ),
}


def pruned_model(case: Case, macs: float, repair: str, folder: Path) -> Path:
    """Return the pruned model, made where it is not there."""
    file = folder / f"{case.file}-{macs:g}{'' if repair == REPAIR else f'-{repair}'}.onnx"
    if not file.exists():
        onnxedge.optimize(
            ZOO / "models" / f"{case.file}.onnx",
            f"prune(macs={macs:g},repair={repair})",
            train=ZOO / "data" / f"{case.train}.npz",  # calibrates without the tenth that chooses an epoch later
            preprocess=case.preprocess,
            output=file,
            measure=False,
        )
    return file


def trained(case: Case, way: str, seed: int, arguments: argparse.Namespace, pruned: Path, made: Path) -> dict[str, Any]:
    """Train a pruned model and return what the pass says of it."""
    options = [f"augment=[{case.augment}]"] if case.augment and not arguments.plain else []
    options += [f"select={arguments.select}", f"epochs={arguments.epochs}", f"minutes={arguments.minutes:g}"]
    options += arguments.options
    if way == "distill":
        options.append(f'teacher="{ZOO / "models" / case.file}.onnx"')
    report = onnxedge.optimize(
        pruned,
        f"{way}({','.join(options)})",
        train=ZOO / "data" / f"{case.train}.npz",
        preprocess=case.preprocess,
        output=made,
        seed=seed,
        threads=arguments.threads,
        measure=False,
    ).report
    (record,) = report.passes
    notes = [note.reason for note in report.notes if note.pass_name == way]
    return {"status": record.status, "summary": record.summary, "notes": notes, "figures": record.figures}


def measured(case: Case, made: Path) -> dict[str, float]:
    """Return the accuracy of a model and of the original on test data."""
    original = ZOO / "models" / f"{case.file}.onnx"
    test = ZOO / "data" / f"{case.test}.npz"
    found = compare(original, made, data=test, preprocess=case.preprocess, latency=False)
    fidelity = found.fidelity
    assert fidelity is not None
    assert fidelity.before is not None
    assert fidelity.after is not None
    assert found.before.macs is not None
    assert found.after.macs is not None
    return {
        "teacher": fidelity.before,
        "top1": fidelity.after,
        "error": fidelity.standard_error or 0.0,
        "samples": fidelity.samples,
        "macs": found.after.macs / found.before.macs,
    }


def jobs(arguments: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Yield the ways and seeds, those that are needed first first."""
    for way in arguments.ways:
        for seed in range(1 if way == "pruned" else arguments.seeds):
            yield way, seed


def result(case: Case, way: str, seed: int, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the result of a job, from the cache where it is there."""
    training = (arguments.epochs, arguments.minutes, arguments.select, arguments.plain, arguments.options)
    more = () if arguments.repair == REPAIR else (arguments.repair,)
    decides = (case, way, seed, arguments.macs, arguments.threads, () if way == "pruned" else training, *more)
    file = folder / f"{hashlib.sha256(repr(decides).encode()).hexdigest()[:16]}.json"
    if file.exists():
        return dict(json.loads(file.read_text()))
    start, made = time.monotonic(), folder / f"{file.stem}.onnx"
    pruned = pruned_model(case, arguments.macs, arguments.repair, folder)
    told: dict[str, Any] = {"status": "applied", "figures": {}}
    if way != "pruned":
        told = trained(case, way, seed, arguments, pruned, made)
    found = {"way": way, "seed": seed, **told, **measured(case, pruned if way == "pruned" else made)}
    found["seconds"] = time.monotonic() - start
    file.write_text(json.dumps(found, default=str))
    return found


def row(arguments: argparse.Namespace, found: dict[str, Any]) -> str:
    """Return a line of the table."""
    figures = found["figures"]
    apart = 100 * (found["teacher"] - found["top1"])
    return " | ".join((
        f"| {arguments.model}", f"{found['macs']:.2f}", found["way"], str(found["seed"]),
        str(figures.get("epochs", "-")), f"{found['seconds'] / 60:.1f}",
        f"{100 * found['teacher']:.2f}", f"{100 * found['top1']:.2f}",
        f"{apart:.2f} ± {100 * found['error']:.2f} (n={found['samples']}) |",
    ))  # fmt: skip


def main() -> None:
    """Print the table, a row as soon as it is there, and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=CASES, default="resnet56")
    parser.add_argument("--macs", type=float, default=0.3, help="share of the MACs that is kept")
    parser.add_argument("--repair", choices=[REPAIR, "block"], default=REPAIR, help="how pruning mends what it cuts")
    parser.add_argument("--minutes", type=float, default=25.0, help="for each training; 0 for any")
    parser.add_argument("--epochs", type=int, default=60, help="at most")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--select", choices=["held-out", "last"], default="held-out", help="what chooses the epoch")
    parser.add_argument("--plain", action="store_true", help="train without augmentation")
    parser.add_argument("--options", nargs="*", default=[], metavar="KEY=VALUE", help="more options of the passes")
    arguments = parser.parse_args()
    folder = cache_folder() / "benchmarks" / "distill"
    folder.mkdir(parents=True, exist_ok=True)
    print("| model | MACs | way | seed | epochs | minutes | teacher top-1 | top-1 | points under the teacher |")
    print("|---|---|---|---|---|---|---|---|---|")
    results: dict[str, list[float]] = {}
    for way, seed in jobs(arguments):
        found = result(CASES[arguments.model], way, seed, arguments, folder)
        results.setdefault(way, []).append(100 * (found["teacher"] - found["top1"]))
        print(row(arguments, found), flush=True)
    print()
    for way, points in results.items():
        spread = f" (from {min(points):.2f} to {max(points):.2f})" if len(points) > 1 else ""
        print(f"{way}: {statistics.mean(points):.2f} points under the teacher, mean of {len(points)}{spread}")


if __name__ == "__main__":
    main()
