"""Set weights of real models to zero and print what it costs and saves: accuracy, SQNR, bytes once compressed, time.

    OPENBLAS_NUM_THREADS=1 python benchmarks/sparsify.py     # all models
    python benchmarks/sparsify.py resnet20 kwt1              # models whose name holds a word

The models lie in $ONNXEDGE_ZOO (default ../shared/zoo). Test files are used for measuring only; calibration takes 256
samples of another file, without their labels. ``magnitude`` is the common way: the smallest weights go, nothing is
mended; ``refitted`` mends what magnitude leaves; ``obs`` is the pass as it is. Bytes are those of the weights that were
made sparse, as a share of what they take dense: deflated, and packed as values and positions.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np

import onnxedge
from onnxedge.comparison import compare

ZOO = Path(os.environ.get("ONNXEDGE_ZOO", Path(__file__).resolve().parents[2] / "shared" / "zoo"))
IMAGENET = "scale=1/255,mean=0.485:0.456:0.406,std=0.229:0.224:0.225,layout=NCHW"
MODELS = {
    "cifar10_resnet20_bn": ("cifar10_train", "cifar10_test", IMAGENET),
    "cifar10_resnet56_bn": ("cifar10_train", "cifar10_test", IMAGENET),
    "kwt1_speech12": ("speech_commands_calib", "speech_commands_test", "scale=1/32768"),
}
WAYS = {"magnitude": "method=magnitude,repair=none", "refitted": "method=magnitude", "obs": "method=obs"}
HOW_MUCH = ("ratio=0.5", "ratio=0.7", "pattern=2:4")
TIMED = ("obs", "pattern=2:4")


def first_rows(name: str, count: int, folder: Path, *, labels: bool) -> Path:
    """Write the first samples of a data file."""
    file = folder / f"{name}.npz"
    with np.load(ZOO / "data" / f"{name}.npz") as data:
        np.savez(file, **{key: data[key][:count] for key in ("x", "y") if key == "x" or labels})
    return file


def row(model: str, way: str, how_much: str, passes: str, folder: Path, calib: Path, test: Path) -> str:
    """Run a pipeline on a model and return a row of the table."""
    start, source = time.process_time(), ZOO / "models" / f"{model}.onnx"
    preprocess = MODELS[model][2]
    made = onnxedge.optimize(
        source, passes, output=folder / "out.onnx", calib=calib, preprocess=preprocess, measure=False
    )
    seconds = time.process_time() - start
    found = compare(source, folder / "out.onnx", data=test, preprocess=preprocess, latency=(way, how_much) == TIMED)
    fidelity, figures = found.fidelity, made.report.passes[0].figures
    assert fidelity is not None
    assert fidelity.before is not None
    assert fidelity.after is not None
    error = 100 * (fidelity.standard_error or 0.0)
    file = zlib.compress((folder / "out.onnx").read_bytes(), 6)
    whole = source.stat().st_size
    return " | ".join((
        f"| {model}", way, how_much, f"{figures['zeros'] / figures['elements']:.2f}",
        f"{100 * fidelity.before:.2f} -> {100 * fidelity.after:.2f} ± {error:.2f} (n={fidelity.samples})",
        f"{fidelity.sqnr_db:.1f}" if fidelity.sqnr_db is not None else "equal",
        f"{figures['deflated_bytes_before'] / figures['weight_bytes']:.2f} -> "
        f"{figures['deflated_bytes_after'] / figures['weight_bytes']:.2f}",
        f"{figures['packed_bytes'] / figures['weight_bytes']:.2f}", f"{len(file) / whole:.2f}",
        f"{found.speed.ratio:.2f} [{found.speed.low:.2f}, {found.speed.high:.2f}]" if found.speed else "-",
        f"{seconds:.0f} |",
    ))  # fmt: skip


def main() -> None:
    """Print the table, a row at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="run the models whose name holds one of these")
    parser.add_argument("--samples", type=int, default=1017, help="test samples at most")
    arguments = parser.parse_args()
    print(
        "| model | way | how much | zeros | top-1 | SQNR dB | weights deflated | packed | file deflated | "
        "latency ratio, ONNX Runtime CPU | CPU s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model, (calib, test, _) in MODELS.items():
            if arguments.words and not any(word in model for word in arguments.words):
                continue
            files = (
                first_rows(calib, 256, folder, labels=False),
                first_rows(test, arguments.samples, folder, labels=True),
            )
            for how_much in HOW_MUCH:
                for way, options in WAYS.items():
                    print(row(model, way, how_much, f"sparsify({how_much},{options})", folder, *files), flush=True)
            passes = "sparsify(pattern=2:4),int8"
            print(row(model, "obs, then int8", "pattern=2:4", passes, folder, *files), flush=True)


if __name__ == "__main__":
    main()
