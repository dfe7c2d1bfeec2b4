"""Fails on import, as a plugin built against another version would."""

from onnxedge.api import PassBaseThatNeverWas  # type: ignore[attr-defined]  # noqa: F401
