"""Load and save models: external data, limits on what is trusted, atomic writes, the input never overwritten."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf import json_format, text_format
from google.protobuf.message import DecodeError

from onnxedge.errors import UserError, first_line
from onnxedge.model.check import check_external_data, check_graphs, check_tensors, check_versions
from onnxedge.model.copy import copied
from onnxedge.model.edit import graphs_of
from onnxedge.model.skeleton import large_bytes, skeleton
from onnxedge.model.sparse import densified
from onnxedge.model.weights import MIN_BYTES, write_weights

PROTOBUF_LIMIT_BYTES = 1 << 31
EMBED_LIMIT_BYTES = 1 << 30  #: above this, weights go into an external data file (protobuf ends at 2 GiB)


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
        proto = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError, ValueError, json_format.Error, text_format.ParseError, onnx.parser.ParseError) as err:
        raise UserError(f"{path}: not a readable ONNX model (truncated or another format): {first_line(err)}") from err
    if not proto.HasField("graph") or not proto.opset_import:
        raise UserError(f"{path}: not an ONNX model: it has no graph or no opset import")
    return from_proto(proto, source=str(path), folder=path.parent)


def from_proto(proto: onnx.ModelProto, *, source: str = "model", folder: Path | None = None) -> ir.Model:
    """Check a protobuf and turn it into an ``onnx_ir`` model.

    Args:
        proto: the model; not changed.
        source: what error messages call it.
        folder: where its external data lies; None for a model whose data is all inside.

    Raises:
        UserError: as :func:`load`.
    """
    check_versions(proto, source)
    check_external_data(proto, source, folder)
    try:
        onnx.checker.check_model(str(source) if folder is not None and Path(source).is_file() else proto)
    except (onnx.checker.ValidationError, ValueError) as err:
        raise UserError(f"{source}: not a valid ONNX model: {first_line(err)}") from err
    check_tensors(proto, source)
    proto = densified(proto, source)
    try:
        model = ir.serde.deserialize_model(proto)
    except Exception as err:  # onnx_ir wraps whatever it met in its own and other types
        raise UserError(f"{source}: cannot be read as a graph: {first_line(err)}") from err
    if folder is not None:
        for graph in graphs_of(model):
            ir.external_data.set_base_dir(graph, str(folder))
    check_graphs(model, source)
    _forget_made_up_names(model.graph, proto.graph.node)
    for function, function_proto in zip(model.functions.values(), proto.functions, strict=True):
        _forget_made_up_names(function.graph, function_proto.node)
    return model


def _forget_made_up_names(graph: ir.Graph, protos: Sequence[onnx.NodeProto]) -> None:
    """Leave nameless nodes nameless: onnx_ir gives them names of its own, which would only make the file larger."""
    for node, proto in zip(graph, protos, strict=True):
        if not proto.name:
            node.name = ""
        for attribute in proto.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _forget_made_up_names(node.attributes[attribute.name].as_graph(), attribute.g.node)


def serialize(model: ir.Model) -> onnx.ModelProto:
    """Return the protobuf of a model without what onnx_ir 1.1 writes twice: metadata of tensors, their shapes."""
    proto = ir.serde.serialize_model(model)
    for tensor in onnx.external_data_helper._get_all_tensors(proto):
        if len(tensor.metadata_props) > 1:
            entries = {entry.key: entry.value for entry in tensor.metadata_props}
            del tensor.metadata_props[:]
            for key, value in entries.items():
                tensor.metadata_props.add(key=key, value=value)
    _drop_doubled_info(proto.graph)
    return proto


def _drop_doubled_info(graph: onnx.GraphProto) -> None:
    """Drop the types and shapes of initializers, which the tensors themselves have."""
    tensors = {tensor.name for tensor in graph.initializer}
    kept = [info for info in graph.value_info if info.name not in tensors]
    if len(kept) < len(graph.value_info):
        del graph.value_info[:]
        graph.value_info.extend(kept)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _drop_doubled_info(attribute.g)


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """Return the protobuf of a model, with external weights read in.

    Raises:
        UserError: the weights do not fit in one protobuf message.
    """
    if weight_bytes(model) > EMBED_LIMIT_BYTES:
        raise UserError("model: over 1 GiB of weights do not fit in one protobuf; save it to a file")
    return serialize(_embedded(model))


def _embedded(model: ir.Model) -> ir.Model:
    if not has_external_data(model):
        return model
    copy = copied(model)
    for graph in graphs_of(copy):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _read_in(value.const_value)
    return copy


def has_external_data(model: ir.Model) -> bool:
    """Tell whether any initializer's bytes lie in a file of their own."""
    return any(isinstance(v.const_value, ir.ExternalTensor) for g in graphs_of(model) for v in g.initializers.values())


def weight_bytes(model: ir.Model) -> int:
    """Return the bytes of all initializers, without reading them."""
    tensors = (v.const_value for g in graphs_of(model) for v in g.initializers.values())
    return sum(t.nbytes for t in tensors if t is not None and t.dtype != ir.DataType.STRING)


def written_bytes(model: ir.Model, original: ir.Model | None = None) -> int:
    """Return the bytes that a model's file would have, external weights counted, without writing or reading them.

    Args:
        model: not changed.
        original: what it was made from, as for :func:`without_inferred`.
    """
    proto, stubbed_bytes = skeleton(model), large_bytes(model)
    declared = _declared(original)
    kept = [info for info in proto.graph.value_info if info.name in declared]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)
    return stubbed_bytes + int(proto.ByteSize())


def _declared(original: ir.Model | None) -> set[str | None]:
    """Return the names of inner values whose type a model gives."""
    if original is None:
        return set()
    return {v.name for g in graphs_of(original) for n in g for v in n.outputs if v.type is not None}


def without_inferred(model: ir.Model, original: ir.Model | None = None) -> ir.Model:
    """Return a copy without the types and shapes that follow from inputs and operators: they only make files larger.

    Kept are the outputs of operators that onnx does not know, and what ``original`` declared for values still there.
    """
    declared = _declared(original)
    copy = copied(model)
    for graph in graphs_of(copy):
        for node in graph:
            if node.domain not in ("", "ai.onnx") or any(v.name in declared for v in node.outputs):
                continue
            for value in node.outputs:
                if not value.is_graph_output():
                    value.type = value.shape = None
    if original is not None:  # the interface stays as it was declared, though more may be known of it now
        for value, was in zip(copy.graph.outputs, original.graph.outputs, strict=True):
            if not value.is_graph_input() and not value.is_initializer():
                value.shape = was.shape
    return copy


def file_bytes(path: str | os.PathLike[str]) -> int:
    """Return the bytes of a model file and of the external data files that it names."""
    return sum(file.stat().st_size for file in model_files(Path(path)))


def model_files(path: Path) -> list[Path]:
    """Return the model file and the external data files that it names and that exist."""
    proto = onnx.load(path, load_external_data=False)
    files = {path: None}
    for tensor in onnx.external_data_helper._get_all_tensors(proto):
        if onnx.external_data_helper.uses_external_data(tensor):
            file = path.parent / onnx.external_data_helper.ExternalDataInfo(tensor).location
            if file.is_file():
                files[file] = None
    return list(files)


def save(
    model: ir.Model, path: str | os.PathLike[str], *, inputs: Sequence[Path] = (), external: bool = False
) -> list[Path]:
    """Write a model whole or not at all, and return the files that it consists of.

    The bytes go to ``.NAME.partial`` beside the target (one name, so that killed runs leave at most one such file),
    are flushed to disk and moved into place. External weights go to ``NAME.data``; those that lie in files are copied
    from file to file. The ``NAME.data`` of the model that is replaced is removed.

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
        stale = data if data in _named_by(path) else None
        placed: Mapping[int, ir.TensorProtocol] = {}
        if external or weight_bytes(model) > EMBED_LIMIT_BYTES:
            placed = write_weights(model, partial_data, data.name, path.parent)
            partial.write_bytes(_with_weights(model, placed).SerializeToString(deterministic=True))
            _flush(partial)
            if placed:
                _flush(partial_data)
                path.unlink(missing_ok=True)  # an old model must never stand beside new weights
                os.replace(partial_data, data)
                stale = None
        else:
            partial.write_bytes(serialize(_embedded(model)).SerializeToString(deterministic=True))
            _flush(partial)
        os.replace(partial, path)
        if stale is not None:
            stale.unlink(missing_ok=True)  # weights of the model that was just replaced
        return [path, data] if placed else [path]
    except OSError as err:
        raise UserError(f"{path}: cannot be written: {first_line(err)}") from err
    finally:
        for leftover in (partial, partial_data):
            _remove(leftover)


def _named_by(path: Path) -> list[Path]:
    """Return the files of the model at a path; none where there is no model."""
    if not path.is_file():
        return []
    try:
        return model_files(path)
    except (DecodeError, OSError, ValueError, json_format.Error, text_format.ParseError, onnx.parser.ParseError):
        return []


def _with_weights(model: ir.Model, placed: Mapping[int, ir.TensorProtocol]) -> onnx.ModelProto:
    """Return the protobuf of a model with other tensors in place of some, given by ``id``; all others are embedded."""
    copy = copied(model)
    for graph in graphs_of(copy):
        for value in graph.initializers.values():
            value.const_value = placed.get(id(value.const_value), value.const_value)
            if isinstance(value.const_value, ir.ExternalTensor) and value.const_value.nbytes < MIN_BYTES:
                value.const_value = _read_in(value.const_value)
    return serialize(copy)


def _read_in(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    """Return a tensor whose bytes are in memory."""
    return ir.Tensor(
        np.array(tensor.numpy()),
        dtype=tensor.dtype,
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data)
        _flush(partial)
        os.replace(partial, path)
    except OSError as err:
        raise UserError(f"{path}: cannot be written: {first_line(err)}") from err
    finally:
        _remove(partial)


def _remove(file: Path) -> None:
    with contextlib.suppress(OSError):  # it may lie where nothing can be written; that was said before
        file.unlink()


def data_file(path: Path) -> Path:
    """Return where the external weights of a model lie that is saved to ``path``."""
    return path.with_name(path.name + ".data")


def refuse_overwrite(path: Path, inputs: Iterable[Path]) -> None:
    """Refuse a path to write to that is no file, lies in no folder that can be written to, or is an input.

    Args:
        path: where something is to be written.
        inputs: files, under any name, and folders of files that must stay as they are.

    Raises:
        UserError: with the reason.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name the output file")
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is a device or a pipe, no file that could be replaced; name the output file")
    if not path.parent.is_dir():
        raise UserError(f"{path}: no such folder {str(path.parent)!r}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"{path}: the folder {str(path.parent)!r} cannot be written to")
    if not path.exists():
        return
    for source in inputs:
        if source.exists() and (path.samefile(source) or (source.is_dir() and _lies_in(path, source))):
            raise UserError(f"{path}: is the input; the input is never overwritten, choose another output")


def _lies_in(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def runnable_bytes(model: ir.Model | onnx.ModelProto | Path) -> Iterator[bytes | str]:
    """Yield what an ONNX Runtime session can be made from: bytes, or the path of a file while the context lasts."""
    if isinstance(model, Path):
        yield str(model)
    elif isinstance(model, onnx.ModelProto):
        yield model.SerializeToString()
    elif weight_bytes(model) <= EMBED_LIMIT_BYTES:
        yield serialize(_embedded(model)).SerializeToString()
    else:
        with scratch_directory() as folder:
            placed = write_weights(model, folder / "model.data", "model.data", folder)
            (folder / "model.onnx").write_bytes(_with_weights(model, placed).SerializeToString())
            yield str(folder / "model.onnx")


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """Yield a folder that is gone afterwards; what killed runs left behind is removed when the next one starts."""
    root = Path(tempfile.gettempdir()) / f"onnxedge-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
    root.mkdir(mode=0o700, exist_ok=True)
    for stale in root.iterdir():
        if not _is_running(stale.name.split("-")[0]):
            shutil.rmtree(stale, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_running(pid: str) -> bool:
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
