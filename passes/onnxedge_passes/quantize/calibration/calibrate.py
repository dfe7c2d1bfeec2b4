"""What int8 knows of activations: from files of ranges, else from samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxedge.api import CannotRun, Context, Data, Quantization, Unit, UserError, first_line

from . import mixed
from .files import Ranges, check_names, entry_of, read_ranges, write_ranges
from .methods import settle
from .mixed import MIXED, choose_mixed
from .observe import MEMORY_BYTES, Stream, observe
from .observed import Choice, Observed, Range

#: methods that ``auto`` compares on the outputs: ``mixed`` takes the best for each tensor, the others are one for all
AUTO: tuple[Choice, ...] = (MIXED, ("mse", 0.0), ("minmax", 0.0), ("percentile", 99.99), ("percentile", 99.95))
#: methods that ``mixed`` compares for each tensor
CANDIDATES: tuple[Choice, ...] = (*AUTO[1:], ("entropy", 0.0), ("average", 0.0))


def calibrate(
    model: ir.Model,
    units: Sequence[Unit],
    data: tuple[Data, Data],
    context: Context,
    rules: Quantization,
    *,
    methods: Sequence[Choice],
    samples: int,
    files: Sequence[str] = (),
    channels: Mapping[str, int],
    record: dict[str, dict[str, Any]] | None = None,
    budget: int = MEMORY_BYTES,
) -> dict[str, Observed]:
    """Return what is known of each activation of some units, by name, with a range for each method.

    Args:
        model: not changed.
        units: what is to run in integers.
        data: samples to observe, and samples held out to compare on.
        context: for notes, threads and progress.
        rules: of the target.
        methods: that are to choose ranges.
        samples: to observe, at most.
        files: of ranges; what they hold wins and is not observed.
        channels: value name -> channel axis, for values whose channel means are wanted.
        record: is given what was observed of each value, in the form of a file of ranges.
        budget: bytes of activations that are held at one time.

    Raises:
        CannotRun: ONNX Runtime does not run the model.
        UserError: a file of ranges is wrong, or the samples are.
    """
    values = list({v.name or "": v for unit in units for v in (*unit.input_values(), *unit.outputs)}.values())
    choices = tuple(dict.fromkeys(m for m in (*methods, *(CANDIDATES if MIXED in methods else ())) if m != MIXED))
    given = read_ranges(files)
    known = [v.name or "" for v in (*model.graph.inputs, *(o for node in model.graph for o in node.outputs))]
    strange = check_names(given, known)
    if strange:
        context.note(None, f"{strange} tensors of the calibration cache are not in the model")

    def to_record(name: str, entry: Observed) -> None:
        if record is not None and entry.finite:
            record[name] = entry_of(entry)

    observed = [value for value in values if not _complete(value.name or "", given, channels)]
    chosen = [value for value in values if value.name not in given.fixed]
    seen: dict[str, Observed] = {}
    stream = None
    if observed:
        _check_varied(data[0], samples)
        stream = Stream.of(model, observed, data[0], samples, budget)
        seen = observe(
            model,
            stream,
            choices,
            context,
            channels=channels,
            symmetric=rules.activation_symmetric,
            record=to_record if record is not None else None,
        )
    for value in values:
        name = value.name or ""
        if name in given.observed:
            entry = given.observed[name]
            entry.mean = entry.mean if entry.mean is not None or name not in seen else seen[name].mean
            to_record(name, entry)
            settle(entry, choices, symmetric=rules.activation_symmetric)
            seen[name] = entry
        if name in given.fixed:
            _fix(seen.setdefault(name, Observed(*given.fixed[name])), given.fixed[name], choices)
    if MIXED in methods and chosen:
        if stream is None or chosen != observed:
            stream = Stream.of(model, chosen, data[0], samples, budget)
        for group in stream.groups:
            usable = [value for value in group if seen[value.name or ""].finite]
            try:
                choose_mixed(model, usable, units, seen, data[1].feeds(mixed.BATCH, mixed.SAMPLES), rules, context)
            except CannotRun as err:
                context.note(None, f"ranges not compared tensor by tensor: {first_line(err)}")
                for value in usable:
                    entry = seen[value.name or ""]
                    entry.ranges.setdefault(MIXED, entry.ranges[choices[0]])
    return seen


def _complete(name: str, given: Ranges, channels: Mapping[str, int]) -> bool:
    """Tell whether files say all that is to be known of a value; a cache does not say whether it has a sign."""
    entry = given.observed.get(name)
    if name in channels and (entry is None or entry.mean is None):
        return False
    return entry is not None or (name in given.fixed and name not in given.loose)


def _fix(entry: Observed, found: Range, choices: Sequence[Choice]) -> None:
    """Let every method choose a range, which holds 0 and no sign that the values do not have."""
    low, high = min(found[0], 0.0), max(found[1], 0.0)
    if entry.samples and entry.finite:
        low, high = (0.0 if entry.low >= 0.0 else low), (0.0 if entry.high <= 0.0 else high)
    entry.ranges = dict.fromkeys((*choices, MIXED), (low, high))


def _check_varied(data: Data, samples: int) -> None:
    """Refuse samples in which every input is the same number all over: ranges of nothing.

    Raises:
        UserError: with the number.
    """
    values: dict[str, set[float]] = {}
    for feed in data.feeds(1, samples):
        for name, array in feed.items():
            if array.dtype.kind not in "biuf" or not array.size:
                return
            values.setdefault(name, set()).update((float(array.min()), float(array.max())))
            if len(values[name]) > 1:
                return
    said = ", ".join(f"{name!r} is {next(iter(found)):g}" for name, found in list(values.items())[:3])
    raise UserError(f"int8: the calibration samples are constant ({said} all over); give real samples with --calib")


def save(path: Path, record: Mapping[str, Mapping[str, Any]], seen: Mapping[str, Observed], choice: Choice) -> None:
    """Write what was observed, and the ranges that a method chose, as a file of ranges.

    Raises:
        UserError: the file cannot be written.
    """
    chosen = {name: entry.ranges[choice] for name, entry in seen.items() if choice in entry.ranges}
    write_ranges(path, {name: {"range": list(ends), **record.get(name, {})} for name, ends in chosen.items()})
