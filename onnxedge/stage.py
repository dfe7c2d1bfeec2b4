"""The model between two passes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from onnxedge.model.skeleton import Skeleton
from onnxedge.report.records import PassRecord
from onnxedge.verify import Inferred, adopt


@dataclass
class Stage:
    """Hold the model behind a pass, or the one that came in (record None), as a protobuf while nobody asks for it.

    Attributes:
        skeleton: the model.
        inferred: the shapes that were inferred since.
        record: what the pass did.
        note_count: how many notes there were by then.
    """

    skeleton: Skeleton
    inferred: Inferred
    record: PassRecord | None = None
    note_count: int = 0
    live: ir.Model | None = None

    @property
    def model(self) -> ir.Model:
        """Return the model, with shapes inferred; not to be edited."""
        if self.live is None:
            self.live = self.skeleton.revive()
            if self.inferred is not None:
                adopt(self.live.graph, self.inferred)
        return self.live

    def take(self) -> ir.Model:
        """Return the model to be edited; what the stage holds stays what it was."""
        model, self.live = self.model, None
        return model

    def but(self, record: PassRecord | None, **changes: Any) -> Stage:
        """Return a stage with the same model and another record."""
        return replace(self, record=record, live=None, **changes)
