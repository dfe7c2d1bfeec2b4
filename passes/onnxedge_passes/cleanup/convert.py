"""Another opset or IR version, for runtimes that read no newer one and for operators that need one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import onnx
from onnx_ir import Model, Node

from onnxedge.api import Accuracy, Context, Pass, Result, Target, UserError, node_label, opset, refresh_scopes, scope_of
from onnxedge_passes.cleanup.control.splice import Splicer, inline_within
from onnxedge_passes.cleanup.versions import Inconvertible, Step, convert_node
from onnxedge_passes.cleanup.worklist import graph_opset, root_graphs

#: Least IR version for what a model may hold, as in onnx.proto's history.
_FUNCTIONS, _OVERLOADS, _FREE_INITIALIZERS = 8, 10, 4
_DTYPES = {
    "FLOAT8E4M3FN": 9, "FLOAT8E4M3FNUZ": 9, "FLOAT8E5M2": 9, "FLOAT8E5M2FNUZ": 9, "INT4": 10, "UINT4": 10,
    "FLOAT4E2M1": 11, "FLOAT8E8M0": 12, "INT2": 13, "UINT2": 13,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Convert(Pass):
    """Write the model for another opset of the default domain, or another IR version.

    Before: ``y = Squeeze<axes=[1]>(x)`` at opset 11
    After:  ``y = Squeeze(x, [1])`` at opset 13, for ``convert(opset=13)``

    Node by node: each whose operator has changed in between is converted alone, by onnx's own version converter or
    onnxscript's, and put in place; all others, weights, names and metadata stay. Subgraphs and local functions too.
    With no options: down to what the target reads, where it reads less.
    A node that cannot be converted ends the run with its reason; with no options the model then stays as it is.
    accuracy: rounding. Source: ``onnx.version_converter``, ``onnxscript.version_converter``.
    """

    name: ClassVar[str] = "convert"
    accuracy: ClassVar[Accuracy] = "rounding"
    sets_form: ClassVar[bool] = True
    opset: int = 0  #: opset to write; 0 for the model's own, or the newest that the target reads if that is less
    ir: int = 0  #: IR version to write; 0 for the model's own, raised to what the opset needs

    def requires(self, model: Model, context: Context) -> None:
        """Refuse versions that do not exist, that the target does not read, or that do not go together.

        Raises:
            UserError: with the reason.
        """
        target, newest = context.target, onnx.defs.onnx_opset_version()
        if self.opset and not 1 <= self.opset <= newest:
            raise UserError(f"convert: opset {self.opset} is not known; onnx {onnx.__version__} writes 1..{newest}")
        if self.ir and not 3 <= self.ir <= onnx.IR_VERSION:
            known = f"onnx {onnx.__version__} writes 3..{onnx.IR_VERSION}"
            raise UserError(f"convert: IR version {self.ir} is not known; {known}")
        if self.opset > target.opset_max:
            raise UserError(f"convert: target {target.name} reads opsets up to {target.opset_max}, not {self.opset}")
        if self.ir > target.ir_max:
            raise UserError(f"convert: target {target.name} reads IR versions up to {target.ir_max}, not {self.ir}")
        least = _least_ir(model, self._opset(model, target))
        if self.ir and self.ir < least:
            raise UserError(f"convert: IR version {self.ir} is too old for the model, which needs {least}")

    def run(self, model: Model, context: Context) -> Result:
        """Convert a copy, and take it over when all of it is done."""
        old, new = opset(model), self._opset(model, context.target)
        copy, count = model, 0
        if new != old:
            copy = model.clone()
            refresh_scopes(copy)
            try:
                count = _convert(copy, new)
            except UserError as err:
                if self.opset:
                    raise
                context.note(None, f"not converted: {err}")
                return Result()
        version = self._ir_version(copy, context.target)
        if version > context.target.ir_max:
            context.note(None, f"needs IR version {version}, the target reads up to {context.target.ir_max}")
        if new == old and version == model.ir_version:
            return Result()
        model.ir_version = version
        if copy is not model:
            model.graph = copy.graph
            model.functions.clear()
            model.functions.update(copy.functions)
            refresh_scopes(model)
        return Result(rewrites=max(count, 1), summary=f"opset {old} -> {new}, IR {version}, {count} nodes converted")

    def _opset(self, model: Model, target: Target) -> int:
        have = opset(model)
        return self.opset or min(have, target.opset_max) if have else 0

    def _ir_version(self, model: Model, target: Target) -> int:
        least = _least_ir(model, opset(model))
        return self.ir or max(least, min(model.ir_version, target.ir_max))


def _least_ir(model: Model, version: int) -> int:
    """Return the oldest IR version that can hold a model at an opset."""
    needs = [3]
    if version:
        needs.append(onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", version)], ignore_unknown=True))
    if any(not value.is_graph_input() for graph in model.graphs() for value in graph.initializers.values()):
        needs.append(_FREE_INITIALIZERS)
    if model.functions:
        needs.append(_OVERLOADS if any(key[2] for key in model.functions) else _FUNCTIONS)
    tensors = (value for graph in model.graphs() for value in graph.initializers.values())
    values = (value for graph in model.graphs() for node in graph for value in node.outputs)
    needs += [_DTYPES.get(value.dtype.name, 3) for some in (tensors, values) for value in some if value.dtype]
    return max(needs)


def _convert(model: Model, new: int) -> int:
    """Convert every node, and the imports; return how many nodes have another form now.

    Raises:
        UserError: a node cannot be converted.
    """
    count = 0
    for root in root_graphs(model):
        imports, old = scope_of(root).opset_imports, graph_opset(root)
        if old in (0, new):
            continue
        count += inline_within(root, partial(_converted, step=Step(old, new)))
        imports.pop("ai.onnx", None)
        imports[""] = new
    return count


def _converted(node: Node, splicer: Splicer, *, step: Step) -> list[Node] | None:
    try:
        moved = convert_node(node, step, splicer)
    except Inconvertible as err:
        raise UserError(f"convert: {node_label(node)} cannot be written in opset {step.new}: {err}") from err
    return [] if moved is not None else None  # what was made is of the new opset already
