"""``int8(mode=dynamic)``: which products and LSTMs, what they gain, what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    CannotRun,
    Context,
    Feed,
    Quantization,
    Result,
    capture,
    constant,
    forked,
    is_standard,
    opset,
    weight_bytes,
)
from onnxedge_passes.quantize.costs import pays
from onnxedge_passes.quantize.emission import Emitter
from onnxedge_passes.quantize.fidelity import Reference
from onnxedge_passes.quantize.guard import Twins, say_what_went, within
from onnxedge_passes.quantize.layers import Layer, find_layers
from onnxedge_passes.quantize.storage import storable, store

from .write import Part, product_weight, recurrent_weight, write

_OPSET = 11  #: from which DynamicQuantizeLinear is there
_RECURRENT = ("LSTM", "GRU", "RNN")
_BATCH, _HELD_OUT, _SEEN = 8, 32, 8
_LEAST_HIDDEN = 32  #: below which an LSTM gains nothing


def quantize_dynamic(
    model: ir.Model, context: Context, *, samples: int, min_sqnr: float, skip: Sequence[str]
) -> Result:
    """Round weights to int8 and let the data of their products be rounded at run time, with a range for each run.

    Args:
        model: edited in place.
        context: for the target, samples and notes.
        samples: that are read, at most.
        min_sqnr: dB on held-out samples; short of it the worst products go back to float.
        skip: patterns of names of nodes that stay float.
    """
    rules = context.target.quantization
    if rules is None or not rules.dynamic:
        context.note(None, f"target {context.target.name} computes nothing on data that is rounded at run time")
        return Result()
    parts = _parts(model, rules, context, skip)
    data = context.calibration.slice(0, samples)
    seen, held = data.split(0.25) if len(data) >= 8 else (data, data)
    reference = Reference(model, list(held.feeds(_BATCH, limit=_HELD_OUT)), context)
    ranked = _ranked(model, parts, list(seen.feeds(_BATCH, limit=_SEEN)), rules, context)

    def on_copy(copy: ir.Model, twins: Twins, kept: Sequence[Part]) -> None:
        del copy
        write([part.on(twins) if isinstance(part, Layer) else twins[part] for part in kept], rules)

    kept, fidelity = within(ranked, reference, min_sqnr, on_copy)
    say_what_went(ranked, kept, min_sqnr, context, _node)
    if kept:
        context.note(None, "data is rounded over a whole batch: answers depend a little on what else is in it")
    before = weight_bytes(model)
    write([part for part in parts if part in kept], rules)  # in the graph's order
    stored = _store_others(model, rules, reference, min_sqnr, context)
    figures: dict[str, object] = {
        "integer_nodes": sum(len(part.nodes) if isinstance(part, Layer) else 1 for part in kept),
        "stored_weights": stored,
        "bytes_saved": before - weight_bytes(model),
    }
    texts = [f"{len(kept)} weights in integer kernels, data rounded at run time"] if kept else []
    texts += [f"{stored} weights stored as int8"] if stored else []
    if fidelity is not None and kept:
        figures["held_out_sqnr_db"] = round(fidelity.sqnr_db, 2)
        texts.append(f"{fidelity.sqnr_db:.1f} dB")
    return Result(rewrites=len(kept) + stored, summary=", ".join(texts) or "nothing to gain", figures=figures)


def _node(part: Part) -> ir.Node:
    return part.nodes[0] if isinstance(part, Layer) else part


def _parts(model: ir.Model, rules: Quantization, context: Context, skip: Sequence[str]) -> list[Part]:
    """Return what can compute on integers and gains by it, in the graph's order; the others are noted."""
    version = opset(model)
    products = [name for name in ("MatMul", "Gemm") if name in rules.dynamic]
    old = f"opset {version} has no DynamicQuantizeLinear; put `convert(opset=13)` first"
    form = "integers" if version >= _OPSET else old
    operators = [*products, *_RECURRENT]
    layers = find_layers(model, context, least=1, skip=skip, operators=operators, form=lambda _: form)
    chosen: list[Part] = []
    for layer in layers:
        if layer.dtype != np.float32:
            context.note(layer.nodes[0], "stays float: its weight is float16")
        elif not pays(layer, rules, "MatMul", boundary_ns=rules.boundary_ns):
            context.note(layer.nodes[0], "stays float: rounding its data takes longer than the integer product saves")
        else:
            chosen.append(layer)
    for node in model.graph:
        if not is_standard(node) or node.op_type not in _RECURRENT:
            continue
        reason = _lstm_refusal(node, rules, context)
        if any(fnmatchcase(node.name or "", pattern) for pattern in skip):
            reason = "as asked by skip"
        if reason:
            context.note(node, f"stays float: {reason}")
        else:
            chosen.append(node)
    order = {node: number for number, node in enumerate(model.graph)}
    return sorted(chosen, key=lambda part: order[_node(part)])


def _lstm_refusal(node: ir.Node, rules: Quantization, context: Context) -> str:
    """Return why a recurrent node stays float, empty where it need not."""
    kernel = f"DynamicQuantize{node.op_type}"
    if node.op_type not in rules.dynamic or not context.target.has_kernel(kernel, "com.microsoft"):
        return f"the target has no {node.op_type} with integer weights"
    weights = [constant(node.inputs[index]) for index in (1, 2)]
    if any(weight is None or weight.dtype != np.float32 for weight in weights):
        return "its weights are computed at run time, may be overridden, or are no float32"
    if not all(weight is not None and np.isfinite(weight).all() for weight in weights):
        return "its weights hold infinities or NaN"
    if node.attributes.get_int("layout", 0):
        return "its batch comes first (layout=1)"
    if weights[1] is not None and weights[1].shape[2] < _LEAST_HIDDEN:
        return f"fewer than {_LEAST_HIDDEN} hidden units gain nothing"
    return ""


def _ranked(
    model: ir.Model, parts: Sequence[Part], feeds: Sequence[Feed], rules: Quantization, context: Context
) -> list[Part]:
    """Return the parts, those first whose outputs are the noisiest share when data and weight are rounded."""
    layers = [part for part in parts if isinstance(part, Layer)]
    values = list(dict.fromkeys(layer.data for layer in layers if layer.data is not None))
    noise: dict[Part, list[float]] = {part: [0.0, 0.0] for part in parts}
    try:
        for arrays in capture(model, values, feeds[:1], threads=context.threads) if values else ():
            known = dict(zip(values, arrays, strict=True))
            for layer in layers:
                assert layer.data is not None
                rows = known[layer.data].reshape(-1, known[layer.data].shape[-1])
                exact = rows @ layer.matrix.T
                off = _rounded(rows) @ product_weight(layer, rules).restored() - exact
                noise[layer] = [float(np.square(off).sum()), float(np.square(exact).sum())]
    except CannotRun as err:
        context.note(None, f"parts are not ranked by their noise: {err}")
    for part in parts:
        if not isinstance(part, Layer):
            noise[part] = _weight_noise(part, rules)
    return sorted(parts, key=lambda part: noise[part][0] / max(noise[part][1], 1e-30), reverse=True)


def _rounded(rows: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> np.ndarray:
    """Return rows as DynamicQuantizeLinear leaves them."""
    low, high = min(float(rows.min(initial=0.0)), 0.0), max(float(rows.max(initial=0.0)), 0.0)
    step = np.float32((high - low) / 255 or 1.0)
    zero = np.rint(-low / step)
    return np.asarray((np.clip(np.rint(rows / step) + zero, 0, 255) - zero) * step, np.float32)


def _weight_noise(node: ir.Node, rules: Quantization) -> list[float]:
    noise = [0.0, 0.0]
    for index in (1, 2):
        array = constant(node.inputs[index])
        assert array is not None
        for direction, weight in zip(array, recurrent_weight(node, index, rules), strict=True):
            off = weight.restored() - direction.T
            noise = [noise[0] + float(np.square(off).sum()), noise[1] + float(np.square(direction).sum())]
    return noise


def _store_others(model: ir.Model, rules: Quantization, reference: Reference, min_sqnr: float, context: Context) -> int:
    """Store as int8 what is left in float, all or nothing, and count it."""
    names = {value.name for value, _ in storable(model)}
    if not names:
        return 0
    trial, _ = forked(model)
    store(trial, context, Emitter(trial, rules, "standard"), lambda value: value.name in names)
    if reference.usable and reference.compare(trial).sqnr_db < min_sqnr:
        context.note(None, f"other weights kept as float: stored as int8 they leave under min_sqnr={min_sqnr:g}")
        return 0
    count, _ = store(model, context, Emitter(model, rules, "standard"), lambda value: value.name in names)
    return count
