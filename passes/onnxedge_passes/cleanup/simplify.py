"""onnxsim, tamed: on a copy, with a way out when it raises, checked by running it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir

from onnxedge.api import (
    Array,
    CannotRun,
    Context,
    Feed,
    InputSpec,
    Pass,
    Result,
    Session,
    UserError,
    first_line,
    graphs_of,
    refresh_scopes,
    to_proto,
    weight_bytes,
)

_LIMIT_BYTES = 1 << 30
_DYNAMIC_SIZE = 2  #: what an unknown dimension is when the result is checked
_LADDER: tuple[dict[str, bool], ...] = ({}, {"perform_optimization": False}, {"skip_constant_folding": True})


@dataclass(frozen=True, kw_only=True)
class Simplify(Pass):
    """Run onnxsim on a copy of the model and keep the result if it computes the same.

    Before: any model of less than 1 GiB
    After:  what ``onnxsim.simplify`` makes of it: constants folded, shapes inferred, onnxoptimizer's clean-ups

    Where onnxsim raises (it does on some ``If`` graphs) it is asked for less: without its optimizer, then without its
    constant folding. The inputs and outputs stay.
    Left alone: models that do not run here, that it cannot read, or whose results differ by more than ``tolerance``.
    accuracy: rounding. Source: https://github.com/onnxsim/onnxsim
    """

    name: ClassVar[str] = "simplify"
    accuracy: ClassVar = "rounding"
    tolerance: float = 1e-4  #: largest difference that is accepted, relative to the largest element of an output

    def run(self, model: ir.Model, context: Context) -> Result:
        """Try the ladder; the first result that holds is taken over."""
        if weight_bytes(model) > _LIMIT_BYTES:
            context.note(None, "not simplified: onnxsim needs 2.2 times the model in memory; this one is over 1 GiB")
            return Result()
        import onnxsim

        before = to_proto(model)
        refusal = ""
        for options in _LADDER:
            try:
                after, _ = onnxsim.simplify(before, check_n=0, **options)
            except Exception as err:  # its C++ raises whatever it met
                refusal = f"onnxsim fails: {first_line(err, 120)}"
                continue
            refusal = self._difference(before, after, context)
            if not refusal:
                return _take_over(model, after)
        context.note(None, f"not simplified: {refusal}")
        return Result()

    def _difference(self, before: onnx.ModelProto, after: onnx.ModelProto, context: Context) -> str:
        """Return why the result is not as good as the model, or nothing."""
        if _interface(before) != _interface(after):
            return "onnxsim changed inputs or outputs"
        try:
            first, second = (Session(proto, threads=context.threads, level="disable") for proto in (before, after))
            feed = _feed(first, context)
            mine, other = first.run(feed), second.run(feed)
        except CannotRun as err:
            return f"the result cannot be checked: {first_line(err, 120)}"
        for name, array in mine.items():
            if not _is_close(array, other[name], self.tolerance):
                return f"output {name!r} is another one after onnxsim"
        return ""


def _interface(proto: onnx.ModelProto) -> list[tuple[str, int]]:
    return [(v.name, v.type.tensor_type.elem_type) for v in (*proto.graph.input, *proto.graph.output)]


def _feed(session: Session, context: Context) -> Feed:
    """Return one calibration sample, a random one where the context has none."""
    try:
        return next(iter(context.calibration.feeds(size=1, limit=1)))
    except UserError:
        return {spec.name: _sample(spec, context.rng()) for spec in session.inputs}


def _sample(spec: InputSpec, rng: np.random.Generator) -> Array:
    shape = [d if isinstance(d, int) and d >= 0 else (1 if i == 0 else _DYNAMIC_SIZE) for i, d in enumerate(spec.shape)]
    if spec.dtype.startswith("float"):
        return rng.standard_normal(shape).astype(spec.dtype)
    if spec.dtype == "object":
        return np.full(shape, "a", object)
    return rng.integers(0, 2, shape).astype(spec.dtype)


def _is_close(mine: Array, other: Array, tolerance: float) -> bool:
    if not isinstance(mine, np.ndarray) or mine.shape != other.shape or mine.dtype != other.dtype:
        return False
    if mine.dtype.kind != "f":
        return bool(np.array_equal(mine, other))
    scale = float(np.abs(mine[np.isfinite(mine)]).max(initial=0.0))
    return bool(np.allclose(mine, other, rtol=0.0, atol=tolerance * scale + 1e-12, equal_nan=True))


def _take_over(model: ir.Model, proto: onnx.ModelProto) -> Result:
    """Put the graph of ``proto`` into ``model``; what names and describes the model stays."""
    new = ir.serde.deserialize_model(proto)
    old_count, new_count = (sum(len(graph) for graph in graphs_of(m)) for m in (model, new))
    if old_count == new_count and _operators(model) == _operators(new):
        return Result()
    for value, twin in zip(model.graph.outputs, new.graph.outputs, strict=True):
        twin.metadata_props.update(value.metadata_props)
    new.graph.metadata_props.update(model.graph.metadata_props)
    new.graph.doc_string = model.graph.doc_string
    model.graph = new.graph
    model.functions.clear()
    model.functions.update(new.functions)
    refresh_scopes(model)
    return Result(rewrites=max(old_count - new_count, 1))


def _operators(model: ir.Model) -> list[tuple[str, str]]:
    return [node.op_identifier()[:2] for graph in graphs_of(model) for node in graph]
