"""The cases of ``onnx.backend.test`` that ONNX Runtime runs, each taken through ``fold,fuse`` and compared.

A case is a model with inputs and the outputs that the standard says it has. What counts is what ONNX Runtime makes of
the original model: behind ``fold`` the outputs must be the same bits, behind ``fuse`` within :data:`ROUNDING`.
"""

from __future__ import annotations

import ctypes
import functools
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import numpy_helper
from onnx.backend.test import loader

import onnxedge
from onnxedge.api import to_proto
from onnxedge.errors import OnnxEdgeError, UserError
from onnxedge.report.records import PassRecord
from onnxedge.samples import Samples

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
TARGETS = ("ort-cpu", "generic")
#: Largest error behind ``fuse``, as a share of the largest output: float arithmetic in another order.
ROUNDING = {"float64": 1e-12, "float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}
HALF = ("float16", "bfloat16")  #: the CPU runtime computes these in 32 bits and rounds wherever two nodes meet
_NEWEST = (13, 26)  #: IR version and opset that ONNX Runtime 1.31 reads
_FIRST_DEFAULTS = 4  #: IR version in which an initializer that is an input is a default
_LEVELS = {
    "disable": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
Outputs = Mapping[str, Any]  #: name -> array, list of arrays for a sequence, None for an empty optional


@dataclass(frozen=True)
class Case:
    """Hold a model, its inputs by name, and the expected outputs in order with their tolerance."""

    name: str
    model: onnx.ModelProto
    feeds: Sequence[Mapping[str, Any]]
    expected: Sequence[Sequence[Any]]
    rtol: float
    atol: float


@dataclass
class Outcome:
    """Tell how a case went.

    Attributes:
        skipped: why ONNX Runtime does not run the original; empty where it does.
        unrepeatable: the original's outputs differ from run to run, so that they are not compared.
        faults: what is wrong, each with the target and the step.
        fused: target -> rewrites by rule, of ``fuse``.
    """

    skipped: str = ""
    unrepeatable: bool = False
    faults: list[str] = field(default_factory=list)
    fused: dict[str, dict[str, int]] = field(default_factory=dict)


@functools.cache
def cases() -> tuple[Case, ...]:
    """Return all cases with their data, by name; those that would have to be downloaded are left out."""
    found: list[Case] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnx computes infinities on purpose
        for kind in KINDS:
            for test in loader.load_model_tests(kind=kind):
                model = test.model if test.model is not None else onnx.load(Path(test.model_dir) / "model.onnx")
                data = test.data_sets if test.data_sets is not None else list(_stored(Path(test.model_dir), model))
                names = [value.name for value in model.graph.input]
                feeds = [dict(zip(names, map(_plain, inputs), strict=False)) for inputs, _ in data]
                expected = [[_plain(item) for item in outputs] for _, outputs in data]
                found.append(Case(test.name, _readable(model), feeds, expected, test.rtol, test.atol))
    return tuple(sorted(found, key=lambda case: case.name))


def _stored(folder: Path, model: onnx.ModelProto) -> Iterator[tuple[list[Any], list[Any]]]:
    for data in sorted(folder.glob("test_data_set_*")):
        yield (
            [_load(data / f"input_{i}.pb", value.type) for i, value in _with_file(data, "input", model.graph.input)],
            [_load(data / f"output_{i}.pb", value.type) for i, value in _with_file(data, "output", model.graph.output)],
        )


def _with_file(folder: Path, side: str, values: Sequence[onnx.ValueInfoProto]) -> list[tuple[int, Any]]:
    return [(i, value) for i, value in enumerate(values) if (folder / f"{side}_{i}.pb").exists()]


def _load(file: Path, kind: onnx.TypeProto) -> Any:
    if kind.HasField("sequence_type"):
        sequence = onnx.SequenceProto()
        sequence.ParseFromString(file.read_bytes())
        return numpy_helper.to_list(sequence)
    tensor = onnx.TensorProto()
    tensor.ParseFromString(file.read_bytes())
    return tensor


def _plain(item: Any) -> Any:
    if isinstance(item, onnx.TensorProto):
        return numpy_helper.to_array(item)
    if isinstance(item, list | tuple):
        return [_plain(part) for part in item]
    return np.asarray(item) if item is not None else None


def _readable(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model of a version that ONNX Runtime reads; where operators are newer it stays as it is."""
    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    lowered.ir_version = min(model.ir_version, _NEWEST[0])
    for entry in lowered.opset_import:
        if entry.domain == "":
            entry.version = min(entry.version, _NEWEST[1])
    try:
        onnx.checker.check_model(lowered)
    except onnx.checker.ValidationError:
        return model
    return lowered


def run(model: onnx.ModelProto, feeds: Sequence[Mapping[str, Any]], level: str = "disable") -> list[Outputs]:
    """Return the outputs of a model for each feed; raises whatever ONNX Runtime does."""
    options = ort.SessionOptions()
    options.graph_optimization_level = _LEVELS[level]
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    taken = {value.name for value in session.get_inputs()} | {v.name for v in session.get_overridable_initializers()}
    exotic = any(re.search(r"bfloat|float8|float4|int4|int2", output.type) for output in session.get_outputs())
    results = []
    for feed in feeds:
        fed = {name: _ort_value(item) for name, item in feed.items() if name in taken}
        if exotic and not any(isinstance(item, list) or item is None for item in fed.values()):
            made = ort.OrtValue.ortvalue_from_numpy
            fed = {k: v if isinstance(v, ort.OrtValue) else made(v) for k, v in fed.items()}
            outputs = [_bits(value) for value in session.run_with_ort_values(names, fed)]
        else:
            outputs = session.run(names, fed)
        results.append(dict(zip(names, outputs, strict=True)))
    return results


def runs(case: Case) -> bool:
    """Tell whether ONNX Runtime runs a case as it is."""
    try:
        run(case.model, case.feeds)
    except Exception:  # the runtime's exceptions share no base
        return False
    return True


def _ort_value(item: Any) -> Any:
    """Return an array as the runtime takes it: types that numpy does not have go in as bits."""
    if not isinstance(item, np.ndarray) or (item.dtype.kind in "fiubOU" and item.dtype.isbuiltin == 1):
        return item
    kind = onnx.helper.np_dtype_to_tensor_dtype(item.dtype)
    if ir.DataType(kind).bitwidth < 8:
        packed = numpy_helper.from_array(item)
        value = ort.OrtValue.ortvalue_from_shape_and_type(list(item.shape), kind)
        ctypes.memmove(value.data_ptr(), packed.raw_data, len(packed.raw_data))
        return value
    bits = np.ascontiguousarray(item).view(f"uint{8 * item.dtype.itemsize}")
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits.reshape(item.shape), kind)


def _bits(value: ort.OrtValue) -> Any:
    """Return the array of an output, of ``ml_dtypes`` where numpy has no such type."""
    if not value.is_tensor():
        return value.numpy()
    kind = value.element_type()
    if kind == onnx.TensorProto.STRING:
        return value.numpy()
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes()) if np.prod(value.shape()) else b""
    return numpy_helper.to_array(onnx.TensorProto(data_type=kind, dims=value.shape(), raw_data=raw))


def conform(case: Case, targets: Sequence[str] = TARGETS) -> Outcome:
    """Take a case through ``fold`` and then, for each target, ``fuse``, and compare what comes out of each."""
    outcome = Outcome()
    try:
        reference = run(case.model, case.feeds)
    except Exception as err:  # the runtime's exceptions share no base
        outcome.skipped = str(err).split("\n")[0]
        return outcome
    outcome.unrepeatable = not _equal(reference, run(case.model, case.feeds))
    folded = None
    for target in targets:
        step = "fold"
        try:
            if folded is None or case.model.ir_version < _FIRST_DEFAULTS:  # else what folds is the same for each target
                folded, record = optimized(case, case.model, step, target, runs=not outcome.unrepeatable)
                found = _faults(case, folded, record, reference, target, outcome)
                outcome.faults += [f"{target}: {step}: {fault}" for fault in found]
            step = "fuse"
            fused, record = optimized(case, folded, step, target, runs=not outcome.unrepeatable)
            found = _faults(case, fused, record, reference, target, outcome)
            outcome.faults += [f"{target}: {step}: {fault}" for fault in found]
            outcome.fused[target] = {name: int(count) for name, count in record.figures.items() if count}
            step = "second run"
            for name in ("fold", "fuse") if fused.graph != case.model.graph else ():
                _, record = optimized(case, fused, name, target, runs=False)
                if record.rewrites:
                    outcome.faults.append(f"{target}: a second run of {name} rewrites: {record.summary}")
            step = "as run"
            outcome.faults += [f"{target}: {step}: {fault}" for fault in _faults_as_run(case, fused, outcome)]
        except OnnxEdgeError as err:
            outcome.faults.append(f"{target}: {step}: refused: {err}")
        except Exception as err:  # a crash is what this looks for
            outcome.faults.append(f"{target}: {step}: raised {type(err).__name__}: {err}")
    return outcome


def conversion(case: Case, opset: int) -> Iterator[str]:
    """Yield what is wrong with a case at another opset, where ONNX Runtime runs it and it is not refused."""
    try:
        reference = run(case.model, case.feeds)
    except Exception:  # the runtime's exceptions share no base
        return
    try:
        model, record = optimized(case, case.model, f"convert(opset={opset})", "ort-cpu", runs=False)
    except UserError:
        return
    except Exception as err:  # a crash is what this looks for
        yield f"raised {type(err).__name__}: {err}"
        return
    if record.status != "applied":
        return
    yield from _validity(case.model, model)
    yield from _interface(case.model, model)
    try:
        yield from _differences(reference, run(model, case.feeds), exact=False)
    except Exception as err:  # as above
        yield f"does not run: {err}"


def optimized(
    case: Case, model: onnx.ModelProto, step: str, target: str, *, runs: bool
) -> tuple[onnx.ModelProto, PassRecord]:
    """Return what :func:`onnxedge.optimize` makes of a model, verified on the case's own inputs."""
    items = [item for feed in case.feeds for item in feed.values()]
    fit = all(isinstance(item, np.ndarray) and item.dtype.isbuiltin == 1 for item in items)
    samples = Samples(None, None, list(case.feeds) if fit and runs else ())
    with mock.patch("onnxedge.driver.open_samples", return_value=samples):
        done = onnxedge.optimize(model, step, target=target)
    return to_proto(done.model), done.report.passes[0]


def _faults(
    case: Case, model: onnx.ModelProto, record: PassRecord, reference: list[Outputs], target: str, outcome: Outcome
) -> Iterator[str]:
    """Yield what is wrong with the model behind one pass."""
    if record.status == "rolled back":
        yield f"rolled back: {record.reason}"
    if record.status != "applied":
        return
    yield from _validity(case.model, model)
    yield from _interface(case.model, model)
    yield from _operators(case.model, model, target)
    if not outcome.unrepeatable:
        outputs = run(model, case.feeds)
        yield from _differences(reference, outputs, exact=record.accuracy == "exact" and not _has_half(case.model))
        if not _unexpected(case, reference):
            yield from _unexpected(case, outputs)


def _faults_as_run(case: Case, model: onnx.ModelProto, outcome: Outcome) -> Iterator[str]:
    """Yield how the model differs from the original where both run as users run them, at the runtime's full level."""
    if outcome.unrepeatable or model.graph == case.model.graph:
        return
    try:
        reference = run(case.model, case.feeds, "all")
    except Exception:  # a fault of the runtime's own
        return
    yield from _differences(reference, run(model, case.feeds, "all"), exact=False)


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    stack = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while stack:
        node = stack.pop()
        yield node
        for attribute in node.attribute:
            stack.extend(attribute.g.node)


def _validity(before: onnx.ModelProto, after: onnx.ModelProto) -> Iterator[str]:
    """Yield how a model is not valid: by the checker, and by inference in earnest where the original passes that."""
    try:
        onnx.checker.check_model(after)
        if not any(node.op_type == "Einsum" for node in _nodes(before)):  # onnx's inference may never return
            try:
                onnx.checker.check_model(before, full_check=True)
            except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
                return
            onnx.checker.check_model(after, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
        yield f"not valid: {err}"


def _interface(before: onnx.ModelProto, after: onnx.ModelProto) -> Iterator[str]:
    """Yield how inputs and outputs changed; below IR version 4 initializers are listed but cannot be fed."""
    weights = {tensor.name for tensor in before.graph.initializer} if before.ir_version < _FIRST_DEFAULTS else set()
    for side in ("input", "output"):
        old, new = ([(v.name, v.type) for v in getattr(model.graph, side)] for model in (before, after))
        if side == "input":
            old, new = ([entry for entry in entries if entry[0] not in weights] for entries in (old, new))
        if old != new:
            yield f"{side}s were {old}, are {new}"


def _operators(before: onnx.ModelProto, after: onnx.ModelProto, target: str) -> Iterator[str]:
    """Yield operators that a target may not get: ``generic`` has standard ones alone, of the model's own opset."""
    if target != "generic":
        return
    old, new = ({entry.domain: entry.version for entry in model.opset_import} for model in (before, after))
    if old != new:
        yield f"opset imports were {old}, are {new}"
    known = {(node.domain, node.op_type) for node in _nodes(before)}
    for node in _nodes(after):
        if node.domain and (node.domain, node.op_type) not in known:
            yield f"emits {node.domain}::{node.op_type}"


def _has_half(model: onnx.ModelProto) -> bool:
    half = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    casts = (a.i for node in _nodes(model) if node.op_type == "Cast" for a in node.attribute if a.name == "to")
    return any(v.type.tensor_type.elem_type in half for v in values) or any(to in half for to in casts)


def _equal(first: list[Outputs], second: list[Outputs]) -> bool:
    return not list(_differences(first, second, exact=True))


def _unexpected(case: Case, outputs: list[Outputs]) -> list[str]:
    """Return how outputs differ from those that the standard expects."""
    faults = []
    for wanted, found in zip(case.expected, outputs, strict=False):
        for item, (name, value) in zip(wanted, found.items(), strict=False):
            faults += [f"not as the standard expects: {f}" for f in _apart(name, item, value, case.rtol, case.atol)]
    return faults


def _differences(first: list[Outputs], second: list[Outputs], *, exact: bool) -> Iterator[str]:
    for old, new in zip(first, second, strict=True):
        if list(old) != list(new):
            yield f"outputs {list(old)} became {list(new)}"
            return
        for name, value in old.items():
            yield from _apart(name, value, new[name], None if exact else 0.0, 0.0)


def _apart(name: str, old: Any, new: Any, rtol: float | None, atol: float) -> Iterator[str]:
    """Yield how two outputs differ.

    Args:
        name: of the output.
        old, new: arrays, sequences, or None.
        rtol: None for the same bits; 0 for :data:`ROUNDING` of the largest element; else relative to each element.
        atol: absolute, beside ``rtol``.
    """
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (mine, other) in enumerate(zip(old, new, strict=True)):
            yield from _apart(f"{name}[{index}]", mine, other, rtol, atol)
        return
    if not isinstance(old, np.ndarray) or not isinstance(new, np.ndarray):
        if type(old) is not type(new) or (not isinstance(old, list) and old != new):
            yield f"{name}: {_shown(old)} became {_shown(new)}"
        return
    if old.shape != new.shape or (old.dtype != new.dtype and not {old.dtype.kind, new.dtype.kind} <= set("OUT")):
        yield f"{name}: {_shown(old)} became {_shown(new)}"
        return
    if rtol is None or old.dtype.kind in "OUTiub" or old.dtype.name not in ROUNDING:
        if not _same_bits(old, new):
            yield f"{name}: another value{_distance(old, new)}"
        return
    a, b = old.astype(np.float64), new.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        yield f"{name}: values that are not finite changed"
        return
    if rtol == 0.0:
        tolerance = ROUNDING[old.dtype.name] * np.abs(a[finite]).max(initial=1e-30)
        close = bool((np.abs(a[finite] - b[finite]) <= tolerance).all())
    else:
        close = np.allclose(b[finite], a[finite], rtol=max(rtol, 2**-6) if old.dtype.name in HALF else rtol, atol=atol)
    if not close:
        yield f"{name}: another value{_distance(old, new)}"


def _same_bits(old: np.ndarray, new: np.ndarray) -> bool:
    """Compare bits; one NaN is as good as another."""
    if old.dtype.kind in "OUT":
        return bool(np.array_equal(old.astype(str), new.astype(str)))
    if old.dtype.kind in "fcV" and old.dtype.name not in ("bool",):
        with np.errstate(invalid="ignore"):
            wide_old, wide_new = old.astype(np.float64), new.astype(np.float64)
        return np.array_equal(wide_old, wide_new, equal_nan=True) and np.array_equal(
            np.signbit(wide_old[wide_old == 0]), np.signbit(wide_new[wide_old == 0])
        )
    return np.array_equal(old, new)


def _distance(old: np.ndarray, new: np.ndarray) -> str:
    if old.dtype.kind not in "fiu":
        return ""
    with np.errstate(invalid="ignore"):
        error = np.abs(old.astype(np.float64) - new.astype(np.float64))
    return f", by {np.nanmax(error, initial=0.0):.3g} at {np.nanmax(np.abs(old.astype(np.float64)), initial=0.0):.3g}"


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return f"{len(value)} items" if isinstance(value, list) else repr(value)
