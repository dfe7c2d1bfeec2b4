"""Which networks there are, how they are exported, and what inputs they take."""

from __future__ import annotations

import hashlib
import importlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

CACHE = Path(os.environ.get("ONNXEDGE_BENCH_CACHE", Path.home() / ".cache" / "onnxedge-bench"))
Exporter = Literal["torchscript", "dynamo"]
OPSET: Mapping[Exporter, int] = {"torchscript": 17, "dynamo": 20}
Axes = Mapping[str, Mapping[int, str]]


@dataclass(frozen=True)
class Network:
    """Say how a network is made and fed.

    Attributes:
        make: class or function of ``vision``, ``settled`` or ``language``.
        small: arguments of it for ``--small``.
        inputs: name -> (shape, exclusive upper bound of integers or None for normal floats).
        free: name -> axis -> symbol, for the export with free axes.
    """

    make: str
    small: Mapping[str, Any]
    inputs: Mapping[str, tuple[tuple[int, ...], int | None]]
    free: Axes = field(default_factory=dict)


_IMAGE = {"image": ((1, 3, 224, 224), None)}
_BATCH: Axes = {"image": {0: "batch"}}
_TEXT: Axes = {"input_ids": {0: "batch", 1: "tokens"}}
NETWORKS: Mapping[str, Network] = {
    "resnet50": Network("vision.resnet50", {"depth": 0.3}, _IMAGE, _BATCH),
    "resnet50-settled": Network("settled.resnet50", {"depth": 0.3}, _IMAGE, _BATCH),
    "efficientnet-b0": Network("settled.efficientnet_b0", {"depth": 0.4}, _IMAGE, _BATCH),
    "mobilenetv2": Network("vision.MobileNetV2", {"depth": 0.5}, _IMAGE, _BATCH),
    "unet": Network("vision.UNet", {"width": 8}, {"image": ((1, 3, 128, 128), None)}, _BATCH),
    "convnext": Network("vision.convnext_tiny", {"depth": 0.3}, _IMAGE, _BATCH),
    "yolo": Network(
        "vision.Yolo",
        {},
        {"image": ((1, 3, 320, 320), None)},
        {"image": {0: "batch", 2: "height", 3: "width"}},
    ),
    "vit-tiny": Network("language.ViT", {"layers": 2}, _IMAGE, _BATCH),
    "bert": Network(
        "language.Bert",
        {"layers": 2, "width": 128, "heads": 4, "words": 1000},
        {"input_ids": ((1, 128), 1000), "attention_mask": ((1, 128), 2), "token_type_ids": ((1, 128), 2)},
        {name: {0: "batch", 1: "tokens"} for name in ("input_ids", "attention_mask", "token_type_ids")},
    ),
    "gpt2": Network(
        "language.Gpt2", {"layers": 2, "width": 128, "heads": 4, "words": 1000}, {"input_ids": ((1, 64), 1000)}, _TEXT
    ),
    "llama": Network(
        "language.Llama",
        {"layers": 2, "width": 128, "heads": 4, "groups": 2, "words": 1000},
        {"input_ids": ((1, 64), 1000), "attention_mask": ((1, 64), 2)},
        {name: {0: "batch", 1: "tokens"} for name in ("input_ids", "attention_mask")},
    ),
    "whisper": Network("language.WhisperEncoder", {"layers": 2}, {"mel": ((1, 80, 1000), None)}, {"mel": {0: "batch"}}),
}


@dataclass(frozen=True)
class Export:
    """Name one exported file."""

    network: str
    exporter: Exporter
    free: bool
    small: bool

    @property
    def name(self) -> str:
        """Return how tables call it."""
        return f"{self.network}-{self.exporter}{'-free' if self.free else ''}{'-small' if self.small else ''}"

    @property
    def path(self) -> Path:
        """Return where it lies: the name changes with the definitions, so that no stale file is measured."""
        return CACHE / f"{self.name}-{self._digest()}.onnx"

    def _digest(self) -> str:
        network = NETWORKS[self.network]
        module = Path(__file__).with_name(f"{network.make.partition('.')[0]}.py")
        return hashlib.sha256(module.read_bytes() + repr((network, OPSET)).encode()).hexdigest()[:8]


def exported(small: bool = False) -> Iterator[Export]:
    """Yield all exports, network by network."""
    for network in NETWORKS:
        for exporter in ("torchscript", "dynamo"):
            for free in (False, True):
                yield Export(network, exporter, free, small)


def find(export: Export) -> Path:
    """Return the file of an export, made first where it is not there.

    Raises:
        SystemExit: torch is absent.
    """
    if not export.path.exists():
        export.path.parent.mkdir(parents=True, exist_ok=True)
        partial = export.path.with_suffix(".partial")
        _write(export, partial)
        partial.rename(export.path)
    return export.path


def _write(export: Export, path: Path) -> None:
    try:
        import torch
    except ImportError:
        raise SystemExit("networks: needs torch to make the models: pip install torch onnxscript") from None
    network = NETWORKS[export.network]
    module, _, name = network.make.partition(".")
    torch.manual_seed(0)
    model = getattr(importlib.import_module(f"networks.{module}"), name)(**(network.small if export.small else {}))
    if not getattr(model, "settled", False):
        _train_statistics(model, torch)
    arguments = tuple(
        torch.randn(shape) if bound is None else torch.randint(0, bound, shape)
        for shape, bound in network.inputs.values()
    )
    options: dict[str, Any] = {"input_names": list(network.inputs), "opset_version": OPSET[export.exporter]}
    if export.exporter == "torchscript":
        options |= {"dynamo": False, "dynamic_axes": network.free if export.free else None}
    else:
        options |= {"dynamo": True, "external_data": False, "verbose": False}
        if export.free:
            symbols = {symbol: torch.export.Dim.DYNAMIC for axes in network.free.values() for symbol in axes.values()}
            shapes = [{axis: symbols[s] for axis, s in network.free.get(n, {}).items()} for n in network.inputs]
            options["dynamic_shapes"] = tuple(shapes)
            free = [network.free.get(name, {}) for name in network.inputs]
            arguments = tuple(_batch_of_two(a, axes) for a, axes in zip(arguments, free, strict=True))
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), arguments, str(path), **options)
    logging.disable(logging.NOTSET)


def _train_statistics(model: Any, torch: Any) -> None:
    """Give normalizations weights and statistics that are not ones and zeros, as training would."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.LayerNorm):
            torch.nn.init.normal_(module.weight, 1.0, 0.1)
            torch.nn.init.normal_(module.bias, 0.0, 0.1)
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, 0.0, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)


def _batch_of_two(array: Any, axes: Mapping[int, str]) -> Any:
    """Repeat along the batch: the exporter takes a size of 1 for a fixed one."""
    return array.repeat(2, *[1] * (array.dim() - 1)) if axes.get(0) == "batch" else array
