"""What is checked of a protobuf before anything is made of it: versions, external data, tensors, names."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxedge.errors import UserError, first_line, shortened
from onnxedge.model.graph import graphs_of, is_standard, node_label

MAX_RANK = 64  #: dimensions of a tensor that numpy takes
_KNOWN = frozenset(item.value for item in ir.DataType if item != ir.DataType.UNDEFINED)
_FIXED_WIDTH = _KNOWN - {ir.DataType.STRING.value}
_FIELDS = {
    ir.DataType.FLOAT: "float_data",
    ir.DataType.COMPLEX64: "float_data",
    ir.DataType.DOUBLE: "double_data",
    ir.DataType.COMPLEX128: "double_data",
    ir.DataType.INT64: "int64_data",
    ir.DataType.UINT32: "uint64_data",
    ir.DataType.UINT64: "uint64_data",
    ir.DataType.STRING: "string_data",
}  #: where numbers stand that are not raw; those of all other types are in ``int32_data``


def tensors_of(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield the tensors of graphs, subgraphs, functions and attributes."""
    yield from onnx.external_data_helper._get_all_tensors(proto)


def check_versions(proto: onnx.ModelProto, source: str) -> None:
    """Refuse versions of format and opset that the installed onnx does not know.

    Raises:
        UserError: with the version and those that are read.
    """
    if not 1 <= proto.ir_version <= onnx.IR_VERSION:
        raise UserError(
            f"{source}: IR version {proto.ir_version} is not known; onnx {onnx.__version__} reads 1..{onnx.IR_VERSION}"
        )
    newest = onnx.defs.onnx_opset_version()
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx") and not 1 <= entry.version <= newest:
            raise UserError(f"{source}: opset {entry.version} is not known; onnx {onnx.__version__} reads 1..{newest}")


def check_external_data(proto: onnx.ModelProto, source: str, folder: Path | None) -> bool:
    """Refuse external data that is missing, reaches out of the model's folder, or is no regular file.

    Returns:
        Whether there is any.

    Raises:
        UserError: with the tensor and the reason.
    """
    external = [tensor for tensor in tensors_of(proto) if onnx.external_data_helper.uses_external_data(tensor)]
    for tensor in external:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        where = f"{source}: tensor {_name(tensor)}: external data {shortened(entries.get('location', ''), 200)!r}"
        offset, length = (_external_number(entries, key, where) for key in ("offset", "length"))
        if folder is None:
            raise UserError(f"{where}: a model given in memory must hold its weights; load it from its file")
        if tensor.data_type not in _FIXED_WIDTH:
            raise UserError(f"{where}: is of type {tensor.data_type}, which cannot lie in a file of its own")
        if length is not None and length != _bytes(tensor):
            raise UserError(f"{where}: {length} bytes for shape {list(tensor.dims)}, needs {_bytes(tensor)}")
        end = (offset or 0) + _bytes(tensor)
        size = _external_size(folder, Path(entries.get("location", "")), where)
        if size < end:
            raise UserError(f"{where}: has {size} bytes, the tensor needs {end}")
    return bool(external)


def _external_number(entries: Mapping[str, str], key: str, where: str) -> int | None:
    text = entries.get(key)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise UserError(f"{where}: {key} {shortened(text, 50)!r} is no whole number of bytes")
    return int(text)


def _external_size(folder: Path, location: Path, where: str) -> int:
    """Return the bytes of a file that may be read."""
    if location.is_absolute() or ".." in location.parts:
        raise UserError(f"{where}: reaches out of the model's folder; not read")
    file = folder / location
    try:
        if not os.path.lexists(file):
            raise UserError(f"{where}: no such file; it must lie beside the model")
        if file.is_symlink() or not file.is_file() or folder.resolve() not in file.resolve().parents:
            raise UserError(f"{where}: is no regular file inside the model's folder; not read")
        return file.stat().st_size
    except (OSError, ValueError, RuntimeError) as err:  # a name that no file has: too long, with NUL, a ring of links
        raise UserError(f"{where}: cannot be read: {first_line(err, 100)}") from err


def check_tensors(proto: onnx.ModelProto, source: str) -> None:
    """Refuse tensors whose bytes or numbers are not those that their type and dimensions need.

    Raises:
        UserError: with the tensor and the reason.
    """
    for tensor in tensors_of(proto):
        if tensor.data_type not in _KNOWN:
            raise UserError(f"{source}: tensor {_name(tensor)}: element type {tensor.data_type} is not known")
        dims = tensor.dims
        if len(dims) > MAX_RANK:
            raise UserError(f"{source}: tensor {_name(tensor)}: has {len(dims)} dimensions, {MAX_RANK} are possible")
        if any(d < 0 for d in dims):
            raise UserError(f"{source}: tensor {_name(tensor)}: a dimension is negative: {list(dims)}")
        if 16 * math.prod(d or 1 for d in dims) >= 2**63:
            raise UserError(f"{source}: tensor {_name(tensor)}: {list(dims)} is larger than any memory")
        if not onnx.external_data_helper.uses_external_data(tensor):
            _check_content(tensor, source)


def _check_content(tensor: onnx.TensorProto, source: str) -> None:
    kind = ir.DataType(tensor.data_type)
    if tensor.HasField("raw_data"):
        if kind == ir.DataType.STRING:
            raise UserError(f"{source}: tensor {_name(tensor)}: strings do not stand in raw data")
        have, need, unit = len(tensor.raw_data), _bytes(tensor), "bytes"
    else:
        have, need, unit = len(getattr(tensor, _FIELDS.get(kind, "int32_data"))), _numbers(tensor, kind), "numbers"
    if have != need:
        shape = list(tensor.dims)
        raise UserError(f"{source}: tensor {_name(tensor)}: {have} {unit} for shape {shape}, needs {need}")


def _numbers(tensor: onnx.TensorProto, kind: ir.DataType) -> int:
    count = int(math.prod(tensor.dims))
    if kind in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        return 2 * count
    return count if kind == ir.DataType.STRING or kind.bitwidth >= 8 else _bytes(tensor)


def _bytes(tensor: onnx.TensorProto) -> int:
    return int(math.prod(tensor.dims) * ir.DataType(tensor.data_type).bitwidth + 7) // 8


def _name(tensor: onnx.TensorProto) -> str:
    return repr(shortened(tensor.name, 100)) if isinstance(tensor.name, str) else repr(tensor.name[:100])


def check_graphs(model: ir.Model, source: str) -> None:
    """Refuse what onnx's checker lets pass and passes trip over: names that are no text, inputs of no type.

    A standard operator's strings are UTF-8; those of other domains may hold anything.

    Raises:
        UserError: with the first of them.
    """
    strings: list[object] = [model.doc_string, model.graph.name, *model.metadata_props, *model.metadata_props.values()]
    for graph in graphs_of(model):
        strings.extend(value.name for value in (*graph.inputs, *graph.initializers.values()))
        for node in graph:
            strings.extend((node.name, node.op_type, node.domain, node.doc_string))
            strings.extend(value.name for value in node.outputs)
            if not is_standard(node):
                continue
            strings.extend(a.value for a in node.attributes.values() if a.type == ir.AttributeType.STRING)
            if node.op_type == "If" and any(_takes_inputs(a) for a in node.attributes.values()):
                raise UserError(f"{source}: {shortened(node_label(node), 200)}: a branch takes no inputs")
    for text in strings:
        if isinstance(text, bytes):
            raise UserError(f"{source}: {text[:50]!r} is a name or a string that is no text (UTF-8)")
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.type is not None and value.dtype == ir.DataType.UNDEFINED:
            raise UserError(f"{source}: {shortened(value.name or '', 100)!r} has no element type")


def _takes_inputs(attribute: ir.Attr) -> bool:
    return attribute.type == ir.AttributeType.GRAPH and bool(attribute.as_graph().inputs)
