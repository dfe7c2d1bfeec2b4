"""Train through rounding, and train derived students, and print what accuracy is left on the test file.

    python benchmarks/qat.py                                # resnet20, weights in 4 bits, some minutes
    python benchmarks/qat.py --models resnet8 --bits 4 8 --epochs 10 --images 5085 --seeds 3
    python benchmarks/qat.py --option lr=3e-4 --option augment=[flip,crop:4]
    python benchmarks/qat.py --student --epochs 60 --images 5085  # derive(width=0.5,init=random), distilled or not

Post-training rows need no labels: `nearest` rounds each channel with the scale of least squared error, `covariance`
rounds so that errors cancel in each layer's outputs on 128 samples, which is what `qat` begins with. All rows of one
number of bits round the same tensors to the same kinds of grids. With 8 bits activations are rounded, too, and the last
row is what `int8` makes of the trained weights. Training and choosing take the training file, the test file is measured
on once. The models lie in $ONNXEDGE_ZOO (default ../shared/zoo).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
import onnx_ir as ir
from onnxedge_passes.cleanup.fold import Fold
from onnxedge_passes.fuse.linear.fold_batchnorm import FoldBatchnorm
from onnxedge_passes.quantize.names import name_values
from onnxedge_passes.train.qat import Rounding
from onnxedge_passes.train.qat_grids import Grids, eight_bit_grids, four_bit_grids
from zoo import IMAGENET, ZOO

import onnxedge
from onnxedge.api import Context, Data, Session, forked, infer_shapes, load, open_data, refresh_scopes
from onnxedge.registry import find_target

MODELS = {
    "resnet20": ("cifar10_resnet20_bn", IMAGENET),
    "resnet56": ("cifar10_resnet56_bn", IMAGENET),
    "resnet8": ("mlperftiny_ic_resnet8_cifar10_float", ""),
}


@dataclass(frozen=True)
class Row:
    """One line of the table: a model made in some way, its top-1 on the test file by seed, and what it took."""

    model: str
    way: str
    top1: tuple[float, ...]
    count: int
    wall_s: float = 0.0

    def text(self) -> str:
        """Return the line."""
        spread = f" ({min(self.top1):.4f} to {max(self.top1):.4f})" if len(self.top1) > 1 else ""
        took = f"{self.wall_s:.0f} s" if self.wall_s else ""
        return f"| {self.model} | {self.way} | {mean(self.top1):.4f}{spread} | {self.count} | {took} |"


def top1(model: ir.Model, data: Data) -> tuple[float, int]:
    """Return the share of right answers, and the number of samples."""
    session = Session(model)
    right = total = 0
    for batch in data.batches(32):
        (scores,) = session.run(batch.feed).values()
        assert batch.labels is not None
        right += int((scores.argmax(-1)[: batch.count] == batch.labels[: batch.count]).sum())
        total += batch.count
    return right / total, total


def training_file(folder: Path, images: int, seed: int) -> Path:
    """Write some images of the training file, drawn by the seed."""
    with np.load(ZOO / "data" / "cifar10_train.npz") as held:
        x, y = held["x"], held["y"]
    order = np.random.default_rng(seed).permutation(len(x))[:images]
    file = folder / f"train.{seed}.npz"
    np.savez(file, x=x[order], y=y[order])
    return file


def opened(model: ir.Model, file: Path, preprocess: str) -> Data:
    """Return samples as a model takes them."""
    from onnxedge.data import Preprocess

    session = Session(model)
    return open_data(file, session.inputs, Preprocess.parse(preprocess) if preprocess else None)


def post_training(model: ir.Model, calib: Data, bits: int) -> Iterator[tuple[str, ir.Model]]:
    """Yield the model with the tensors rounded that `qat` rounds, with activations where that has them."""
    context = Context(find_target("ort-cpu"), calib, original=model)
    context.begin("qat")
    refresh_scopes(model)
    infer_shapes(model)
    Fold().run(model, context)
    FoldBatchnorm().run(model, context)
    name_values(model)
    infer_shapes(model)
    if bits == 8:
        grids = eight_bit_grids(model, context, 256)
    else:
        grids = four_bit_grids(model, context, block=64, least=1024, samples=256)
    unseen = Grids(tuple(replace(found, start=None) for found in grids.weights), grids.activations)
    for way, some in (("nearest", unseen), ("covariance", grids))[: 1 if bits == 8 else 2]:
        copy, _ = forked(model)
        Rounding(model, some, context, learned=False).put(copy, {})
        yield way, copy


def quantized(args: argparse.Namespace, word: str) -> Iterator[Row]:
    """Yield the rows of training through rounding."""
    name, preprocess = MODELS[word]
    path = ZOO / "models" / f"{name}.onnx"
    test = opened(load(path), ZOO / "data" / "cifar10_test.npz", preprocess)
    score, count = top1(load(path), test)
    yield Row(word, "float", (score,), count)
    options = "".join(f",{option}" for option in args.option)
    for bits in args.bits:
        rows: dict[str, list[float]] = {}
        seconds = 0.0
        for seed in range(args.seeds):
            with tempfile.TemporaryDirectory() as folder:
                file = training_file(Path(folder), args.images, seed)
                calib = opened(load(path), file, preprocess).slice(0, 256)
                for way, model in post_training(load(path), calib, bits):
                    rows.setdefault(f"{bits} bits, {way}", []).append(top1(model, test)[0])
                start = time.perf_counter()
                pipeline = f"fold,qat(bits={bits},epochs={args.epochs},select=held-out{options})"
                for last in ("", ",int8(mode=static,timing=false)")[: 2 if bits == 8 else 1]:
                    done = train(path, pipeline + last, file, preprocess, seed)
                    rows.setdefault(f"{bits} bits, qat{last.split('(')[0]}", []).append(top1(done.model, test)[0])
                    seconds = seconds or time.perf_counter() - start
        for way, scores in rows.items():
            yield Row(word, way, tuple(scores), count, seconds if way.endswith("qat") else 0.0)


def train(path: Path, pipeline: str, file: Path, preprocess: str, seed: int) -> onnxedge.Optimized:
    """Run a pipeline; what passes say goes to the report that is printed."""
    done = onnxedge.optimize(
        path, pipeline, calib=file, train=file, preprocess=preprocess or None, measure=False, seed=seed
    )
    for record in done.report.passes:
        print(f"  {record.text}: {record.status}, {record.summary} {record.reason}", flush=True)
        if record.status == "rolled back":
            raise RuntimeError(f"{record.text}: {record.reason}")
    return done


def students(args: argparse.Namespace, word: str) -> Iterator[Row]:
    """Yield the rows of a derived student, by the teacher and by labels alone."""
    name, preprocess = MODELS[word]
    path = ZOO / "models" / f"{name}.onnx"
    test = opened(load(path), ZOO / "data" / "cifar10_test.npz", preprocess)
    score, count = top1(load(path), test)
    yield Row(word, "teacher", (score,), count)
    options = "".join(f",{option}" for option in args.option)
    rows: dict[str, list[float]] = {}
    seconds: dict[str, float] = {}
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            file = training_file(Path(folder), args.images, seed)
            for init in args.init:
                for way in ("distill", "finetune"):
                    start = time.perf_counter()
                    derive = f"derive(width={args.width},depth={args.depth},init={init},seed={seed})"
                    pipeline = f"{derive},{way}(epochs={args.epochs},select=held-out,patience=0{options})"
                    done = train(path, pipeline, file, preprocess, seed)
                    key = f"width {args.width:g}, depth {args.depth:g}, {init}, {way}"
                    rows.setdefault(key, []).append(top1(done.model, test)[0])
                    seconds[key] = time.perf_counter() - start
    for key, scores in rows.items():
        yield Row(word, key, tuple(scores), count, seconds[key])


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["resnet20"])
    parser.add_argument("--bits", nargs="+", type=int, choices=(4, 8), default=[4])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--images", type=int, default=1500, help="of the training file, of 5085")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--option", action="append", default=[], help="of the training passes")
    parser.add_argument("--student", action="store_true", help="derive students and train them instead")
    parser.add_argument("--init", nargs="+", choices=("random", "teacher"), default=["random"])
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--depth", type=float, default=1.0)
    args = parser.parse_args(argv)
    os.environ.setdefault("ONNXEDGE_CACHE", str(Path.home() / ".cache" / "onnxedge"))
    rows = [row for word in args.models for row in (students if args.student else quantized)(args, word)]
    print(f"\n{args.epochs} epochs of {args.images} images, {args.seeds} seeds\n")
    print("| model | way | top-1 | samples | wall |\n|---|---|---|---|---|")
    for row in rows:
        print(row.text())


if __name__ == "__main__":
    main()
