"""Run nodes on constants in ONNX Runtime, so that NaN, infinity and overflow come out as the runtime makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxedge.api import Array, CannotRun, Session, constant_tensor, first_line


def evaluate(
    nodes: Sequence[ir.Node], known: Mapping[int, Array], opset: int, ir_version: int
) -> tuple[dict[int, Array], dict[int, str]]:
    """Return the outputs of nodes whose inputs are all constant, and why some could not be evaluated.

    All nodes run in one session; if the runtime refuses that, each runs alone with those after it left out.

    Args:
        nodes: in topological order, none in need of a value from outside of them but constants and ``known``.
        known: arrays of values (by ``id``) that were computed before.
        opset: version of the default domain.
        ir_version: of the model, so that the runtime reads the nodes as it would in the model.

    Returns:
        Arrays by ``id`` of the value; reasons by ``id`` of the node.
    """
    if not nodes:
        return {}, {}
    try:
        return _run(nodes, known, opset, ir_version), {}
    except CannotRun as err:
        if len(nodes) == 1:
            return {}, {id(nodes[0]): first_line(err, 160)}
    computed: dict[int, Array] = {}
    reasons: dict[int, str] = {}
    for node in nodes:
        if any(_source(value) in reasons for value in node.inputs):
            reasons[id(node)] = "an input could not be computed"
            continue
        arrays, refused = evaluate([node], {**known, **computed}, opset, ir_version)
        computed.update(arrays)
        reasons.update(refused)
    return computed, reasons


def _source(value: ir.Value | None) -> int | None:
    producer = value.producer() if value is not None else None
    return id(producer) if producer is not None else None


def _run(nodes: Sequence[ir.Node], known: Mapping[int, Array], opset: int, ir_version: int) -> dict[int, Array]:
    copies: dict[int, ir.Value] = {}
    initializers: list[ir.Value] = []
    clones: list[ir.Node] = []
    wanted: list[tuple[int, ir.Value]] = []
    for node in nodes:
        for value in node.inputs:
            if value is None or id(value) in copies:
                continue
            tensor = ir.tensor(known[id(value)]) if id(value) in known else _own(constant_tensor(value))
            copies[id(value)] = ir.val(f"c{len(copies)}", const_value=tensor)
            initializers.append(copies[id(value)])
        clone = ir.Node(
            node.domain,
            node.op_type,
            [copies[id(value)] if value is not None else None for value in node.inputs],
            list(node.attributes.values()),
            num_outputs=len(node.outputs),
            name=f"n{len(clones)}",
        )
        clones.append(clone)
        for value, copy in zip(node.outputs, clone.outputs, strict=True):
            copy.name = f"c{len(copies)}" if value.name else ""
            copies[id(value)] = copy
            if value.name:
                wanted.append((id(value), copy))
    outputs = [copy for _, copy in wanted]
    graph = ir.Graph([], outputs, nodes=clones, initializers=initializers, opset_imports={"": opset}, name="constants")
    arrays = Session(ir.Model(graph, ir_version=ir_version), level="disable").run({})
    return {key: arrays[copy.name or ""] for key, copy in wanted}


def _own(tensor: ir.TensorProtocol | None) -> ir.TensorProtocol | None:
    """Return a tensor of our own on the same bytes: a value gives its name to its tensor, also to somebody else's."""
    if tensor is None or tensor.dtype == ir.DataType.STRING:
        return tensor
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype)
