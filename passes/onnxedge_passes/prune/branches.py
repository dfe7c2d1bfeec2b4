"""What the branches of an If compute, beside each other in the main graph while a model is pruned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from onnxedge.api import CannotRun, Context, Session, forked, is_constant, is_tame, new_node, node_label
from onnxedge_passes.cleanup.control.control_flow import branches_of, is_dangling
from onnxedge_passes.cleanup.control.splice import Splicer

_KEY = "onnxedge_passes.prune.branches"  #: number of the If, and of its branch, that a node comes from
_IF = "onnxedge_passes.prune.branches.if"  #: number of an If that only chooses
_BATCH = 8  #: samples of one run that tells whether a branch fails
_TRIED = 8  #: Ifs that are tried one by one where not all of them can be opened


def open_branches(model: ir.Model, context: Context, samples: int) -> None:
    """Move what the branches of each If compute into the main graph; the If then only chooses.

    Before: ``y = If(c){t = Conv(x, W); return t}{e = Conv(x, V); return e}``
    After:  ``t = Conv(x, W); e = Conv(x, V); y = If(c){return Identity(t)}{return Identity(e)}``

    So the channels of both are followed, measured and refitted as those of the main graph are, on all samples, since
    they may take one branch alone. :func:`close_branches` takes it back. Left alone, with a note: a branch that may
    crash or run for ever where it is not taken, or that fails on a sample.

    Args:
        model: edited in place.
        context: for calibration samples, threads and notes.
        samples: on which an opened branch must run, at most.
    """
    ready = []
    for number, node in enumerate(model.graph):
        wild = next(_wild(node), None) if node.op_type == "If" and _IF not in node.meta else node
        if wild is None:
            ready.append(number)
        elif wild is not node:
            context.note(node, f"channels in its branches stay: {node_label(wild)} may fail where it is not taken")
    if not ready:
        return

    def runs(numbers: Sequence[int]) -> bool:
        fork, _ = forked(model)
        _open(fork, numbers)
        try:
            session = Session(fork, threads=context.threads)
            for feed in context.calibration.feeds(_BATCH, samples):
                session.run(feed)
        except CannotRun:
            return False
        return True

    if not runs(ready):
        safe = [number for number in ready[:_TRIED] if runs([number])]
        for node in (node for number, node in enumerate(model.graph) if number in set(ready) - set(safe)):
            context.note(node, "channels in its branches stay: a branch fails on samples that do not take it")
        ready = safe
    _open(model, ready)


def _wild(node: ir.Node) -> Iterator[ir.Node]:
    """Yield what forbids to run both branches of an If, inner ones included: the If itself where it has a fault."""
    branches = branches_of(node)
    if branches is None or any(is_dangling(value) for graph in branches for value in graph.outputs):
        yield node
        return
    for inner in (inner for graph in branches for inner in graph):
        if inner.op_type == "If":
            yield from _wild(inner)
        elif not is_tame(inner):
            yield inner


def _open(model: ir.Model, numbers: Sequence[int]) -> None:
    splicer, pending = Splicer(model.graph), [node for k, node in enumerate(model.graph) if k in set(numbers)]
    count = 1 + max((node.meta.get(_IF, -1) for node in model.graph), default=-1)
    while pending:
        node = pending.pop()
        node.meta[_IF] = count
        for which, graph in enumerate(branches_of(node) or ()):
            moved, results = splicer.move(node, graph, {})
            for inner in moved:
                inner.meta[_KEY] = (count, which)
            pending += [inner for inner in moved if inner.op_type == "If"]
            graph.extend(new_node(graph, "Identity", [value]) for value in results)
            graph.outputs.extend(inner.outputs[0] for inner in graph)
        count += 1


def choices(node: ir.Node) -> list[tuple[ir.Value, ir.Value]]:
    """Return for each output of an If that only chooses the values that it chooses from; empty for other nodes."""
    branches = branches_of(node) if _IF in node.meta else None
    if branches is None:
        return []
    return list(zip(*(_results(graph) for graph in branches), strict=True))


def _results(graph: ir.Graph) -> list[ir.Value]:
    """Return what the Identities of an opened branch read."""
    return [value for node in graph for value in node.inputs if value is not None]


def close_branches(model: ir.Model) -> None:
    """Move back what :func:`open_branches` has moved, as far as it is there, with what has come in between."""
    for node in [node for node in model.graph if _IF in node.meta]:  # inner ones first
        for which, graph in enumerate(branches_of(node) or ()):
            inside = _belonging(model.graph, (node.meta[_IF], which))
            results, identities = _results(graph), list(graph)
            model.graph.remove(inside)
            graph.insert_before(identities[0], inside)
            for inner in inside:
                inner.meta.pop(_KEY, None)
            for index, (value, identity) in enumerate(zip(results, identities, strict=True)):
                if value.producer() in inside and not value.is_graph_output():
                    graph.outputs[index] = value
                    identity.replace_input_with(0, None)
                    graph.remove(identity)
        del node.meta[_IF]


def _belonging(graph: ir.Graph, branch: tuple[int, int]) -> list[ir.Node]:
    """Return what a branch computes, in order: what is marked and what reads that, and what it alone reads stored."""
    inside = set[ir.Node]()
    for node in graph:
        if node.meta.get(_KEY) == branch or any(v.producer() in inside for v in node.inputs if v is not None):
            inside.add(node)
    makers = {v.producer() for node in inside for v in node.inputs if v is not None} - inside
    for maker in makers:
        if maker is not None and maker.graph is graph and all(map(is_constant, maker.inputs)):
            readers = [use.node for value in maker.outputs for use in value.uses()]
            inside |= {maker} if inside.issuperset(readers) else set()
    return [node for node in graph if node in inside]
