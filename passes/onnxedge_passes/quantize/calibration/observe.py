"""Activations streamed past: two runs over the samples, for one group of tensors after the other.

The first run keeps minimum and maximum, and of each channel these, the mean and the mean square; the second fills a
histogram between minimum and maximum; what the methods make of it is all that stays. A group is as many tensors as
fit, for one batch, into a budget of memory, so that the peak hangs neither on the number of samples nor on the number
of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxedge.api import Array, Batch, Context, Data, Feed, Session, capture, forked, refresh_scopes, unique_name

from .methods import settle
from .observed import HISTOGRAM_BYTES, Choice, Observed

MEMORY_BYTES = 128 << 20  #: activations captured, and histograms, at one time
BATCH = 16
WITHOUT_HISTOGRAM = ("minmax", "average", "mixed")


@dataclass(frozen=True)
class Stream:
    """Hold the samples and how they are fed.

    Attributes:
        data: samples.
        limit: samples used, at most.
        batch: samples a feed.
        groups: values that are captured together.
    """

    data: Data
    limit: int
    batch: int
    groups: tuple[tuple[ir.Value, ...], ...]

    @classmethod
    def of(cls, model: ir.Model, values: Sequence[ir.Value], data: Data, limit: int, budget: int) -> Stream:
        """Part values into groups by what they take for one batch; the largest of a few samples stands for all.

        Every group is a run of the whole model over all samples, so that the batch is rather made smaller.

        Raises:
            CannotRun: the model does not run on a sample.
        """
        largest = max(data.batches(1, 8), key=lambda batch: sum(array.nbytes for array in batch.feed.values()))
        bytes_of = tensor_bytes(model, values, largest.feed)
        room = budget - HISTOGRAM_BYTES * len(values)
        batch = data.fixed_batch or int(np.clip(room // max(sum(bytes_of), 1), 1, BATCH))
        times = 1 if data.fixed_batch else batch
        groups: list[list[ir.Value]] = [[]]
        used = 0
        for value, size in zip(values, bytes_of, strict=True):
            need = times * size + HISTOGRAM_BYTES
            if groups[-1] and used + need > budget:
                groups.append([])
                used = 0
            groups[-1].append(value)
            used += need
        return cls(data, limit, batch, tuple(tuple(group) for group in groups))

    @property
    def feeds(self) -> int:
        """Return how many feeds there are, about."""
        return -(-min(len(self.data), self.limit) // self.batch)

    def capture(
        self, model: ir.Model, group: Sequence[ir.Value], context: Context, what: str
    ) -> Iterator[tuple[Batch, list[Array]]]:
        """Yield each batch with the values of a group; samples that only fill a fixed batch are cut off.

        The list is emptied when the next one is asked for: two batches' values would be twice the budget.
        """
        batches: list[Batch] = []

        def feeds() -> Iterator[Feed]:
            for batch in self.data.batches(self.batch, self.limit):
                batches[:] = [batch]
                yield batch.feed

        stream = capture(model, group, feeds(), threads=context.threads)
        for captured in context.progress.track(stream, f"int8: {what}", self.feeds):
            size, count = self.data.fixed_batch, batches[0].count
            cut = size is not None and count < size
            arrays = [a[:count] if cut and a.ndim and a.shape[0] == size else a for a in captured]
            captured.clear()
            yield batches[0], arrays
            arrays.clear()


def observe(
    model: ir.Model,
    stream: Stream,
    choices: Sequence[Choice],
    context: Context,
    *,
    channels: Mapping[str, int],
    symmetric: bool,
    record: Callable[[str, Observed], None] | None = None,
) -> dict[str, Observed]:
    """Run the model over the samples and return what was seen of each value, by name.

    Args:
        model: not changed.
        stream: samples and groups of values.
        choices: methods that are to choose a range.
        context: for threads and progress.
        channels: value name -> channel axis, for values of whose channels something is wanted.
        symmetric: the target's activations have their zero point at 0.
        record: takes each value's name and what was seen, with its histogram, before that is dropped.
    """
    seen: dict[str, Observed] = {}
    histograms = record is not None or any(method not in WITHOUT_HISTOGRAM for method, _ in choices)
    for group in stream.groups:
        names = [value.name or "" for value in group]
        entries = [seen.setdefault(name, Observed()) for name in names]
        for batch, arrays in stream.capture(model, group, context, "ranges"):
            for name, entry, array in zip(names, entries, arrays, strict=True):
                entry.extend(array, batch.count, channels.get(name))
        if histograms:
            for _, arrays in stream.capture(model, group, context, "histograms"):
                for entry, array in zip(entries, arrays, strict=True):
                    entry.count(array)
        for name, entry in zip(names, entries, strict=True):
            if record is not None:
                record(name, entry)
            if entry.finite:
                settle(entry, choices, symmetric=symmetric)
    return seen


def tensor_bytes(model: ir.Model, values: Sequence[ir.Value], feed: Feed) -> list[int]:
    """Return how many bytes values of the main graph take on a feed; the runtime tells their shapes, not their content.

    Raises:
        CannotRun: the runtime refuses the model or the feed.
    """
    probe, twins = forked(model, values)
    refresh_scopes(probe)
    probe.graph.outputs.clear()
    for value in twins:
        node = ir.node("Shape", [value])
        node.outputs[0].name = unique_name(probe.graph, "shape")
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.INT64), ir.Shape([None])
        probe.graph.append(node)
        probe.graph.outputs.append(node.outputs[0])
    names = [output.name or "" for output in probe.graph.outputs]
    shapes = Session(probe, level="disable").run(feed, names) if names else {}
    return [4 * int(np.prod(shapes[name], dtype=np.int64)) for name in names]
