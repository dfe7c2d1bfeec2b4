"""onnxedge: passes over ONNX graphs that make models small and fast, and prove it on each run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxedge.comparison import compare
    from onnxedge.driver import Optimized, optimize
    from onnxedge.report.records import Report

__version__ = "0.1.0"
__all__ = ["Optimized", "Report", "__version__", "compare", "optimize"]

_LAZY = {
    "optimize": "onnxedge.driver",
    "compare": "onnxedge.comparison",
    "Optimized": "onnxedge.driver",
    "Report": "onnxedge.report.records",
}


def __getattr__(name: str) -> Any:
    """Import the API on first use, so that ``onnxedge --help`` answers at once."""
    if name not in _LAZY:
        raise AttributeError(f"module 'onnxedge' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
