"""Other views of the calibration samples, where the model itself says that they mean the same: flips and shifts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, Comparison, Feed, Session

_SIZE = 16  #: an axis shorter than this holds channels, not space or time
_REACH = 8  #: a shift is up to this part of the axis
_AGREEMENT = 0.85  #: share of samples whose class a view must leave


@dataclass(frozen=True)
class View:
    """Flip, or shift by up to ``reach``, along one axis of one input."""

    name: str
    axis: int
    reach: int = 0

    def of(self, array: Array, shift: int) -> Array:
        """Return the view of an array; ``shift`` -reach..reach, the edge is repeated where nothing comes in."""
        if not self.reach:
            return np.ascontiguousarray(np.flip(array, self.axis))
        size = array.shape[self.axis]
        return np.ascontiguousarray(np.take(array, np.clip(np.arange(size) - shift, 0, size - 1), self.axis))


def fitting_views(model: ir.Model, feeds: Sequence[Feed], *, threads: int) -> list[View]:
    """Return the views under which a classifier keeps its answers; a model without classes has none.

    So images are flipped left to right and not upside down, and sound is shifted in time: what the network does not
    mind is not new to it, and its own outputs are the targets there, too.
    """
    session = Session(model, threads=threads)
    wanted = [session.run(feed) for feed in feeds]
    found = []
    for name, array in feeds[0].items():
        if array.dtype.kind != "f":
            continue
        for axis in (a for a in range(1, array.ndim) if array.shape[a] >= _SIZE):
            for view in (View(name, axis), View(name, axis, array.shape[axis] // _REACH)):
                comparison = Comparison()
                for feed, reference in zip(feeds, wanted, strict=True):
                    for shift in (-view.reach, view.reach) if view.reach else (0,):
                        comparison.add(reference, session.run({**feed, name: view.of(feed[name], shift)}))
                if len(comparison.sums) == 1 and comparison.agreement >= _AGREEMENT:
                    found.append(view)
    return found


def viewed(feed: Feed, views: Sequence[View], rng: np.random.Generator) -> Feed:
    """Return a feed seen another way: each flip with a chance of a half, each shift by a random length."""
    result = dict(feed)
    for view in views:
        shift = int(rng.integers(-view.reach, view.reach + 1))
        if view.reach or rng.random() < 0.5:
            result[view.name] = view.of(result[view.name], shift)
    return result
