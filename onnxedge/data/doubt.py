"""A second look at data that fits a model by shape and type, but perhaps not by value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxedge.data.dataset import Data
from onnxedge.data.facts import Facts, facts_of
from onnxedge.data.moments import normalization_after, weight_of
from onnxedge.model.edit import forked
from onnxedge.runtime import CannotRun, Feed, InputSpec, Session

Array = np.ndarray[Any, Any]

_FACTOR = 6.0  #: deviations differ this much, or means by so many deviations, where preprocessing was forgotten
_FEW = 4  #: samples under which ranges and statistics are a guess
#: the first contraction's deviation over its bias: 0.3 to 13 on the zoo's right data, 20 to 3,000 on bytes instead
_TOO_LARGE, _TOO_SMALL = 15.0, 1 / 25
_LOUD = 4.0  #: and the deviation itself: 0.1 to 1.4 on right data, 7 to 300 on bytes instead
_BYTE, _WORD, _UNIT = 64.0, 1000.0, 8.0  #: raw bytes and raw audio reach beyond the first two, scaled data no unit
_LEAST_SIDE = 8  #: of an image whose order in memory can be told
_HELD_BYTES = 64 << 20  #: of samples looked at


def data_doubts(model: ir.Model, data: Data, samples: int = 32) -> Iterator[str]:
    """Say what is strange about given data, one line each; synthetic data is not looked at.

    Args:
        model: whose inputs the data is for, with shapes inferred.
        data: what will be fed.
        samples: how many are looked at.

    Raises:
        UserError: a sample holds NaN or infinity, or does not fit.
    """
    if data.synthetic:
        return
    feeds = _some(data, samples)
    if len(feeds) < _FEW and len(data.slice(0, _FEW)) < _FEW:
        yield f"only {len(data)} to fit on: what is learned from so few samples is a guess; give 32 or more"
    constants = {name: _only_value([feed[name] for feed in feeds]) for name in feeds[0]}
    if None not in constants.values():
        said = ", ".join(f"{name!r} is {value:g}" for name, value in list(constants.items())[:3])
        yield f"the first {len(feeds)} samples are constant ({said} all over); give real samples"
        return
    if len(feeds) > 1 and all(_equal(feed, feeds[0]) for feed in feeds[1:]):
        yield f"the first {len(feeds)} samples are all the same; give samples that differ"
    values = {value.name: value for value in model.graph.inputs}
    for spec in data.inputs:
        if spec.name in values and all(feed[spec.name].size and feed[spec.name].dtype.kind in "iuf" for feed in feeds):
            facts = facts_of(values[spec.name])
            value_doubt = _moments_doubt(spec, facts, feeds) or _bias_doubt(model, spec, facts, feeds)
            yield from (doubt for doubt in (_order_doubt(spec, feeds), value_doubt) if doubt is not None)


def size_trouble(model: ir.Model, data: Data) -> str | None:
    """Say where an axis that the model leaves open has another size in the data than the first weight needs.

    Args:
        model: that does not run on the data.
        data: given samples.
    """
    values = {value.name: value for value in model.graph.inputs}
    feed = next(data.feeds(1, 1))
    for spec in data.inputs:
        shape = feed[spec.name].shape
        sizes = facts_of(values[spec.name]).sizes if spec.name in values else {}
        for axis, size in sizes.items():
            if axis >= len(shape) or shape[axis] == size:
                continue
            hint = ""
            if len(shape) == 4 and axis in (1, 3) and shape[4 - axis] == size:
                come, wanted = ("NHWC", "NCHW") if axis == 1 else ("NCHW", "NHWC")
                hint = f"; looks like {come}; add layout={wanted} to --preprocess"
            trouble = f"axis {axis} has {shape[axis]} entries, needs {size}{hint}"
            return f"{data.source}: input {spec.name!r}: {trouble}"
    return None


def _some(data: Data, samples: int) -> list[Feed]:
    feeds: list[Feed] = []
    held = 0
    for feed in data.feeds(1, samples):
        feeds.append(feed)
        held += sum(array.nbytes for array in feed.values())
        if held > _HELD_BYTES:
            break
    return feeds


def _only_value(arrays: list[Array]) -> float | None:
    """Return the number that all elements are, None where they differ or are no numbers."""
    if arrays[0].dtype.kind not in "biuf" or not all(array.size for array in arrays):
        return None
    low, high = min(array.min() for array in arrays), max(array.max() for array in arrays)
    return float(low) if low == high else None


def _equal(first: Feed, second: Feed) -> bool:
    return all(np.array_equal(array, second[name]) for name, array in first.items())


def _order_doubt(spec: InputSpec, feeds: list[Feed]) -> str | None:
    """Say where images lie in memory in the other order than the model takes: reshaped, not transposed.

    Where the channels of a pixel stand side by side, each third step is to the same channel of the next pixel: it is
    another step than the two in between, and no larger than that from pixel to pixel. Where each channel is a plane
    of its own, three steps go further than any one.
    """
    arrays = [feed[spec.name] for feed in feeds if feed[spec.name].ndim == 4 and feed[spec.name].dtype.kind in "fu"]
    if len(arrays) < len(feeds):
        return None
    _, first, second, third = arrays[0].shape
    wanted = "NCHW" if first in (3, 4) and third not in (3, 4) else "NHWC" if third in (3, 4) else ""
    channels, sides = (first, (second, third)) if wanted == "NCHW" else (third, (first, second))
    if not wanted or channels in sides or min(sides) < _LEAST_SIDE:
        return None
    steps, strides = np.zeros(channels), 0.0
    for array in arrays:
        flat = array.reshape(len(array), -1).astype(np.float64)
        squares = np.diff(flat, axis=1) ** 2
        steps += [squares[:, phase::channels].mean() for phase in range(channels)]
        strides += float(((flat[:, channels:] - flat[:, :-channels]) ** 2).mean())
    others = np.sort(steps)[:-1].mean()
    come = ""
    if strides > 1.5 * steps.max():
        come = "NCHW"
    elif steps.max() > 2.0 * others or strides < 0.6 * steps.mean():
        come = "NHWC"
    if come in ("", wanted):
        return None
    how = "were they reshaped instead of transposed?"
    return f"input {spec.name!r}: the images lie in memory like {come}, the model takes {wanted}; {how}"


def _moments_doubt(spec: InputSpec, facts: Facts, feeds: list[Feed]) -> str | None:
    """Say where values are far from those that the model's own first normalization was trained on.

    The statistics of a BatchNormalization count as evidence; None where there is none, or the values are near.
    """
    moments = facts.moments
    if moments is None or not moments.measured:
        return None
    fed = np.concatenate([feed[spec.name].reshape(-1) for feed in feeds]).astype(np.float64)
    mean, std = float(fed.mean()), max(float(fed.std()), 1e-9)
    wanted_mean = float(moments.mean.mean())
    wanted_std = float(np.sqrt((moments.std**2).mean() + moments.mean.var()))
    ratio = max(std / wanted_std, wanted_std / std)
    if ratio > _FACTOR or abs(mean - wanted_mean) > _FACTOR * max(std, wanted_std):
        return (
            f"input {spec.name!r}: the data has mean {mean:.3g} and deviation {std:.3g}, the model was trained on "
            f"about {wanted_mean:.3g} and {wanted_std:.3g}; is --preprocess (scale, mean, std) right?"
        )
    return None


def _bias_doubt(model: ir.Model, spec: InputSpec, facts: Facts, feeds: list[Feed]) -> str | None:
    """Say where bytes (or 16-bit audio) come and the first contraction's bias drowns in them, or small numbers in it.

    A bias that was trained, or that a normalization was folded into, is about as large as what it is added to.
    """
    node, moments = facts.contraction, facts.moments
    if node is None or node.graph is not model.graph or (moments is not None and moments.measured):
        return None
    arrays = [feed[spec.name] for feed in feeds]
    low, high = min(float(array.min()) for array in arrays), max(float(array.max()) for array in arrays)
    bias = weight_of(node.inputs[2]) if len(node.inputs) > 2 else None
    _, extra = normalization_after(node.outputs[0])
    size = float(np.median(np.abs(extra + (0.0 if bias is None else bias.reshape(-1)))))
    are_raw = (low >= 0 and high > _BYTE) or high > _WORD
    if size == 0.0 or not (are_raw or max(-low, high) < _UNIT):
        return None
    deviation = _deviation(model, node, feeds)
    ratio = deviation / size
    if (are_raw and ratio > _TOO_LARGE and deviation > _LOUD) or (not are_raw and 0.0 < ratio < _TOO_SMALL):
        which = "times" if are_raw else "of"
        hint = "scale" if not are_raw else "scale=1/255, mean, std" if high <= 255 else "scale=1/32768"
        makes = f"makes the first {node.op_type} {ratio:.3g} {which} its bias"
        lies = f"the data lies in {low:.3g}..{high:.3g}"
        return f"input {spec.name!r}: {lies}, which {makes}; is --preprocess ({hint}) right?"
    return None


def _deviation(model: ir.Model, node: ir.Node, feeds: list[Feed]) -> float:
    """Return the median over channels of a contraction's deviation on the data, 0 where it cannot run alone."""
    copy, (output,) = forked(model, [node.outputs[0]])
    copy.graph.outputs[:] = [output]
    RemoveUnusedNodesPass()(copy)
    try:
        session = Session(copy, level="disable")
        arrays = [session.run(feed, [output.name or ""])[output.name or ""] for feed in feeds]
    except CannotRun:
        return 0.0
    axis = 1 if node.op_type == "Conv" else -1
    rows = [np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1) for array in arrays]
    return float(np.median(np.concatenate(rows, axis=1).std(axis=1, dtype=np.float64)))
