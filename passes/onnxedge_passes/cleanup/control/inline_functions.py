"""Calls of the model's own functions: their bodies in place."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_ir as ir

from onnxedge.api import Context, Pass, Result, UserError, graph_of, is_standard, node_label, scope_of, subgraphs
from onnxedge_passes.cleanup.control.splice import Splicer, hand_over, inline_nodes, needs_newer_identity

Key = tuple[str, str, str]  #: domain, name and overload of a function
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


@dataclass(frozen=True, kw_only=True)
class InlineFunctions(Pass):
    """Put the nodes of local functions in the place of the nodes that call them.

    Before: ``y = acme::Twice<k=3>(x)`` with ``Twice(v)<k=2>: c = Constant<value_int=@k>; return Mul(v, c)``
    After:  ``c = Constant<value_int=3>; y = Mul(x, c)``

    On request only: runtimes inline functions themselves, other tools often read none. Calls inside of subgraphs and
    of other functions are inlined too. How many nodes that makes is counted before anything is done.
    Left alone: functions that ``names`` does not name, that call themselves, take graphs as attributes, or are written
    for another opset whose operators mean something else; everything, where it would add more than ``max_added_nodes``.
    accuracy: exact. Source: ONNX IR, "Functions"; own.
    """

    name: ClassVar[str] = "inline-functions"
    sets_form: ClassVar[bool] = True
    names: tuple[str, ...] = ("*",)  #: patterns of names, or of ``domain::name``, of the functions to inline
    max_added_nodes: int = 10_000  #: inline nothing where the model would have more nodes than this on top

    def requires(self, model: ir.Model, context: Context) -> None:
        """Refuse a bound below 0."""
        if self.max_added_nodes < 0:
            raise UserError(f"{self.name}: max_added_nodes={self.max_added_nodes} is no bound; give 0 or more")

    def run(self, model: ir.Model, context: Context) -> Result:
        """Count first, then inline call by call, and drop the functions that nobody calls any more."""
        chosen = {key: function for key, function in model.functions.items() if self._is_named(key)}
        _drop_recursive(model, chosen, context)
        added = _added_nodes(model, chosen)
        if added > self.max_added_nodes:
            many = str(added) if added < 1e9 else "over a billion"
            context.note(None, f"not inlined: it would add {many} nodes, more than max_added_nodes allows")
            return Result()
        count = inline_nodes(model, lambda node, splicer: _inline(node, chosen, splicer, context))
        _drop_uncalled(model, chosen)
        return Result(rewrites=count)

    def _is_named(self, key: Key) -> bool:
        domain, name, _ = key
        spellings = (name, f"{domain}::{name}")
        return any(fnmatch.fnmatchcase(spelling, pattern) for pattern in self.names for spelling in spellings)


def _calls(nodes: ir.Graph | ir.Function, model: ir.Model) -> Iterator[Key]:
    for node in nodes.all_nodes():
        if node.op_identifier() in model.functions:
            yield node.op_identifier()


def _drop_recursive(model: ir.Model, chosen: dict[Key, ir.Function], context: Context) -> None:
    """Take functions that call themselves, directly or not, out of those chosen; ONNX forbids them."""
    callees = {key: set(_calls(function, model)) for key, function in model.functions.items()}
    done: set[Key] = set()
    while True:  # Kahn: what calls only what is done is done
        ready = [key for key in callees if key not in done and callees[key] <= done]
        if not ready:
            break
        done.update(ready)
    for key in [key for key in chosen if key not in done]:
        context.note(f"function {key[0]}::{key[1]}", "not inlined: it calls itself")
        del chosen[key]


def _added_nodes(model: ir.Model, chosen: dict[Key, ir.Function]) -> int:
    """Count the nodes that inlining adds, without doing it: a chain of functions may double at each step."""
    sizes: dict[Key, int] = {}

    def size(key: Key) -> int:
        stack = [key]
        while stack:
            top = stack[-1]
            missing = [callee for callee in _calls(chosen[top], model) if callee in chosen and callee not in sizes]
            if missing:
                stack += dict.fromkeys(missing)
                continue
            stack.pop()
            if top not in sizes:
                nodes = list(chosen[top].all_nodes())
                called = [node.op_identifier() for node in nodes]
                sizes[top] = len(nodes) + sum(sizes[callee] - 1 for callee in called if callee in chosen)
        return sizes[key]

    stays = [function for key, function in model.functions.items() if key not in chosen]
    bodies: list[ir.Graph | ir.Function] = [model.graph, *stays]
    return sum(size(key) - 1 for body in bodies for key in _calls(body, model) if key in chosen)


def _inline(node: ir.Node, chosen: dict[Key, ir.Function], splicer: Splicer, context: Context) -> list[ir.Node] | None:
    """Inline a call and return the nodes that stand in its place, or None for any other node and where it stays."""
    function = chosen.get(node.op_identifier())
    if function is None:
        return None
    reason = _refusal(node, function)
    if reason:
        context.note(node, f"not inlined: {reason}")
        return None
    imports = scope_of(graph_of(node)).opset_imports
    for domain, version in function.opset_imports.items():
        if _version(imports, domain) is None:
            imports[domain] = version
    body = function.graph.clone()
    _resolve(body, _attributes(node, function))
    given = [*node.inputs, *[None] * (len(body.inputs) - len(node.inputs))]
    outputs = list(body.outputs)
    moved, results = splicer.move(node, body, dict(zip(body.inputs, given, strict=True)), copied=True)
    assert len(results) == len(outputs)
    hand_over(node, [*results, *[None] * len(node.outputs)][: len(node.outputs)])
    return moved


def _refusal(node: ir.Node, function: ir.Function) -> str:
    """Return why a call cannot be inlined, or nothing."""
    if len(node.inputs) > len(function.inputs) or len(node.outputs) > len(function.outputs):
        return "it has more inputs or outputs than the function"
    attributes = (*node.attributes.values(), *function.attributes.values())
    if any(attribute.type in _GRAPHS for attribute in attributes):
        return "an attribute is a graph"
    given = dict(zip(function.inputs, node.inputs, strict=False))
    for output in function.outputs:
        if output.is_graph_input() and given.get(output) is None:
            return "it gives back an input that is missing"
        if output.producer() is None and not output.is_graph_input():
            return "it gives back a value that it does not compute"
    results = [given.get(value, value) for value in function.outputs]
    if needs_newer_identity(node, results[: len(node.outputs)], function.graph):
        return "the opset has no Identity of sequences or optionals"
    return _other_meaning(node, function)


def _other_meaning(node: ir.Node, function: ir.Function) -> str:
    """Return which operator of a function means something else under the opset of its caller, or nothing."""
    imports = scope_of(graph_of(node)).opset_imports
    for inner in function.all_nodes():
        mine, other = _version(imports, inner.domain), _version(function.opset_imports, inner.domain)
        if mine is None or other is None or mine == other:
            continue
        if _since(inner, mine) != _since(inner, other) or _since(inner, mine) is None:
            return f"{node_label(inner).split(' ')[0]} means something else in the caller's opset"
    return ""


def _version(imports: dict[str, int], domain: str) -> int | None:
    if domain in ("", "ai.onnx"):
        return imports.get("", imports.get("ai.onnx"))
    return imports.get(domain)


def _since(node: ir.Node, version: int) -> int | None:
    try:
        domain = "" if is_standard(node) else node.domain
        return int(onnx.defs.get_schema(node.op_type, version, domain).since_version)
    except onnx.defs.SchemaError:
        return None


def _attributes(node: ir.Node, function: ir.Function) -> dict[str, ir.Attr]:
    """Return what a function's attributes are in a call: those given, and defaults."""
    defaults = {name: a for name, a in function.attributes.items() if a.value is not None and not a.is_ref()}
    return {**defaults, **node.attributes}


def _resolve(graph: ir.Graph, attributes: dict[str, ir.Attr]) -> None:
    """Put values for the references to a function's attributes; one that the call does not have is dropped."""
    for node in graph:
        for name, attribute in list(node.attributes.items()):
            if not attribute.is_ref():
                continue
            given = attributes.get(attribute.ref_attr_name or "")
            if given is None:
                del node.attributes[name]
            elif given.is_ref():  # a call inside of another function, whose own attribute it hands on
                node.attributes[name] = ir.RefAttr(name, given.ref_attr_name or "", given.type)
            else:
                node.attributes[name] = ir.Attr(name, given.type, given.value)
        for nested in subgraphs(node):
            _resolve(nested, attributes)


def _drop_uncalled(model: ir.Model, chosen: dict[Key, ir.Function]) -> None:
    """Remove the functions that were inlined everywhere, those first that only such functions called."""
    while True:
        bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
        called = {key for body in bodies for key in _calls(body, model)}
        gone = [key for key in chosen if key in model.functions and key not in called]
        if not gone:
            return
        for key in gone:
            del model.functions[key]
