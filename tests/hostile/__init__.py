"""Models that no tool should trust: each is a function that writes one into a folder; made in code, no files kept.

Each must be optimized rightly or refused with one line and exit code 2; see ``trial.py``, ``tests/test_hostile.py`` and
``benchmarks/hostile.py``.
"""

from __future__ import annotations

from hostile import attributes, bombs, bytes_, cycles, external, kernels, lies, sizes, structure, tensors, versions
from hostile.maker import Maker

GROUPS = {
    module.__name__.rpartition(".")[2].rstrip("_"): module.MODELS
    for module in (
        cycles, bombs, lies, versions, attributes, structure, external, tensors, sizes, kernels, bytes_,
    )
}  # fmt: skip

MODELS: dict[str, Maker] = {
    f"{group}: {name}": maker for group, models in GROUPS.items() for name, maker in models.items()
}
HUGE: dict[str, Maker] = {f"huge: {name}": maker for name, maker in sizes.HUGE.items()}
