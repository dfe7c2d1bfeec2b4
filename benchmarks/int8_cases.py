"""Models that INT8 is measured on, with samples to calibrate and others to measure on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from networks import Export, find
from networks.catalogue import CACHE
from zoo import IMAGENET, ZOO

RESULTS = CACHE / "results" / "int8"
CLIPS_SHIFT = 800  #: samples (50 ms) that a clip is shifted by when there are not enough clips


@dataclass(frozen=True)
class Case:
    """Name a model, its data and how samples become inputs.

    Attributes:
        name: how tables call it.
        source: name of a model of the zoo, or an export.
        calib, test: data files of the zoo, or a seed each for made-up tokens.
        preprocess: what makes inputs of samples.
        test_samples: how many of the test samples are used, None for all.
        labels: whether the test samples' labels are the model's classes.
        transformer: what NNCF wants to know.
        freeze: callers may replace the initializers; the peers freeze them without asking.
        old: the opset has too few integer operators.
        classes: whether the largest output is an answer that two models can agree on.
    """

    name: str
    source: str | Export
    calib: str | int
    test: str | int
    preprocess: str | None = None
    test_samples: int | None = None
    labels: bool = False
    transformer: bool = False
    freeze: bool = False
    classes: bool = True
    old: bool = False

    @property
    def model(self) -> Path:
        """Return the model's file; an export is made where it is not there."""
        if isinstance(self.source, Export):
            return find(self.source)
        return Path(ZOO / "models" / f"{self.source}.onnx")

    @property
    def passes(self) -> str:
        """Return what comes before ``int8``: peers that refuse an old opset get the model converted, too."""
        return f"{'freeze-initializers,' if self.freeze else ''}{'convert(opset=17),' if self.old else ''}fold,fuse"


_224 = "resize=224," + IMAGENET
CASES = (
    Case("resnet20", "cifar10_resnet20_bn", "cifar10_train", "cifar10_test", IMAGENET, labels=True),
    Case("resnet56", "cifar10_resnet56_bn", "cifar10_train", "cifar10_test", IMAGENET, labels=True),
    Case("resnet8", "mlperftiny_ic_resnet8_cifar10_float", "cifar10_train", "cifar10_test", labels=True),
    Case(
        "kwt1",
        "kwt1_speech12",
        "speech_commands_calib",
        "speech_commands_test",
        "scale=1/32768",
        labels=True,
        transformer=True,
    ),
    Case("mobilenetv2", "imagenet_mobilenetv2_torch_ptq_fp32", "cifar10_train", "cifar10_test", _224, 200),
    Case(
        "ultraface",
        "ultraface_rfb320",
        "cifar10_train",
        "cifar10_test",
        "resize=240x320,scale=1/128,mean=0.9921875,layout=NCHW",
        64,
        freeze=True,
        classes=False,
        old=True,
    ),
    Case(
        "yunet",
        "yunet_n_320",
        "cifar10_train",
        "cifar10_test",
        "color=bgr,resize=320x320,dtype=float32,layout=NCHW",
        64,
        classes=False,
        old=True,
    ),
    Case("resnet50", Export("resnet50-settled", "torchscript", True, False), "cifar10_train", "cifar10_test", _224, 64),
    Case(
        "efficientnet-b0",
        Export("efficientnet-b0", "torchscript", True, False),
        "cifar10_train",
        "cifar10_test",
        _224,
        64,
    ),
    Case(
        "vit-tiny",
        Export("vit-tiny", "torchscript", False, False),
        "cifar10_train",
        "cifar10_test",
        _224,
        64,
        transformer=True,
    ),
    Case("bert-base", Export("bert", "torchscript", False, False), 1, 2, None, 32, transformer=True, classes=False),
)


def calibration_file(case: Case, samples: int) -> Path:
    """Return a file of so many samples without labels, drawn by a fixed seed; clips are used again, shifted."""
    if isinstance(case.calib, int):
        return _saved(f"tokens-{case.calib}-{samples}", lambda: tokens(case.calib, samples))

    def drawn() -> Mapping[str, Any]:
        with np.load(ZOO / "data" / f"{case.calib}.npz") as data:
            x = data["x"]
        order = np.random.default_rng(0).permutation(len(x))
        rounds = [
            x[order] if turn == 0 else np.roll(x[order], turn * CLIPS_SHIFT, -1)
            for turn in range(-(-samples // len(x)))
        ]
        return {"x": np.concatenate(rounds)[:samples]}

    return _saved(f"{case.calib}-{samples}", drawn)


def test_file(case: Case) -> Path:
    """Return the file of test samples, with labels where it has them."""
    if isinstance(case.test, int):
        return _saved(f"tokens-{case.test}-{case.test_samples}", lambda: tokens(case.test, case.test_samples or 32))
    return Path(ZOO / "data" / f"{case.test}.npz")


def tokens(seed: Any, count: int) -> dict[str, Any]:
    """Return made-up sentences for BERT, int64 [count, 128]: common words more often, padded, in two segments."""
    rng = np.random.default_rng(seed)
    length = rng.integers(32, 129, (count, 1))
    places = np.arange(128)[None]
    ids = (30000 ** rng.random((count, 128))).astype(np.int64)
    mask = (places < length).astype(np.int64)
    kinds = ((places >= length // 2) & (places < length)).astype(np.int64)
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": kinds}


def _saved(name: str, make: Callable[[], Mapping[str, Any]]) -> Path:
    path = RESULTS / "data" / f"{name}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **make())
        partial.rename(path)
    return path
