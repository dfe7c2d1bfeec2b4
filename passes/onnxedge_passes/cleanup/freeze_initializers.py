"""Initializers that are graph inputs: defaults that a caller may override, made constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxedge.api import Context, Pass, Result

_FIRST_IR = 4  #: first IR version in which an initializer need not be a graph input


@dataclass(frozen=True, kw_only=True)
class FreezeInitializers(Pass):
    """Make constants of the initializers that the graph lists as inputs too.

    Before: graph inputs ``x, W, b`` with initializers ``W, b``
    After:  graph input ``x``

    IR version 3 demanded the listing, and exporters kept doing it later; nobody feeds weights, but as long as they may
    be fed no pass can fold them, nor does ONNX Runtime. This changes what may be fed, so no other pass does it; but for
    ``fold`` below IR version 4, where ONNX Runtime refuses to be fed them.
    Left alone: initializers that are exported as they are.
    accuracy: exact, for callers who feed only inputs without a default. Source: ``onnx_ir``'s
    ``RemoveInitializersFromInputsPass``.
    """

    name: ClassVar[str] = "freeze-initializers"
    fixes_defaults: ClassVar[bool] = True
    sets_form: ClassVar[bool] = True

    def run(self, model: ir.Model, context: Context) -> Result:
        """Take the initializers out of the inputs."""
        return Result(rewrites=freeze(model))


def are_fixed(model: ir.Model, context: Context) -> bool:
    """Tell whether initializers that are inputs are constants all the same: ONNX Runtime takes no value for them."""
    return model.ir_version < _FIRST_IR and context.target.runtime.startswith("onnxruntime")


def freeze(model: ir.Model) -> int:
    """Take initializers out of the inputs and return how many; a model of IR version 3 becomes one of version 4."""
    defaults = [value for value in model.graph.inputs if value.is_initializer()]
    if not defaults:
        return 0
    required = [value for value in model.graph.inputs if not value.is_initializer()]
    model.graph.inputs.clear()
    model.graph.inputs.extend(required)
    model.ir_version = max(model.ir_version, _FIRST_IR)
    return len(defaults)
