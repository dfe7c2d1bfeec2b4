"""What is written otherwise before anything is quantized: hidden sizes, old opsets."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch

import onnx_ir as ir

from onnxedge.api import Context, UserError, first_line, forked, infer_shapes, is_standard, opset, place, refresh_scopes
from onnxedge_passes.cleanup.convert import Convert
from onnxedge_passes.cleanup.fold import Fold

from .quantizer import STANDARD_OPSET, dialect_of


def learn_sizes(model: ir.Model, context: Context) -> int:
    """Fold arithmetic on shapes, behind which sizes are not known that the runtime knows; return the rewrites.

    Kernels are chosen by sizes: an Add may be a bias or not.
    """
    if not any(node.op_type == "Shape" and is_standard(node) for node in model.graph):
        return 0
    changes = Fold().run(model, context).rewrites
    infer_shapes(model)
    return changes


def convert_if_more(model: ir.Model, context: Context, skip: Sequence[str]) -> int:
    """Write an old model for the opset of per-channel Q/DQ where more of it runs in integers so; return the rewrites.

    Before opset 10 there are no Q/DQ at all; up to 12 many operators (pooling, Resize) are float beside them.
    """
    rules = context.target.quantization
    if rules is None or not 0 < opset(model) < STANDARD_OPSET <= context.target.opset_max:
        return 0
    convert = Convert(opset=STANDARD_OPSET)
    trial, _ = forked(model)
    refresh_scopes(trial)
    try:
        convert.run(trial, context)
    except UserError as err:
        context.note(None, f"opset {opset(model)} is kept, and with it fewer integer kernels: {first_line(err)}")
        return 0
    infer_shapes(trial)
    before = _kernels(model, context, skip) if dialect_of(model, rules) else 0
    if _kernels(trial, context, skip) <= before:
        return 0
    context.note(
        None, f"written for opset {STANDARD_OPSET}, in which more of it runs in integers than in {opset(model)}"
    )
    changes = convert.run(model, context).rewrites
    infer_shapes(model)
    return changes


def _kernels(model: ir.Model, context: Context, skip: Sequence[str]) -> int:
    asked = (node for node in model.graph if any(fnmatch(node.name or "", pattern) for pattern in skip))
    return len(place(model, context.target, keep_float=dict.fromkeys(asked, "skip")).integer)
