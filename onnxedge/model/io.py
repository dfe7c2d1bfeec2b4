"""Load and save models: external data, limits on what is trusted, the input never overwritten."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO, FileIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf import json_format, text_format
from google.protobuf.message import DecodeError, EncodeError

from onnxedge.errors import UserError, first_line
from onnxedge.model.check import check_external_data, check_graphs, check_tensors, check_versions
from onnxedge.model.files import data_file, flush, refuse_overwrite, remove, scratch_directory
from onnxedge.model.graph import graphs_of
from onnxedge.model.serialize import EMBED_LIMIT_BYTES, encoded, serialize, weight_bytes
from onnxedge.model.skeleton import deserialize
from onnxedge.model.sparse import densified
from onnxedge.model.weights import in_memory, standing_in, write_weights
from onnxedge.model.wire import Region, split

PROTOBUF_LIMIT_BYTES = 1 << 31

_LOSSES = "onnxedge.losses"

_UNREADABLE = (DecodeError, OSError, ValueError, json_format.Error, text_format.ParseError, onnx.parser.ParseError)

Array = np.ndarray[Any, Any]


def load(path: str | os.PathLike[str]) -> ir.Model:
    """Load a model; weights in external files stay memory-mapped and are read when a pass asks for them.

    Raises:
        UserError: no such file, not an ONNX model, invalid, of a newer opset or IR version than the installed onnx
            knows, or with external data that is missing, too short or outside of the model's folder.
    """
    path = Path(path)
    try:
        path.lstat()
    except OSError as err:  # absent, or no name that the file system takes
        missing = isinstance(err, FileNotFoundError | NotADirectoryError)
        raise UserError(f"{path}: {'no such file' if missing else first_line(err)}") from err
    if not path.is_file():
        raise UserError(f"{path}: is not a file; name the .onnx file itself")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: is empty, not an ONNX model")
    if path.stat().st_size >= PROTOBUF_LIMIT_BYTES:
        raise UserError(f"{path}: is larger than 2 GiB, no ONNX model can be; weights go into a file of their own")
    try:
        proto, weights = _parsed(path)
    except _UNREADABLE as err:
        raise UserError(f"{path}: not a readable ONNX model (truncated or another format): {first_line(err)}") from err
    if not proto.HasField("graph") or not proto.opset_import:
        raise UserError(f"{path}: not an ONNX model: it has no graph or no opset import")
    return _checked(proto, weights, str(path), path.parent)


def _parsed(path: Path, *, read: bool = True) -> tuple[onnx.ModelProto, dict[int, Array]]:
    """Parse a file; large initializers are of shape [0] in the protobuf, and their arrays are given by their index.

    Args:
        path: the file; text formats go by their endings, as onnx has them.
        read: False leaves the arrays away.
    """
    if onnx.serialization.registry.get_format_from_file_extension(path.suffix) not in (None, "protobuf"):
        return onnx.load(path, load_external_data=False), {}
    with path.open("rb", buffering=0) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        serialized, regions = split(data)
        arrays = {index: _array(file, region) for index, region in regions.items()} if read else {}
    return onnx.ModelProto.FromString(serialized), arrays


def _array(file: FileIO | BytesIO, region: Region) -> Array:
    array = np.empty(region.dims, region.dtype.numpy().newbyteorder("<"))
    file.seek(region.offset)
    if file.readinto(array.reshape(-1).view(np.uint8).data) != region.length:
        raise OSError("the file became shorter while it was read")
    array.flags.writeable = False
    return array


def from_proto(proto: onnx.ModelProto, *, source: str = "model") -> ir.Model:
    """Check a protobuf and turn it into an ``onnx_ir`` model.

    Args:
        proto: the model, with its weights inside; not changed, and nothing of it is shared.
        source: what error messages call it.

    Raises:
        UserError: as :func:`load`.
    """
    try:
        data = proto.SerializeToString()
    except (EncodeError, ValueError) as err:
        raise UserError(f"{source}: cannot be serialized, it may be over 2 GiB: {first_line(err)}") from err
    serialized, regions = split(data)
    arrays = {index: _array(BytesIO(data), region) for index, region in regions.items()}
    return _checked(onnx.ModelProto.FromString(serialized), arrays, source, None)


def _checked(proto: onnx.ModelProto, weights: Mapping[int, Array], source: str, folder: Path | None) -> ir.Model:
    """Return a model, all of which was checked.

    Args:
        proto: the model; not changed.
        weights: arrays of the initializers of these indices, which have none in the protobuf.
        source: what error messages call it, its file where there is a folder.
        folder: where its external data lies; None for a model whose data is all inside.
    """
    check_versions(proto, source)
    external = check_external_data(proto, source, folder)
    try:
        onnx.checker.check_model(source if external else proto)
    except (onnx.checker.ValidationError, ValueError) as err:
        raise UserError(f"{source}: not a valid ONNX model: {first_line(err)}") from err
    check_tensors(proto, source)
    proto = densified(proto, source)
    try:
        model = deserialize(proto)
    except Exception as err:  # onnx_ir wraps whatever it met in its own and other types
        raise UserError(f"{source}: cannot be read as a graph: {first_line(err)}") from err
    _put_in(weights, model, proto.graph)
    if proto.training_info:
        model.meta[_LOSSES] = ("training_info was not kept: what comes out is for inference",)
    if folder is not None:
        for graph in graphs_of(model):
            ir.external_data.set_base_dir(graph, str(folder))
    check_graphs(model, source)
    return model


def losses(model: ir.Model) -> tuple[str, ...]:
    """Return what of a model's file is not in the model, a line each."""
    said: tuple[str, ...] = model.meta.get(_LOSSES, ())
    return said


def _put_in(weights: Mapping[int, Array], model: ir.Model, proto: onnx.GraphProto) -> None:
    """Give initializers the arrays that their protobufs lack, and their shapes where nothing else says them."""
    declared = {info.name for infos in (proto.input, proto.value_info, proto.output) for info in infos}
    places = {tensor.name: index for index, tensor in enumerate(proto.initializer)} if weights else {}
    for value in model.graph.initializers.values():
        array, empty = weights.get(places.get(value.name or "", -1)), value.const_value
        if array is None or empty is None:
            continue
        value.const_value = ir.Tensor(
            array,
            dtype=empty.dtype,
            name=empty.name,
            doc_string=empty.doc_string,
            metadata_props=dict(empty.metadata_props),
        )
        if value.name not in declared:
            value.shape = ir.Shape(array.shape)


def external_files(model: ir.Model) -> list[Path]:
    """Return the files that a model's weights lie in."""
    files: dict[Path, None] = {}
    for graph in graphs_of(model):
        tensors = [value.const_value for value in graph.initializers.values()]
        for node in graph:
            for attribute in node.attributes.data.values():
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    tensors.append(attribute.value)
                elif attribute.type == ir.AttributeType.TENSORS and not attribute.is_ref():
                    tensors.extend(attribute.as_tensors())
        files.update((Path(tensor.path), None) for tensor in tensors if isinstance(tensor, ir.ExternalTensor))
    return list(files)


def model_files(path: Path) -> list[Path]:
    """Return the model file and the external data files that it names and that exist."""
    proto, _ = _parsed(path, read=False)
    files = {path: None}
    for tensor in onnx.external_data_helper._get_all_tensors(proto):
        if onnx.external_data_helper.uses_external_data(tensor):
            file = path.parent / onnx.external_data_helper.ExternalDataInfo(tensor).location
            if file.is_file():
                files[file] = None
    return list(files)


def file_bytes(path: str | os.PathLike[str]) -> int:
    """Return the bytes of a model file and of the external data files that it names."""
    return sum(file.stat().st_size for file in model_files(Path(path)))


def save(
    model: ir.Model, path: str | os.PathLike[str], *, inputs: Sequence[Path] = (), external: bool = False
) -> list[Path]:
    """Write a model whole or not at all, and return the files that it consists of.

    The bytes go to ``.NAME.partial`` beside the target (one name, so that killed runs leave at most one such file) and
    are moved into place. External weights go to ``NAME.data``; those that lie in files are copied from file to file.
    The ``NAME.data`` of the model that is replaced is removed.

    Where a file is replaced the bytes are flushed to disk first: after a power loss there is the old model or the new
    one. A new file is not: the kernel shows every process the whole of it from the moment that it has its name, however
    the run ends, and what a power loss takes is made again from the input.

    Args:
        model: not changed.
        path: where to; folders must exist.
        inputs: files that must not be overwritten.
        external: put weights into an external file even if they fit inside.

    Raises:
        UserError: the path is one of ``inputs``, is a folder, or cannot be written.
    """
    path = Path(path)
    data = data_file(path)
    for file in (path, data):
        refuse_overwrite(file, inputs)
    partial, partial_data = path.with_name(f".{path.name}.partial"), path.with_name(f".{data.name}.partial")
    try:
        replaces = path.exists() or data.exists()
        stale = data if data.exists() and data in _named_by(path) else None
        placed: Mapping[int, ir.TensorProtocol] = {}
        if external or weight_bytes(model) > EMBED_LIMIT_BYTES:
            placed = write_weights(model, partial_data, data.name)
            partial.write_bytes(_with_weights(model, placed))
        else:
            with partial.open("wb") as out:
                out.writelines(encoded(model))
        if replaces:
            flush(partial)
        if placed:
            if replaces:
                flush(partial_data)
            path.unlink(missing_ok=True)  # an old model must never stand beside new weights
            os.replace(partial_data, data)
            stale = None
        os.replace(partial, path)
        if stale is not None:
            stale.unlink(missing_ok=True)  # weights of the model that was just replaced
        return [path, data] if placed else [path]
    except OSError as err:
        raise UserError(f"{path}: cannot be written: {first_line(err)}") from err
    finally:
        for leftover in (partial, partial_data):
            remove(leftover)


def _named_by(path: Path) -> list[Path]:
    """Return the files of the model at a path; none where there is no model."""
    if not path.is_file():
        return []
    try:
        return model_files(path)
    except _UNREADABLE:
        return []


def _with_weights(model: ir.Model, placed: Mapping[int, ir.TensorProtocol]) -> bytes:
    """Return the file of a model with other tensors in place of some, given by ``id``; all others are embedded."""

    def choose(_: ir.Value, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        return placed[id(tensor)] if id(tensor) in placed else in_memory(tensor)

    with standing_in(graphs_of(model), choose):
        data: bytes = serialize(model).SerializeToString(deterministic=True)
    return data


@contextlib.contextmanager
def runnable(model: ir.Model | onnx.ModelProto | Path | bytes) -> Iterator[bytes | Path]:
    """Yield what ONNX Runtime sessions can be made from: bytes, or the path of a file while the context lasts."""
    if isinstance(model, Path | bytes):
        yield model
    elif isinstance(model, onnx.ModelProto):
        yield model.SerializeToString()
    elif weight_bytes(model) <= EMBED_LIMIT_BYTES:
        yield b"".join(encoded(model))
    else:
        with scratch_directory() as folder:
            placed = write_weights(model, folder / "model.data", "model.data")
            (folder / "model.onnx").write_bytes(_with_weights(model, placed))
            yield folder / "model.onnx"
