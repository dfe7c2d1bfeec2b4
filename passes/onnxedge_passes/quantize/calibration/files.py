"""Ranges in files: JSON that is saved, edited and merged from shards, and the calibration caches of TensorRT.

A file of ranges is ``{"format": "onnxedge ranges 1", "tensors": {name: {...}}}``. An entry has
``"range": [low, high]``, which is taken as it is, or what was observed (``min``, ``max``, ``average``, ``samples``,
``elements``, ``mean`` of each channel and ``histogram``), from which int8's method chooses; ``name: [low, high]`` is
short for a range alone.
"""

from __future__ import annotations

import base64
import json
import math
import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxedge.api import Array, UserError, did_you_mean, first_line, write_whole

from .observed import BINS, Observed, Range

FORMAT = "onnxedge ranges 1"
_CACHE = re.compile(r"TRT-\d+-\w*Calibration\w*")
_CACHE_LINE = re.compile(r"(?P<name>.+): *(?P<scale>[0-9A-Fa-f]{8})")


class Ranges:
    """Hold what files say of tensors, by name.

    Attributes:
        fixed: ranges to be taken as they are.
        observed: what was observed; ``fixed`` wins.
        loose: tensors of a cache of TensorRT, which has some of its own and knows no signs.
    """

    def __init__(self) -> None:
        self.fixed: dict[str, Range] = {}
        self.observed: dict[str, Observed] = {}
        self.loose: set[str] = set()

    def names(self) -> list[str]:
        """Return all tensors' names, in order."""
        return list(dict.fromkeys([*self.observed, *self.fixed]))

    def merge(self, other: Ranges) -> None:
        """Take up another shard's ranges.

        What both observed is put together and chosen from anew, unless both have the same range; ranges without
        observations become the least range that holds both.
        """
        self.loose |= other.loose
        for name in other.names():
            if name not in self.fixed and name not in self.observed:
                if name in other.fixed:
                    self.fixed[name] = other.fixed[name]
                if name in other.observed:
                    self.observed[name] = other.observed[name]
                continue
            mine, theirs = self.fixed.get(name), other.fixed.get(name)
            first, second = self.observed.get(name), other.observed.get(name)
            if first is not None and second is not None:
                first.merge(second)
                if mine != theirs:
                    self.fixed.pop(name, None)
                continue
            self.observed.pop(name, None)
            ends = [mine or _seen_range(first), theirs or _seen_range(second)]
            self.fixed[name] = min(low for low, _ in ends), max(high for _, high in ends)


def _seen_range(entry: Observed | None) -> Range:
    return (entry.low, entry.high) if entry is not None else (np.inf, -np.inf)


def read_ranges(paths: Iterable[str]) -> Ranges:
    """Read and merge files of ranges.

    Raises:
        UserError: a file cannot be read or is wrong; one line with file, tensor and reason.
    """
    merged = Ranges()
    for path in paths:
        merged.merge(_read(Path(path)))
    return merged


def _read(path: Path) -> Ranges:
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError) as err:
        raise UserError(f"{path}: ranges cannot be read: {first_line(err)}") from err
    if _CACHE.match(text):
        return _read_cache(path, text)
    try:
        content = json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, path))
    except (ValueError, RecursionError) as err:
        hint = "neither JSON nor a calibration cache of TensorRT"
        raise UserError(f"{path}: {hint}: {first_line(err)}") from err
    tensors = content.get("tensors") if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or content.get("format", FORMAT) != FORMAT:
        form = f'{{"format": "{FORMAT}", "tensors": {{NAME: {{"range": [LOW, HIGH]}}}}}}'
        raise UserError(f"{path}: no ranges: needs {form}")
    found = Ranges()
    for name, entry in tensors.items():
        _take(found, name, entry, f"{path}: tensor {name!r}")
    return found


def _unique(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}: {twice!r} stands there twice")
    return dict(pairs)


def _take(found: Ranges, name: str, entry: Any, where: str) -> None:
    if isinstance(entry, list):
        entry = {"range": entry}
    if not isinstance(entry, dict) or not ("range" in entry or {"min", "max"} <= entry.keys()):
        raise UserError(f"{where}: needs a range [low, high], or min and max")
    if "range" in entry:
        found.fixed[name] = _pair(entry["range"], f"{where}: range")
    if not {"min", "max"} <= entry.keys():
        return
    low, high = _pair([entry["min"], entry["max"]], where)
    if "samples" not in entry:
        found.fixed.setdefault(name, (low, high))
        return
    samples, elements = (_count(entry.get(key, 1), f"{where}: {key}") for key in ("samples", "elements"))
    average = _pair(entry.get("average", [low, high]), f"{where}: average")
    mean = entry.get("mean")
    seen = Observed(low, high, average, samples, elements)
    if mean is not None:
        if not isinstance(mean, list) or not mean:
            raise UserError(f"{where}: mean is no list of numbers")
        seen.mean = np.array([_number(v, f"{where}: mean") for v in mean])
    if entry.get("histogram") is not None:
        seen.counts = _unpacked(entry["histogram"], f"{where}: histogram")
    found.observed[name] = seen


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where}: {value!r} is no number")
    if not math.isfinite(value) or abs(value) > float(np.finfo(np.float32).max):
        raise UserError(f"{where}: {value} is no finite float32")
    return float(value)


def _count(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**62:
        raise UserError(f"{where}: {value!r} is no positive whole number")
    return value


def _pair(value: Any, where: str) -> Range:
    if not isinstance(value, list) or len(value) != 2:
        raise UserError(f"{where}: {value!r} is not [low, high]")
    low, high = (_number(v, where) for v in value)
    if low > high:
        raise UserError(f"{where}: min {low:g} is greater than max {high:g}")
    return low, high


def _read_cache(path: Path, text: str) -> Ranges:
    """Read ``name: scale`` lines; the scale is the bytes of a float32, most significant first, of symmetric int8."""
    found = Ranges()
    for number, line in enumerate(text.splitlines()[1:], 2):
        if not line.strip():
            continue
        match = _CACHE_LINE.fullmatch(line.strip())
        if match is None:
            raise UserError(f"{path}: line {number}: needs NAME: and 8 hexadecimal digits")
        scale = struct.unpack("!f", bytes.fromhex(match["scale"]))[0]
        if not math.isfinite(scale) or not 0 <= scale <= float(np.finfo(np.float32).max) / 127:
            where = f"{path}: line {number}: tensor {match['name']!r}"
            raise UserError(f"{where}: scale {scale:g} is not finite and positive")
        found.fixed[match["name"]] = -127.0 * scale, 127.0 * scale
    found.loose = set(found.fixed)
    if not found.fixed:
        raise UserError(f"{path}: a calibration cache of TensorRT without tensors")
    return found


def check_names(ranges: Ranges, known: Iterable[str]) -> int:
    """Return how many tensors of a cache the model does not have; those of other files it must have.

    Raises:
        UserError: names the first tensor that is not in the model.
    """
    have = set(known)
    unknown = [name for name in ranges.names() if name not in have]
    wrong = unknown if len(unknown) == len(ranges.names()) else [name for name in unknown if name not in ranges.loose]
    if wrong:
        hint = did_you_mean(wrong[0], have) or "; names are those of the model as it reaches int8"
        raise UserError(f"int8: ranges: the model has no tensor {wrong[0]!r}{hint}")
    return len(unknown)


def entry_of(seen: Observed) -> dict[str, Any]:
    """Return what was observed of a tensor in the form of the file, JSON-ready."""
    entry: dict[str, Any] = {
        "min": seen.low,
        "max": seen.high,
        "average": list(seen.average),
        "samples": seen.samples,
        "elements": seen.elements,
    }
    if seen.mean is not None:
        entry["mean"] = [float(f"{v:.7g}") for v in seen.mean]
    if seen.counts is not None:
        entry["histogram"] = base64.b64encode(zlib.compress(seen.counts.astype("<i8").tobytes(), 9)).decode()
    return entry


def _unpacked(text: Any, where: str) -> Array:
    try:
        unpack = zlib.decompressobj()
        data = unpack.decompress(base64.b64decode(text, validate=True), 8 * BINS + 1)
        counts = np.frombuffer(data, "<i8").astype(np.int64)
    except (ValueError, TypeError, zlib.error) as err:
        raise UserError(f"{where}: cannot be unpacked: {first_line(err)}") from err
    if counts.shape != (BINS,) or counts.min() < 0 or counts.max() > 2**40 or not counts.any():
        raise UserError(f"{where}: is not {BINS} counts")
    return counts


def write_ranges(path: Path, tensors: Mapping[str, Mapping[str, Any]]) -> None:
    """Write entries as JSON, one tensor a line.

    Raises:
        UserError: the file cannot be written.
    """
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in tensors.items())
    write_whole(path, f'{{"format": "{FORMAT}", "tensors": {{\n{lines}\n}}}}\n'.encode())
