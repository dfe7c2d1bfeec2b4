"""The vendor's compiler reports problems by node name, so every node gets one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxedge.api import Context, Pass, Result


@dataclass(frozen=True, kw_only=True)
class AcmeNameNodes(Pass):
    """Name the nodes of the main graph in order.

    Before: nodes with names as the exporter gave them, or none
    After:  ``acme_0``, ``acme_1``...

    Left alone: subgraphs and local functions.
    Exact: names carry no meaning in ONNX. Source: our own.
    """

    name: ClassVar[str] = "acme-name-nodes"
    prefix: str = "acme_"  #: what each name begins with

    def run(self, model: ir.Model, context: Context) -> Result:
        """Rename, and count only what changed."""
        rewrites = 0
        for number, node in enumerate(model.graph):
            name = f"{self.prefix}{number}"
            rewrites += node.name != name
            node.name = name
        return Result(rewrites=rewrites, summary=f"{rewrites} nodes named")
