"""What several tests share: a runner of the command line, a report with known figures, the models of the zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from onnxedge.cli import main
from onnxedge.passes import Note
from onnxedge.report.records import Fidelity, Measure, PassRecord, Report, Speed

#: Files of the zoo's models, without ``.onnx``.
ZOO_MODELS = (
    "cifar10_resnet20_bn",
    "cifar10_resnet56_bn",
    "imagenet_mobilenetv2_torch_ptq_fp32",
    "kwt1_speech12",
    "mlperftiny_ad_autoencoder_float",
    "mlperftiny_ic_resnet8_cifar10_float",
    "mlperftiny_kws_dscnn_float",
    "mlperftiny_vww_mobilenetv1_025_96_float",
    "mnist_cntk",
    "silero_vad_16k_op15",
    "ultraface_rfb320",
    "yunet_n_320",
)


def run(*arguments: str | Path, **options: Any) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], **options)


def a_report(notes: tuple[Note, ...] = (), labelled: bool = False) -> Report:
    before, after = Measure(45, 70_200, 288_400, 289_414, 4_100_000), Measure(22, 50_210, 40_000, 46_000, 2_000_000)
    if labelled:
        fidelity = Fidelity(597, "d/eval.npz", True, "top1", 0.9742, 0.9731, 0.002, 0.991, 31.2, 0.31)
    else:
        fidelity = Fidelity(24, "synthetic", False, agreement=0.958, sqnr_db=28.3, max_abs_diff=0.4)
    passes = (
        PassRecord(
            "prune(macs=0.5)",
            "lossy",
            "applied",
            "",
            12,
            "widths 64 -> 48",
            {},
            3.2,
            after,
            "numeric",
            0.3,
            30.2,
            fidelity,
        ),
        PassRecord("simplify", "exact", "rolled back", "output 'y' is not bit-equal", 0, "", {}, 1.1, before),
        PassRecord("fold", "exact", "applied", "", 1, "", {}, 0.1, after, "numeric", 0.0, None),
        PassRecord("fuse", "rounding", "no change", "", 0, "", {}, 0.1, after),
    )
    return Report(
        input="net/digits.onnx",
        output="net/digits.optimized.onnx",
        pipeline="prune,fuse",
        target="ort-cpu",
        seed=0,
        threads=1,
        calibration="synthetic",
        evaluation="synthetic",
        preprocess="",
        versions={},
        before=before,
        after=after,
        passes=passes,
        kept=2,
        verdict="16% of the bytes, 0.50 of the latency",
        fidelity=fidelity,
        speed=Speed(0.5, 0.48, 0.53, 0.51, before_ms=0.182, after_ms=0.091, rounds=60, threads=1),
        unmeasured=("accuracy: no labelled data (--eval)",),
        notes=notes,
        seconds=12.3,
    )
