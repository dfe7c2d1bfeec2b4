"""How a student is trained, whatever the engine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from onnxedge.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Hold what the user chooses about a training run.

    Attributes:
        optimizer: AdamW, or SGD with momentum.
        lr: highest learning rate.
        momentum: of SGD, and the first moment's of AdamW; 0..1.
        weight_decay: share of the learning rate that weights shrink by in a step; not norms and biases.
        warmup: share of all steps in which the rate rises; then it falls as a cosine.
        clip: longest gradient, all parameters together; 0 for any.
        epochs: times that all samples are seen.
        batch: samples in a step of the graph; what is left over in an epoch comes another time.
        accumulate: batches whose gradients make one step of the optimizer.
        seed: of the order of samples.
        threads: of ONNX Runtime.
        minutes: after which training stops where it is; 0 for no limit.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.01
    warmup: float = 0.05
    clip: float = 1.0
    epochs: int = 10
    batch: int = 64
    accumulate: int = 1
    seed: int = 0
    threads: int = 1
    minutes: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is out of range.

        Raises:
            UserError: with the option and its range.
        """
        if self.optimizer not in ("adamw", "sgd"):
            raise UserError(f"training: optimizer={self.optimizer} is neither adamw nor sgd")
        for name, least, most in _RANGES:
            value = getattr(self, name)
            if not least <= value <= most or not math.isfinite(value):
                raise UserError(f"training: {name}={value:g} is not within {least:g}..{most:g}")


_RANGES = (
    ("lr", 0.0, 1e6), ("momentum", 0.0, 0.9999), ("weight_decay", 0.0, 1e6), ("warmup", 0.0, 1.0), ("clip", 0.0, 1e30),
    ("epochs", 1, 1e6), ("batch", 1, 1e6), ("accumulate", 1, 1e4), ("seed", 0, 2**63), ("threads", 1, 4096),
    ("minutes", 0.0, 1e6),
)  # fmt: skip
