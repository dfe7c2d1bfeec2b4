"""One node written for another opset: which need another form, and that form, from onnx's own converters."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir
from onnx.defs import OpSchema, SchemaError

from onnxedge.api import constant_tensor, first_line, is_standard, subgraphs
from onnxedge_passes.cleanup.control.splice import Splicer, hand_over

_EMBEDDED_BYTES = 1 << 10  #: constants up to this size are shown to the converters: axes, shapes, pads
_BODIES = frozenset({"If", "Loop", "Scan", "SequenceMap"})  #: their bodies are converted node by node
_FIRST_SCAN = 9  #: Scan had a batch axis before
_NEGATIVE_AXES = 11  #: opset that allowed them, without another sign of it
_ONE_AXIS = 13  #: opset from which on these work along one axis; before, along all from one on
_SOFTMAXES = frozenset({"Softmax", "LogSoftmax", "Hardmax"})
#: Operators that came to mean something else under the same inputs and attributes.
_REDEFINED = frozenset({"GridSample", "GroupNormalization", "PRelu", "Upsample"})


class Inconvertible(Exception):
    """Say why a node cannot be written for an opset."""


@dataclass(frozen=True)
class Step:
    """From which opset to which."""

    old: int
    new: int

    @property
    def up(self) -> bool:
        """Tell whether the opset rises."""
        return self.new > self.old


def convert_node(node: ir.Node, step: Step, splicer: Splicer) -> list[ir.Node] | None:
    """Write a node for another opset; return the nodes that stand in its place, None where it stays as it is.

    Raises:
        Inconvertible: there is no form of it that means the same, or none is known.
    """
    if not is_standard(node) or not _is_changed(node.op_type, step):
        return None
    if any(attribute.is_ref() for attribute in node.attributes.values()):
        raise Inconvertible("its attribute is the one of a function; put `inline-functions` before `convert`")
    if any(subgraphs(node)):
        if node.op_type in _BODIES and (node.op_type != "Scan" or min(step.old, step.new) >= _FIRST_SCAN):
            if not step.up and not _has_types(node, step.new):
                raise Inconvertible("there it takes no values of these types")
            return None
        raise Inconvertible("no form of it is known")
    if not step.up:
        _drop_defaults(node, step)
    alike = step.new >= _NEGATIVE_AXES and _is_alike(node.op_type, step) and _fits(node, step)
    body = None if alike else _converted(node, step)
    if body is None:
        _check_shapes(node, step)
        return None
    given = {f"i{index}": value for index, value in enumerate(node.inputs) if value is not None}
    for name in [name for name in body.initializers if name in given]:
        body.inputs.append(body.initializers.pop(name))  # a constant of the model, not a new one
    labels = {f"o{index}": value.name or "" for index, value in enumerate(node.outputs)}
    for inner in body:
        inner.name = node.name if inner.op_type == node.op_type else ""
        for value in inner.outputs:
            fresh = f"{labels['o0']}_{inner.op_type.lower()}"
            value.name = labels.get(value.name, fresh) if value.name else ""
    kept = [value.name if not value.is_graph_output() else None for value in node.outputs]
    moved, results = splicer.move(node, body, {value: given[value.name or ""] for value in body.inputs}, copied=True)
    made = iter(results)
    stand_ins = [next(made) if value.name else None for value in node.outputs]
    hand_over(node, stand_ins)
    for label, new in zip(kept, stand_ins, strict=True):
        if label and new is not None and new.producer() in moved:
            new.name = label  # the old value, which had it, is gone
    return moved


def _check_shapes(node: ir.Node, step: Step) -> None:
    """Refuse a node that gives other shapes in an older opset: windows of pools that start past the end, say."""
    if not step.up and all(value is None or value.type is not None for value in node.inputs):
        try:
            onnx.shape_inference.infer_shapes(_alone(node, step.new), strict_mode=True)
        except Exception as err:  # C++ raises several types
            reason = first_line(err, 300).rsplit("] ", 1)[-1]
            raise Inconvertible(f"its shapes come out otherwise there: {reason}") from err


@functools.cache
def _is_changed(op_type: str, step: Step) -> bool:
    """Tell whether an operator may need another form."""
    old, new = _schema(op_type, step.old), _schema(op_type, step.new)
    if old is None:
        return False  # a function of the model, or an operator that onnx does not know
    if new is None or new.deprecated:
        return True
    if old.since_version == new.since_version:
        return False
    known = op_type in _REDEFINED or (not step.up and step.new < _NEGATIVE_AXES)
    return known or _signature(old) != _signature(new) or not step.up


def _schema(op_type: str, version: int) -> OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, version, "")
    except SchemaError:
        return None


@dataclass(frozen=True)
class _Signature:
    """Inputs, outputs and attributes with their defaults, without the types that are allowed."""

    attributes: Mapping[str, tuple[object, ...]]
    inputs: Sequence[tuple[str, object]]
    outputs: Sequence[tuple[str, object]]


def _signature(schema: OpSchema) -> _Signature:
    attributes = {
        name: (a.type, a.required, a.default_value.SerializeToString()) for name, a in schema.attributes.items()
    }
    inputs, outputs = ([(v.name, v.option) for v in side] for side in (schema.inputs, schema.outputs))
    return _Signature(attributes, inputs, outputs)


def _has_only_grown(op_type: str, step: Step) -> bool:
    """Tell whether the newer form has optional inputs and attributes more, and all else as it was."""
    old, new = _schema(op_type, step.old), _schema(op_type, step.new)
    if not step.up or old is None or new is None or new.deprecated or op_type in _REDEFINED:
        return False
    was, now = _signature(old), _signature(new)
    ins, outs = len(was.inputs), len(was.outputs)
    optional = OpSchema.FormalParameterOption.Optional
    return (
        all(now.attributes.get(name) == entry for name, entry in was.attributes.items())
        and not any(entry[1] for name, entry in now.attributes.items() if name not in was.attributes)
        and now.inputs[:ins] == was.inputs
        and now.outputs[:outs] == was.outputs
        and all(option == optional for _, option in [*now.inputs[ins:], *now.outputs[outs:]])
    )


@functools.cache
def _is_alike(op_type: str, step: Step) -> bool:
    """Tell whether two forms of an operator differ in the types that they take alone."""
    old, new = _schema(op_type, step.old), _schema(op_type, step.new)
    return old is not None and new is not None and _signature(old) == _signature(new)


def _drop_defaults(node: ir.Node, step: Step) -> None:
    """Remove the attributes that an older form lacks and that say what it does anyway: the default."""
    old, new = _schema(node.op_type, step.old), _schema(node.op_type, step.new)
    if old is None or new is None:
        return
    for name in [name for name in node.attributes if name in old.attributes and name not in new.attributes]:
        default = old.attributes[name].default_value
        if default.type and onnx.helper.get_attribute_value(default) == node.attributes[name].value:
            del node.attributes[name]


def _converted(node: ir.Node, step: Step) -> ir.Graph | None:
    """Return a graph of the node in its new form, None for one that keeps its form."""
    proto = _alone(node, step.old)
    if node.op_type in _SOFTMAXES and step.new < _ONE_AXIS <= step.old:
        return _flattening(node, proto)
    try:
        made = onnx.version_converter.convert_version(proto, step.new)
    except Exception as err:  # C++ raises several types
        return _converted_otherwise(node, proto, step, first_line(err, 120))
    if [entry.version for entry in made.opset_import if entry.domain == ""] != [step.new]:
        raise Inconvertible("onnx's converter stopped on the way")
    if [_bare(entry) for entry in made.graph.node] == [_bare(entry) for entry in proto.graph.node]:
        if not step.up and not _fits(node, step):
            raise Inconvertible("it makes use of what that opset does not have")
        return None
    return _checked(made)


def _converted_otherwise(node: ir.Node, proto: onnx.ModelProto, step: Step, reason: str) -> ir.Graph | None:
    """Go on where onnx's own converter has no adapter."""
    from onnxscript import version_converter
    from onnxscript.version_converter import _version_converter as known

    adapted = {name for _, name, version, up in known.registry.op_adapters if up and step.old <= version < step.new}
    if step.up and node.op_type in adapted and step.old >= known.SUPPORTED_MIN_ONNX_OPSET:
        model = ir.serde.deserialize_model(proto)
        if step.new <= known.SUPPORTED_MAX_ONNX_OPSET:
            version_converter.convert_version(model, step.new)
            return _checked(ir.serde.serialize_model(model))
    if _has_only_grown(node.op_type, step) or _fits(node, step):
        return None
    raise Inconvertible(_reason(reason))


def _flattening(node: ir.Node, proto: onnx.ModelProto) -> ir.Graph:
    """Return a Softmax of one axis in the form that takes all axes from one on together: along the last one."""
    data = node.inputs[0]
    if data is None or not data.shape:
        raise Inconvertible("its rank is not known, and there it takes all axes from one on together")
    rank = len(data.shape)
    axis, last = node.attributes.get_int("axis", -1) % rank, rank - 1
    make = functools.partial(onnx.helper.make_node, node.op_type, axis=last)
    nodes = [make(["i0"], ["o0"])]
    if axis != last:
        perm = [*range(rank)]
        perm[axis], perm[last] = last, axis
        turn = functools.partial(onnx.helper.make_node, "Transpose", perm=perm)
        nodes = [turn(["i0"], ["t"]), make(["t"], ["s"]), turn(["s"], ["o0"])]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return _checked(proto)


def _reason(message: str) -> str:
    """Return what a C++ assertion says, without its place in the source."""
    if "Assertion `false`" in message:
        message = message.split("failed: ", 1)[-1]
    return "onnx's converter says: " + re.sub(r"^/\S+: ", "", message).strip("` ")


def _fits(node: ir.Node, step: Step) -> bool:
    """Tell whether an older form takes a node as it is: what it lacks is not made use of."""
    old, new = _schema(node.op_type, step.old), _schema(node.op_type, step.new)
    if step.up or old is None or new is None or node.op_type in _REDEFINED:
        return False
    was, now = _signature(old), _signature(new)
    for name, entry in was.attributes.items():
        if name in node.attributes and (name not in now.attributes or now.attributes[name][0] != entry[0]):
            return False
        if name not in node.attributes and name in now.attributes and now.attributes[name] != entry:
            return False
    axes = [node.attributes.get_int("axis", 0) or 0, *(node.attributes.get_ints("axes", ()) or ())]
    if step.new < _NEGATIVE_AXES and min(axes) < 0:
        return False
    for values, before, after in ((node.inputs, was.inputs, now.inputs), (node.outputs, was.outputs, now.outputs)):
        if len(before) > len(after) and any(value is not None and value.name for value in values[len(after) :]):
            return False
    return _has_types(node, step.new)


def _has_types(node: ir.Node, version: int) -> bool:
    """Tell whether an operator takes and gives values of these types at an opset, as far as the types are known."""
    schema = _schema(node.op_type, version)
    if schema is None:
        return False
    results = [value for graph in subgraphs(node) for value in graph.outputs]
    for values, parameters in ((node.inputs, schema.inputs), ([*node.outputs, *results], schema.outputs)):
        for value, parameter in zip(values, [*parameters, *list(parameters)[-1:] * len(values)], strict=False):
            if value is not None and value.type is not None and _spelling(value.type) not in parameter.types:
                return False
    return True


def _spelling(kind: ir.TypeProtocol) -> str:
    """Return a type as operator schemas spell it."""
    if isinstance(kind, ir.SequenceType | ir.OptionalType):
        return f"{'seq' if isinstance(kind, ir.SequenceType) else 'optional'}({_spelling(kind.elem_type)})"
    if not isinstance(kind, ir.TensorType):
        return ""
    return f"tensor({onnx.helper.tensor_dtype_to_string(int(kind.dtype)).removeprefix('TensorProto.').lower()})"


def _alone(node: ir.Node, version: int) -> onnx.ModelProto:
    """Return a model of one node; its inputs are ``i0``, ``i1``..., its outputs ``o0``, ``o1``..."""
    copy = onnx.NodeProto(op_type=node.op_type)
    copy.CopyFrom(ir.serde.serialize_node(node))
    del copy.input[:], copy.output[:], copy.metadata_props[:]
    copy.name = copy.doc_string = copy.domain = ""
    inputs: dict[str, onnx.ValueInfoProto] = {}
    tensors: dict[str, onnx.TensorProto] = {}
    names = {value: f"i{index}" for index, value in reversed(list(enumerate(node.inputs))) if value is not None}
    for value in node.inputs:
        copy.input.append(names[value] if value is not None else "")
        if value is None:
            continue
        tensor = constant_tensor(value)
        if tensor is not None and tensor.nbytes <= _EMBEDDED_BYTES:
            tensors[names[value]] = _named(tensor, names[value])
        else:
            inputs[names[value]] = _info(value, names[value])
    outputs: list[onnx.ValueInfoProto] = []
    for index, output in enumerate(node.outputs):
        copy.output.append(f"o{index}" if output.name else "")
        if output.name:
            outputs.append(_info(output, f"o{index}"))
    graph = onnx.helper.make_graph([copy], "node", list(inputs.values()), outputs, list(tensors.values()))
    imports = [onnx.helper.make_opsetid("", version)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=onnx.IR_VERSION)


def _named(tensor: ir.TensorProtocol, name: str) -> onnx.TensorProto:
    proto = onnx.TensorProto()
    proto.CopyFrom(ir.serde.serialize_tensor(tensor))
    proto.name = name
    return proto


def _info(value: ir.Value, name: str) -> onnx.ValueInfoProto:
    info = onnx.ValueInfoProto(name=name)
    if value.type is not None:
        ir.serde.serialize_type_into(info.type, value.type)
    if value.shape is not None:
        ir.serde.serialize_shape_into(info.type, value.shape)
    return info


def _bare(node: onnx.NodeProto) -> tuple[object, ...]:
    attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
    return node.op_type, node.domain, tuple(node.input), tuple(node.output), tuple(attributes)


def _checked(proto: onnx.ModelProto) -> ir.Graph:
    context = onnx.checker.C.CheckerContext()
    context.ir_version = proto.ir_version
    context.opset_imports = {entry.domain: entry.version for entry in proto.opset_import}
    try:
        for node in proto.graph.node:
            onnx.checker.check_node(node, context)
    except (onnx.checker.ValidationError, ValueError) as err:
        raise Inconvertible(f"onnx's converter makes an invalid node: {first_line(err, 120)}") from err
    return ir.serde.deserialize_model(proto).graph
