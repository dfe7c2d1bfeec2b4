"""Run the main job on real models and print what came out: size, MACs, latency ratio, accuracy.

    python benchmarks/zoo.py                       # all models, all pipelines
    python benchmarks/zoo.py kwt1 resnet56         # models whose name holds a word
    python benchmarks/zoo.py --passes fuse,int8    # one pipeline

The models lie in $ONNXEDGE_ZOO (default ../shared/zoo). Test files are used for measuring only; calibration takes 256
samples of the training file. Latency is the median ratio of interleaved runs in ONNX Runtime, one thread.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import onnxedge

ZOO = Path(os.environ.get("ONNXEDGE_ZOO", Path(__file__).resolve().parents[2] / "shared" / "zoo"))
PIPELINES = ("fuse,int8", "prune,fuse,int8", "prune(macs=0.7),fuse,int8", "prune(macs=0.5),fuse,int8")
IMAGENET = "scale=1/255,mean=0.485:0.456:0.406,std=0.229:0.224:0.225,layout=NCHW"


@dataclass(frozen=True)
class Case:
    """Name a model, its data and how samples become inputs."""

    model: str
    calib: str | None = None
    eval: str | None = None
    preprocess: str | None = None
    eval_samples: int | None = None
    labels: bool = True


CASES = (
    Case("cifar10_resnet20_bn", "cifar10_train", "cifar10_test", IMAGENET),
    Case("cifar10_resnet56_bn", "cifar10_train", "cifar10_test", IMAGENET),
    Case("mlperftiny_ic_resnet8_cifar10_float", "cifar10_train", "cifar10_test"),
    Case("kwt1_speech12", "speech_commands_calib", "speech_commands_test", "scale=1/32768"),
    Case(
        "imagenet_mobilenetv2_torch_ptq_fp32",
        "cifar10_train",
        "cifar10_test",
        "resize=224," + IMAGENET,
        200,
        labels=False,
    ),
    Case("mlperftiny_kws_dscnn_float"),
    Case("mlperftiny_vww_mobilenetv1_025_96_float"),
    Case("mlperftiny_ad_autoencoder_float"),
    Case("ultraface_rfb320"),
    Case("yunet_n_320"),
    Case("silero_vad_16k_op15"),
    Case("mnist_cntk"),
)


def subset(name: str, count: int | None, folder: Path, *, labels: bool) -> Path:
    """Write the first samples of a data file, so that every run sees the same ones."""
    file = folder / f"{name}-{count}-{labels}.npz"
    if not file.exists():
        with np.load(ZOO / "data" / f"{name}.npz") as data:
            arrays = {key: data[key][:count] for key in ("x", "y") if key == "x" or labels}
        np.savez(file, **arrays)
    return file


def run(case: Case, pipeline: str, folder: Path, seed: int) -> str:
    """Run one pipeline on one model and return a row of the table."""
    start = time.perf_counter()
    result = onnxedge.optimize(
        ZOO / "models" / f"{case.model}.onnx",
        pipeline,
        output=folder / "out.onnx",
        calib=subset(case.calib, 256, folder, labels=False) if case.calib else None,
        eval=subset(case.eval, case.eval_samples, folder, labels=case.labels) if case.eval else None,
        preprocess=case.preprocess,
        seed=seed,
    )
    report = result.report
    speed, fidelity = report.speed, report.fidelity
    ratio = f"{speed.ratio:.2f} [{speed.low:.2f}, {speed.high:.2f}]" if speed else "-"
    answers = "-"
    if fidelity is not None and fidelity.before is not None and fidelity.after is not None:
        drop = 100 * (fidelity.before - fidelity.after)
        answers = f"{100 * fidelity.before:.2f} -> {100 * fidelity.after:.2f} ({drop:+.2f} lost, n={fidelity.samples})"
    elif fidelity is not None:
        agreement = f"{fidelity.agreement:.3f}" if fidelity.agreement is not None else "-"
        sqnr = "equal" if fidelity.sqnr_db is None else f"{fidelity.sqnr_db:.1f} dB"
        where = "synthetic" if fidelity.data == "synthetic" else "real"
        answers = f"agreement {agreement}, SQNR {sqnr} (n={fidelity.samples}, {where})"
    macs = f"{report.after.macs / report.before.macs:.2f}" if report.before.macs and report.after.macs else "-"
    back = ",".join(record.text.split("(")[0] for record in report.passes if record.status == "rolled back")
    size = report.after.file_bytes / report.before.file_bytes
    return (
        f"| {case.model[:24]} | {pipeline} | {size:.3f} | {macs} | {ratio} | {answers} | "
        f"{time.perf_counter() - start:.0f} | {back or '-'} |"
    )


def main() -> None:
    """Print the table, a row at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="run the models whose name holds one of these")
    parser.add_argument("--passes", action="append", help="pipelines to run; may be given more than once")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print("| model | passes | size | MACs | latency ratio | accuracy | s | taken back |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if arguments.words and not any(word in case.model for word in arguments.words):
                continue
            for pipeline in arguments.passes or PIPELINES:
                print(run(case, pipeline, Path(folder), arguments.seed), flush=True)
    print(f"\npeak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
