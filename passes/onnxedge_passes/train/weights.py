"""What of a model is trained: its weights, told from other constants by where they are read, and put back by name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, UserError, constant, constant_tensor, did_you_mean, is_standard, operator, use_count

_ELEMENTWISE = ("Add", "Mul", "Sub", "Concat", "Expand")  #: read weights where another operand depends on weights
_VIEWS = ("Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
_RECURRENT = dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2, 3))
_EXTRA = {"MatMul": (0, 1), "Gemm": (0, 1, 2), "Gather": (0,), "PRelu": (1,), **_RECURRENT}
_MASK = 1e4  #: a constant that reaches this far hides what it is added to


def find_weights(graph: ir.Graph) -> dict[str, ir.Value]:
    """Return the float32 constants of the main graph that are weights, by name.

    Those are the weights, biases and per-channel parameters of layers, tables of embeddings, and constants of several
    elements that are added to or multiplied with what weights have made: positions, biases, layer scales. Not: running
    statistics of BatchNormalization, single numbers, masks, and what prepares the input before the first layer.
    """
    found: dict[str, ir.Value] = {}
    roots: dict[ir.Value, ir.Value] = {}  #: value -> the constant that it is a view of
    learned: set[ir.Value] = set()  #: values that depend on weights
    for node in graph:
        if node.op_type == "Constant" or (not is_standard(node) and not node.domain):
            continue
        given = {index: root for index, value in enumerate(node.inputs) if (root := _root(value, roots)) is not None}
        if is_standard(node) and node.op_type in _VIEWS and 0 in given:
            roots[node.outputs[0]] = given[0]
            continue
        meets = any(value in learned for value in node.inputs if value is not None)
        for index in _places(node, meets):
            root = given.get(index)
            if root is not None and root.name and (index in _own(node) or _is_learnable(root)):
                found.setdefault(root.name, root)
        if meets or any(root.name in found for root in given.values()):
            learned.update(node.outputs)
    return found


def _root(value: ir.Value | None, roots: Mapping[ir.Value, ir.Value]) -> ir.Value | None:
    value = roots.get(value, value) if value is not None else None
    tensor = constant_tensor(value)
    return value if tensor is not None and tensor.dtype == ir.DataType.FLOAT and tensor.size else None


def _own(node: ir.Node) -> tuple[int, ...]:
    """Return the inputs of a layer that are its weights whatever they hold."""
    if not is_standard(node):
        return ()
    if node.op_type == "BatchNormalization":
        return (1, 2)
    known = operator(node)
    if known.kind == "quantization":
        return ()
    named = (index for index in (known.weight, known.bias) if index is not None)
    return (*named, *known.parameters, *_EXTRA.get(node.op_type, ()))


def _places(node: ir.Node, meets: bool) -> tuple[int, ...]:
    if is_standard(node) and node.op_type in _ELEMENTWISE and (meets or node.op_type == "Expand"):
        return tuple(range(len(node.inputs)))
    return _own(node)


def _is_learnable(value: ir.Value) -> bool:
    array = constant(value)
    return array is not None and array.size > 1 and bool((np.abs(array) < _MASK).all())


def put_weights(model: ir.Model, weights: Mapping[str, Array]) -> int:
    """Put trained weights into a model by name, into initializers and Constant nodes of the main graph.

    Args:
        model: edited in place; all is checked before anything is changed.
        weights: float32, of the shapes that the model has.

    Returns:
        How many differ from what was there.

    Raises:
        UserError: there is no such weight, it is of another shape or type, or it holds NaN or infinity.
    """
    values = {value.name: value for value in model.graph.initializers.values() if value.name}
    values |= {n.outputs[0].name: n.outputs[0] for n in model.graph if n.op_type == "Constant" and n.outputs[0].name}
    for name, array in weights.items():
        tensor = _held(values[name]) if name in values else None
        if tensor is None:
            raise UserError(f"weights: the model has no constant {name!r}{did_you_mean(name, values)}")
        have = (tensor.dtype, tuple(tensor.shape.numpy()))
        if have != (ir.DataType.FLOAT, array.shape) or array.dtype != np.float32:
            raise UserError(
                f"weights: {name!r} is {array.dtype}{list(array.shape)}, the model has {have[0]}{list(have[1])}"
            )
        if not np.isfinite(array).all():
            raise UserError(f"weights: {name!r} is not finite; the training diverged, try a smaller learning rate")
    changed = 0
    for name, array in weights.items():
        value, before = values[name], _held(values[name])
        if before is not None and np.array_equal(before.numpy(), array):
            continue
        changed += 1
        tensor, producer = ir.Tensor(np.ascontiguousarray(array), name=name), value.producer()
        if producer is None:
            value.const_value = tensor
        else:
            producer.attributes.clear()
            producer.attributes["value"] = ir.AttrTensor("value", tensor)
            value.const_value = None
    return changed


def _held(value: ir.Value) -> ir.TensorProtocol | None:
    """Return the tensor of a constant; of an initializer too that a caller may override."""
    return value.const_value if value.is_initializer() else constant_tensor(value)


def lift_constants(graph: ir.Graph) -> int:
    """Turn the Constant nodes of a graph into initializers of their names; training ignores weights in nodes."""
    count = 0
    for node in [node for node in graph if node.op_type == "Constant" and is_standard(node)]:
        value, tensor = node.outputs[0], constant_tensor(node.outputs[0])
        if tensor is None or value.is_graph_output() or not value.name:
            continue
        lifted = ir.Value(name=value.name, const_value=tensor)
        lifted.type, lifted.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        for use in list(value.uses()):
            use.node.replace_input_with(use.idx, lifted)
        assert not use_count(value)
        graph.remove(node, safe=True)
        graph.register_initializer(lifted)
        count += 1
    return count
