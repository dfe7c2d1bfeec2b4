"""Synthetic samples for a model that the user gave no data for."""

from __future__ import annotations

import itertools
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxedge import runtime
from onnxedge.data.dataset import Data, from_source
from onnxedge.data.facts import Facts, facts_of
from onnxedge.data.fit import Batching
from onnxedge.data.moments import STANDARD, Moments
from onnxedge.data.signals import sample
from onnxedge.data.sources import Chunk
from onnxedge.errors import UserError, did_you_mean
from onnxedge.model.graph import constant_tensor, graphs_of
from onnxedge.runtime import CannotRun, InputSpec, Session, model_inputs

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

_IMAGE_SIZES = (224, 256, 320, 512, 128, 64, 32, 640, 96, 28, 48, 16)
_AUDIO_SIZES = (16000, 8000, 4096, 1024, 512, 48000, 256, 1536, 160)
_OTHER_SIZES = (16, 32, 64, 128, 224, 256, 512, 1, 2, 3, 4, 8)
_TRIES = 60  #: assignments of sizes that are tried
_AUDIO = Moments(np.zeros(1), np.full(1, 0.1), -1.0, 1.0)
_MASK = re.compile(r"mask|valid", re.IGNORECASE)
_RATE = re.compile(r"^(sr|sample_?rate|sampling_?rate|fs)$", re.IGNORECASE)


def synthesise(
    model: ir.Model,
    inputs: Sequence[InputSpec] | None = None,
    count: int = 64,
    seed: int = 0,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    run: bool = True,
    session: Session | None = None,
) -> Data:
    """Make samples from each input's type and shape and from what the model's graph says about it.

    Floats have the mean, deviation and range that the first normalization or contraction points to, and structure:
    images are smooth fields with edges, audio is band-limited, features drift. Integers that index a table stay
    inside it, masks are ones, scalars are what the graph compares them with. Dynamic sizes are chosen so that the
    model runs; equal symbols get equal sizes.

    Args:
        model: not changed.
        inputs: as the session gives them; None reads them from the graph.
        count: number of samples; each is computed when it is read, from ``seed``, the input's name and its number.
        seed: the same seed gives the same samples.
        shapes: sizes that the user fixed, by input: the whole shape, with the batch.
        run: try the sizes in ONNX Runtime; False takes the first ones unseen, for a model that it cannot load.
        session: the model as it is written, where the caller has it.

    Raises:
        CannotRun: no sizes were found with which the model runs; has the runtime's reason. Or an input is of a type
            that cannot be made, such as a sequence.
        UserError: ``shapes`` names no input or contradicts the model.
    """
    specs = tuple(model_inputs(model) if inputs is None else inputs)
    if not specs:
        raise UserError("data: the model has no inputs, there is nothing to feed")
    for spec in specs:
        if _kind(spec) not in "biuf":
            raise CannotRun(f"input {spec.name!r}: {spec.dtype} values cannot be synthesised; give data with --calib")
    specs, batch = _with_shapes(specs, shapes or {})
    values = {value.name: value for value in model.graph.inputs}
    facts = {spec.name: facts_of(values[spec.name]) if spec.name in values else Facts() for spec in specs}
    batching = Batching.of(specs)
    if batch is not None and batching.fixed is None:
        batching = Batching(batching.axes, batch)
    sizes = _Sizes(specs, batching, facts, _written_sizes(model))
    if not run:
        return _data(specs, facts, batching, next(sizes.assignments()), count, seed)
    session = session or Session(model, level="disable")
    return _first_running(session, specs, facts, batching, sizes, count, seed)


def _first_running(
    session: Session,
    specs: Sequence[InputSpec],
    facts: Mapping[str, Facts],
    batching: Batching,
    sizes: _Sizes,
    count: int,
    seed: int,
) -> Data:
    """Return the data of the first sizes that the model runs with and answers finite numbers in its declared shapes."""
    second: Data | None = None
    reason = ""
    batchings = [batching] if batching.fixed is not None else [batching, Batching(batching.axes, 1)]
    for assignment, trial in itertools.product(itertools.islice(sizes.assignments(), _TRIES), batchings):
        data = _data(specs, facts, trial, assignment, count, seed)
        try:
            outputs = session.run(next(data.feeds(2)), limit_seconds=runtime.RUN_LIMIT_SECONDS)
        except runtime.TooLong:  # other sizes will not mend it
            raise
        except CannotRun as err:
            reason = reason or str(err)
            continue
        if all(array.dtype.kind != "f" or np.isfinite(array).all() for array in runtime.flattened(outputs).values()):
            return data
        second = second or data
    if second is not None:
        return second
    shapes = ", ".join(f"{spec.name}: {spec}" for spec in specs)
    raise CannotRun(f"no inputs found that the model runs with ({shapes}); give --calib or --input-shape; {reason}")


def _with_shapes(
    specs: tuple[InputSpec, ...], shapes: Mapping[str, Sequence[int]]
) -> tuple[tuple[InputSpec, ...], int | None]:
    """Return the inputs with the user's sizes but for a dynamic batch, and the batch that those sizes say."""
    names = [spec.name for spec in specs]
    for name in shapes:
        if name not in names:
            raise UserError(f"input shape: the model has no input {name!r}{did_you_mean(name, names)}")
    symbols: dict[str, int] = {}
    batch = None
    for spec in specs:
        if spec.name not in shapes:
            continue
        given = tuple(shapes[spec.name])
        clash = len(given) != len(spec.shape) or any(
            size < 1 or (isinstance(dim, int) and dim != size) for dim, size in zip(spec.shape, given, strict=False)
        )
        if clash:
            raise UserError(f"input shape: {spec.name!r} is {spec}, {'x'.join(map(str, given))} does not fit it")
        for axis, (dim, size) in enumerate(zip(spec.shape, given, strict=True)):
            if isinstance(dim, str) and symbols.setdefault(dim, size) != size:
                raise UserError(f"input shape: {dim!r} is {symbols[dim]} in one input and {size} in {spec.name!r}")
            if axis == 0 and not isinstance(dim, int):
                batch = size if batch is None else batch
    batches = {spec.shape[0] for spec in specs if spec.shape and not isinstance(spec.shape[0], int)}
    fixed = []
    for spec in specs:
        dims: list[int | str | None] = []
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, int) or dim in batches or (axis == 0 and dim is None):
                dims.append(dim)
            elif spec.name in shapes:
                dims.append(shapes[spec.name][axis])
            else:
                dims.append(symbols.get(dim or "", dim))
        fixed.append(InputSpec(spec.name, spec.dtype, tuple(dims)))
    return tuple(fixed), batch


class _Sizes:
    """The dynamic sizes of a model, besides the batch, and what they may be."""

    def __init__(
        self, specs: Sequence[InputSpec], batching: Batching, facts: Mapping[str, Facts], written: Sequence[int]
    ) -> None:
        streaming = any(axis is not None and axis > 0 for axis in batching.axes[1:])
        self.candidates: dict[str, tuple[int, ...]] = {}
        for spec, batch_axis in zip(specs, batching.axes, strict=True):
            for axis, dim in enumerate(spec.shape):
                if isinstance(dim, int) or axis == batch_axis:
                    continue
                needed = facts[spec.name].sizes.get(axis)
                for symbol in _symbols(_label(spec, axis)):
                    sizes = (needed,) if needed else (*_candidates(symbol, spec, axis, streaming), *written)
                    if needed or symbol not in self.candidates:
                        self.candidates[symbol] = sizes

    def assignments(self) -> Iterator[dict[str, int]]:
        """Yield sizes by symbol: first the same rank in every list, then all combinations of the first few."""
        names = list(self.candidates)
        lists = list(self.candidates.values())
        seen: set[tuple[int, ...]] = set()
        longest = max(map(len, lists), default=1)
        together = (tuple(sizes[min(i, len(sizes) - 1)] for sizes in lists) for i in range(longest))
        for sizes in itertools.chain(together, itertools.product(*(sizes[:6] for sizes in lists))):
            if sizes not in seen:
                seen.add(sizes)
                yield dict(zip(names, sizes, strict=True))

    @staticmethod
    def shape(spec: InputSpec, batch_axis: int | None, sizes: Mapping[str, int]) -> Shape:
        """Return the shape of one sample of an input, without the batch axis."""
        return tuple(
            dim if isinstance(dim, int) else sum(sizes.get(t, 0) or int(t) for t in _terms(_label(spec, axis)))
            for axis, dim in enumerate(spec.shape)
            if axis != batch_axis
        )


def _label(spec: InputSpec, axis: int) -> str:
    dim = spec.shape[axis]
    return dim if isinstance(dim, str) and dim else f"{spec.name}#{axis}"


def _terms(symbol: str) -> list[str]:
    """Split ``past + sequence`` or ``past + 1`` into its terms; any other text is one term."""
    terms = [term.strip() for term in symbol.split("+")]
    return terms if all(re.fullmatch(r"[A-Za-z_]\w*|\d+", term) for term in terms) else [symbol]


def _symbols(symbol: str) -> list[str]:
    return [term for term in _terms(symbol) if not term.isdecimal()]


def _candidates(symbol: str, spec: InputSpec, axis: int, streaming: bool) -> tuple[int, ...]:
    if re.fullmatch(r"(?i).*(height|width)|[hw]|.*image_?size", symbol):
        return _IMAGE_SIZES
    if len(spec.shape) == 4 and "past" not in symbol.lower() and _kind(spec) != "b":
        return _IMAGE_SIZES
    item = [d for i, d in enumerate(spec.shape[1:], start=1) if i != axis and d != 1]
    if _kind(spec) == "f" and axis == len(spec.shape) - 1 and not item:
        return (512, *_AUDIO_SIZES) if streaming else _AUDIO_SIZES
    return _OTHER_SIZES


def _kind(spec: InputSpec) -> str:
    try:
        return np.dtype(spec.dtype).kind
    except TypeError:
        return "?"


def _written_sizes(model: ir.Model) -> list[int]:
    """Return sizes that stand in the graph's small integer constants, the most frequent first: traced ones often do."""
    counts: Counter[int] = Counter()
    for graph in graphs_of(model):
        for value in (*graph.initializers.values(), *(node.outputs[0] for node in graph if node.op_type == "Constant")):
            tensor = constant_tensor(value)
            if tensor is not None and tensor.dtype == ir.DataType.INT64 and tensor.size <= 8:
                counts.update(int(size) for size in tensor.numpy().reshape(-1) if 4 < size < 4096)
    return [size for size, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:16]]


@dataclass(frozen=True)
class _Plan:
    """How one input's samples are made: the sample's shape and whether one array serves them all."""

    spec: InputSpec
    shape: Shape
    whole: bool
    state: bool
    facts: Facts


class _Computed:
    """An array that is computed when it is read."""

    def __init__(self, plan: _Plan, seed: Sequence[int]) -> None:
        self._plan, self._seed = plan, seed
        self.shape, self.dtype = plan.shape, np.dtype(plan.spec.dtype)

    def array(self) -> Array:
        """Compute the array."""
        return _make(self._plan, np.random.default_rng(list(self._seed))).astype(self.dtype)


class _Synthetic:
    """Samples that are computed when they are read."""

    name = "synthetic"

    def __init__(self, plans: Sequence[_Plan], count: int, seed: int) -> None:
        self._plans, self._seed = plans, seed
        self._alone = all(plan.whole for plan in plans)
        self.sample_count: int | None = count

    def chunk(self, index: int) -> Chunk | None:
        """Return a sample."""
        if index >= (self.sample_count or 0):
            return None
        arrays = {}
        for plan in self._plans:
            number = 0 if plan.whole and not self._alone else index
            arrays[plan.spec.name] = _Computed(plan, (self._seed, zlib.crc32(plan.spec.name.encode()), number))
        return Chunk(self.name, arrays, alone=True)


def _data(
    specs: Sequence[InputSpec],
    facts: Mapping[str, Facts],
    batching: Batching,
    sizes: Mapping[str, int],
    count: int,
    seed: int,
) -> Data:
    batched = any(axis is not None for axis in batching.axes)
    plans = [
        _Plan(
            spec,
            _Sizes.shape(spec, axis, sizes),
            whole=axis is None,
            state=batched and len(spec.shape) > 1 and axis != 0 and spec is not specs[0],
            facts=facts[spec.name],
        )
        for spec, axis in zip(specs, batching.axes, strict=True)
    ]
    return from_source(_Synthetic(plans, count, seed), specs, batching, synthetic=True)


def _make(plan: _Plan, rng: np.random.Generator) -> Array:
    """Return one sample of an input, before its cast."""
    dtype, shape, name = np.dtype(plan.spec.dtype), plan.shape, plan.spec.name
    if _MASK.search(name):
        return np.ones(shape)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if plan.facts.equals and len(shape) < 2:
        return np.full(shape, plan.facts.equals[0])
    if dtype.kind in "iu":
        return _integers(plan, dtype, rng)
    if not shape or re.search(r"thresh|scale_?factor|ratio", name, re.IGNORECASE):
        return np.full(shape, 0.5 if "thresh" in name.lower() else 1.0)
    if plan.state:
        return rng.normal(0, 0.1, shape)
    return _floats(plan, rng)


def _integers(plan: _Plan, dtype: np.dtype[Any], rng: np.random.Generator) -> Array:
    limits = np.iinfo(dtype)
    if plan.facts.bound is not None:
        return rng.integers(0, min(plan.facts.bound, int(limits.max) + 1), plan.shape)
    if not plan.shape:
        return np.array(16000 if _RATE.match(plan.spec.name) else 1)
    if dtype.itemsize == 1 or len(plan.shape) == 3:
        low, high = (0.0, 255.0) if dtype.itemsize > 1 else (float(limits.min), float(limits.max))
        values = sample(rng, plan.shape, channels_last=_channels_last(plan))
        return np.clip(np.rint((low + high) / 2 + values * (high - low) / 4), low, high)
    if len(plan.shape) == 1 and plan.shape[0] <= 8:
        return np.ones(plan.shape)  # lengths, sizes
    return rng.integers(0, 2, plan.shape)


def _floats(plan: _Plan, rng: np.random.Generator) -> Array:
    long = max(plan.shape)
    is_audio = long >= 256 and long == math.prod(plan.shape) and not plan.facts.sizes
    values = sample(rng, plan.shape, channels_last=_channels_last(plan), is_audio=is_audio)
    moments = plan.facts.moments or STANDARD
    if is_audio and moments is STANDARD:
        moments = _AUDIO
    mean, std = (_along_channels(plan, part, values.shape) for part in (moments.mean, moments.std))
    result: Array = np.clip(mean + np.clip(values, -3, 3) * std, moments.low, moments.high)
    return result


def _along_channels(plan: _Plan, part: Array, shape: Shape) -> Array:
    """Return per-channel numbers broadcastable to a sample, their mean where the sample has other channels."""
    axis = len(shape) - 1 if len(shape) < 2 or _channels_last(plan) else 0
    if part.size == 1 or not shape or shape[axis] != part.size:
        return np.asarray(part.mean())
    return part.reshape([-1 if i == axis else 1 for i in range(len(shape))])


def _channels_last(plan: _Plan) -> bool:
    shape = plan.shape
    if len(shape) != 3:
        return False
    return plan.facts.channels_last or (shape[-1] in (1, 3, 4) and shape[0] not in (1, 3, 4))
