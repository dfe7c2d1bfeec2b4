"""The channel groups of a model, asked of the pass that prunes; no samples are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxedge.data import synthesise
from onnxedge.errors import UserError
from onnxedge.model.copy import copied
from onnxedge.model.skeleton import Skeleton
from onnxedge.parts import ChannelGroups, ListsGroups
from onnxedge.passes import Context
from onnxedge.registry import find_pass
from onnxedge.runtime import CannotRun, model_inputs
from onnxedge.samples import RUN_MEMORY_BYTES, check_memory, check_size, fixed_inputs
from onnxedge.target import Target
from onnxedge.verify import infer_shapes

_SAMPLES = 2  #: shapes are all that is wanted of a run


def channel_groups(
    model: ir.Model,
    *,
    target: Target,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    pass_name: str = "prune",
    seed: int = 0,
    threads: int = 1,
) -> ChannelGroups:
    """Return what a pass would cut together, found on synthesised inputs; the model is not changed.

    Args:
        model: a loaded model.
        target: whose rules the pass may ask for.
        input_shapes: sizes for free dimensions, by input name.
        pass_name: a pass that lists groups.
        seed, threads: of the synthesised inputs, of ONNX Runtime.

    Raises:
        UserError: no such pass, or one that lists no groups; an input shape that does not fit.
        CannotRun: ONNX Runtime does not run the model, so that its shapes are not known.
    """
    step = find_pass(pass_name)()
    if not isinstance(step, ListsGroups):
        raise UserError(f"pass {pass_name!r} lists no channel groups")
    specs = fixed_inputs(model_inputs(model), input_shapes)
    if not specs:
        raise CannotRun("the model has no inputs")
    original = Skeleton(model)
    check_size(model, RUN_MEMORY_BYTES)
    check_memory(model)
    data = synthesise(model, specs, _SAMPLES, seed, shapes=input_shapes)
    context = Context(target, data, original=original, seed=seed, threads=threads)
    context.begin(step.name)
    scratch = copied(model)
    infer_shapes(scratch)
    return step.channel_groups(scratch, context)
