"""Make a graph that breaks the law smaller: fewer outputs, fewer nodes, inputs in place of what was computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx

from random_graphs.law import Broken, Example, NotAccepted, check


def smallest(model: onnx.ModelProto, targets: Sequence[str]) -> onnx.ModelProto:
    """Return a smaller model that breaks the law as well, found greedily."""
    kind = _fault(model, targets)
    found = True
    while found:
        found = False
        for smaller in _smaller(model):
            if _fault(smaller, targets) == kind:
                model, found = smaller, True
                break
    return model


def _fault(model: onnx.ModelProto, targets: Sequence[str]) -> str:
    try:
        check(Example.of(model), targets)
    except Broken as err:
        return str(err).split(":")[0]
    except NotAccepted:
        return ""
    return ""


def _smaller(model: onnx.ModelProto) -> Iterator[onnx.ModelProto]:
    """Yield models with one output only, then with one node bypassed, or dropped with what it alone feeds."""
    if len(model.graph.output) > 1:
        for index in range(len(model.graph.output)):
            copy = _copy(model)
            kept = copy.graph.output[index]
            del copy.graph.output[:]
            copy.graph.output.append(kept)
            yield _pruned(copy)
    for index, node in enumerate(model.graph.node):
        for name in node.input:
            if not name or not node.output or node.op_type == "Constant":
                continue
            copy = _copy(model)
            del copy.graph.node[index]
            for other in copy.graph.node:
                for place, read in enumerate(other.input):
                    if read == node.output[0]:
                        other.input[place] = name
            if all(value.name != node.output[0] for value in copy.graph.output):
                yield _pruned(copy)
    for node in reversed(model.graph.node):
        if node.output and node.output[0] not in {value.name for value in model.graph.output}:
            inferred = onnx.shape_inference.infer_shapes(model)
            infos = {value.name: value for value in inferred.graph.value_info}
            if node.output[0] not in infos or node.op_type == "Constant":
                continue
            copy = _copy(model)
            del copy.graph.output[:]
            copy.graph.output.append(infos[node.output[0]])
            yield _pruned(copy)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _pruned(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop nodes, weights and inputs that no output needs."""
    needed = {value.name for value in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if any(name in needed for name in node.output):
            kept.append(node)
            needed.update(_reads(node))
    kept.reverse()
    del model.graph.node[:]
    model.graph.node.extend(kept)
    for field in (model.graph.initializer, model.graph.input):
        used = [item for item in field if item.name in needed]
        del field[:]
        field.extend(used)
    return model


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _reads(inner)
        yield from (value.name for value in attribute.g.output)
