"""Weights rounded up or down by gradient, block by block, with the activations quantized."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxedge.api import (
    Array,
    CannotRun,
    Context,
    Data,
    Feed,
    NoGradient,
    Session,
    add_initializer,
    first_line,
    forked,
    macs,
    opset,
    set_constant,
    unique_name,
)
from onnxedge_passes.prune.blocks import Block, find_blocks
from onnxedge_passes.prune.facts import Facts
from onnxedge_passes.prune.lesson import Example, Lesson
from onnxedge_passes.prune.stream import Stream

from ..rounding import Grid, Weight
from .layers import Layer

OPSET = 13  #: the least version of the default domain that gradients are made in
STEPS = 400  #: for each block, at most
_WORK = 3e12  #: multiply-accumulates of all steps together: about two minutes of one core
_BATCH = 16
_HELD = 3  #: batches that decide
_RATE = 0.03
_STRETCH = (-0.1, 1.1)  #: of the sigmoid, so that it reaches 0 and 1
_NEVER = -50.0  #: free value of a weight that stays at the code below: its share and its slope are 0
_SHARP = (16.0, 2.0)  #: exponent of what draws to 0 and 1, at the beginning and at the end
_WARM = 0.2  #: share of the steps before anything is drawn there


@dataclass
class Choice:
    """Hold the choice for one weight between rounding up and down.

    Attributes:
        floor: float64, the lower code of each element.
        scale: what broadcasts to it.
        limit: largest magnitude of a code.
        free: what a sigmoid makes the share of the upper code of.
    """

    floor: Array
    scale: Array
    limit: int
    free: Array

    @classmethod
    def of(cls, layer: Layer, array: Array) -> Choice:
        """Begin where the soft weight is the float one."""
        scale = layer.array(np.broadcast_to(layer.scale(), layer.matrix(array).shape)).astype(np.float64)
        whole = np.clip(array / scale, -layer.nearest.limit, layer.nearest.limit)
        floor = np.floor(whole)
        low, high = _STRETCH
        share = np.clip((whole - floor - low) / (high - low), 0.01, 0.99)
        free = np.where(array == 0, _NEVER, np.log(share / (1 - share)))  # zeros are a pattern that stays
        return cls(floor, scale, layer.nearest.limit, free)

    def share(self) -> Array:
        """Return how much of the upper code each element has, 0..1."""
        low, high = _STRETCH
        return np.asarray(np.clip(low + (high - low) / (1 + np.exp(-self.free)), 0, 1))

    def soft(self) -> Array:
        """Return the weight in between, float32."""
        return self._weight(self.share())

    def codes(self) -> Array:
        """Return the codes that it is nearest to, int8."""
        return np.asarray(np.clip(self.floor + (self.share() >= 0.5), -self.limit, self.limit), np.int8)

    def _weight(self, share: Array) -> Array:
        return np.asarray(np.clip(self.floor + share, -self.limit, self.limit) * self.scale, np.float32)

    def gradient(self, of_weight: Array, pull: float, sharp: float) -> Array:
        """Return the gradient of the loss and of ``pull * sum(1 - |2 share - 1| ** sharp)``.

        Source: Nagel et al. 2020, arXiv:2004.10568, equations 23 and 24.
        """
        share, low, high = self.share(), *_STRETCH
        sigmoid = 1 / (1 + np.exp(-self.free))
        slope = np.where((share > 0) & (share < 1), (high - low) * sigmoid * (1 - sigmoid), 0.0)
        side = 2 * share - 1
        drawn = -2 * pull * sharp * np.sign(side) * np.abs(side) ** (sharp - 1)
        return np.asarray((np.nan_to_num(of_weight) * self.scale + drawn) * slope)


def learn(
    model: ir.Model,
    layers: Sequence[Layer],
    start: Mapping[str, Weight],
    grids: Mapping[str, Grid],
    data: tuple[Data, Data],
    context: Context,
) -> dict[str, Weight]:
    """Return roundings that answer better than those to start from, by name of the weight.

    Every block of the model is trained on what the quantized blocks before it give, to what the float model gives
    there: each weight moves between the code below and the one above it. A block keeps what it started from where
    batches that it was not trained on are not answered better.

    Source: AdaRound, Nagel et al. 2020, arXiv:2004.10568; by blocks: Li et al. 2021, arXiv:2102.05426.

    Args:
        model: float, not changed.
        layers: whose weights are rounded; one that several nodes read keeps its rounding.
        start: roundings to start from, by name; nearest where there is none.
        grids: of the activations that are quantized, by name.
        data: calibration samples, and others that decide.
        context: for notes, progress and threads.
    """
    if opset(model) < OPSET:
        context.note(None, f"rounding not learned: opset {opset(model)} is below {OPSET}")
        return {}
    try:
        return _Learning(model, layers, start, grids, data, context).run()
    except CannotRun as err:
        context.note(None, f"rounding not learned: {first_line(err)}")
        return {}


class _Learning:
    def __init__(
        self,
        model: ir.Model,
        layers: Sequence[Layer],
        start: Mapping[str, Weight],
        grids: Mapping[str, Grid],
        data: tuple[Data, Data],
        context: Context,
    ) -> None:
        self.model, self.context = model, context
        self.student, _ = forked(model)
        twins = dict(zip(model.graph, self.student.graph, strict=True))
        single = [layer for layer in layers if len(layer.nodes) == 1]
        self.layers = {twins[layer.node]: layer for layer in single}
        self.begun = {layer: start.get(layer.value.name or "", layer.nearest) for layer in layers}
        for layer in layers:
            for node in layer.nodes:
                set_constant(twins[node], 1, self.begun[layer].restored())
        for value in [v for v in _values(self.student) if v.name in grids]:
            _pretend(self.student, value, grids[value.name or ""])
        feeds = list(data[0].feeds(_BATCH))
        held = list(data[1].feeds(_BATCH, _HELD * _BATCH))
        self.fit = [feed for feed in feeds if _signature(feed) == _signature(feeds[0])]
        self.held = [feed for feed in held if _signature(feed) == _signature(feeds[0])]
        self.facts = Facts(self.student, feeds[0], threads=context.threads)
        theirs = Facts(model, feeds[0], threads=context.threads).shapes
        self.twins = {value.name: value for value in theirs if value.producer() is not None}
        own = self.facts.shapes
        self.comparable = {v for v in own if v.name in self.twins and theirs[self.twins[v.name]] == own[v]}
        both = [*self.fit, *self.held]
        self.streams = Stream(self.student, both, threads=context.threads), Stream(model, both, threads=context.threads)
        self.rng = np.random.default_rng([context.seed, 1 << 22])

    def run(self) -> dict[str, Weight]:
        """Return what became better."""
        if not self.held:
            return {}
        blocks = find_blocks(self.student, self.comparable)
        shapes = self.facts.shapes
        work = sum(macs(node, lambda v: shapes.get(v) if v is not None else None) or 0 for node in self.student.graph)
        steps = int(np.clip(_WORK / max(4 * work, 1), 20, STEPS))
        found: dict[str, Weight] = {}
        for number, block in enumerate(self.context.progress.track(blocks, "int8: learned rounding", len(blocks))):
            layers = [(node, self.layers[node]) for node in block.nodes if node in self.layers]
            if layers:
                try:
                    found |= self._train(block, layers, steps)
                except NoGradient as err:
                    self.context.note(block.nodes[-1], f"rounding of its block not learned: no gradient for {err}")
            if number + 1 < len(blocks):
                border = block.outputs[-1:]
                self.streams[0].fetch(border)
                self.streams[1].fetch([self.twins[value.name] for value in border])
        return found

    def _train(self, block: Block, layers: Sequence[tuple[ir.Node, Layer]], steps: int) -> dict[str, Weight]:
        """Train a block.

        Raises:
            NoGradient: an operator has none.
        """
        student, teacher = self.streams
        targets = [self.twins[value.name] for value in block.outputs]
        (piece, reads), (original, theirs) = student.piece(block.outputs), teacher.piece(targets)
        frozen = Session(original, threads=self.context.threads)
        names = [value.name or "" for value in targets]

        def example(k: int) -> Example:
            answers = frozen.run({name: teacher.held[name][k] for name in theirs})
            return {name: student.held[name][k] for name in reads}, [answers[name] for name in names]

        held = [example(k) for k in range(len(self.fit), len(self.fit) + len(self.held))]
        begun = [self.begun[layer].restored() for _, layer in layers]
        lesson = Lesson(
            piece,
            [value.name or "" for value in block.outputs],
            [_name(node.inputs[1]) for node, _ in layers],
            begun,
            held,
            self.context.threads,
            [1.0] * len(block.outputs),
        )
        choices = [Choice.of(layer, _float(layer)) for _, layer in layers]
        first = lesson.loss(begun, held)
        pull = first / sum(choice.free.size for choice in choices)
        adam = [(np.zeros_like(c.free), np.zeros_like(c.free)) for c in choices]
        order: list[int] = []
        for step in range(1, steps + 1):
            order = order or self.rng.permutation(len(self.fit)).tolist()
            gradients = lesson.gradients([c.soft() for c in choices], *example(order.pop()))
            past = (step / steps - _WARM) / (1 - _WARM)
            sharp = _SHARP[1] + (_SHARP[0] - _SHARP[1]) * 0.5 * (1 + np.cos(np.pi * max(past, 0.0)))
            for choice, gradient, moments in zip(choices, gradients, adam, strict=True):
                _descend(choice, choice.gradient(gradient, pull if past > 0 else 0.0, sharp), moments, step)
        codes = [choice.codes() for choice in choices]
        made = [replace(layer.nearest, codes=c) for (_, layer), c in zip(layers, codes, strict=True)]
        if not lesson.loss([weight.restored() for weight in made], held) < first:
            return {}
        for (node, layer), weight in zip(layers, made, strict=True):
            student.replace(node, 1, weight.restored())
            self.begun[layer] = weight
        return {layer.value.name or "": weight for (_, layer), weight in zip(layers, made, strict=True)}


def _descend(choice: Choice, gradient: Array, moments: tuple[Array, Array], step: int) -> None:
    """Take one step of Adam (Kingma and Ba 2015, arXiv:1412.6980)."""
    mean, square = moments
    mean += 0.1 * (gradient - mean)
    square += 0.001 * (gradient * gradient - square)
    choice.free -= _RATE * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-30)


def _pretend(model: ir.Model, value: ir.Value, grid: Grid) -> None:
    """Round what reads a value to a grid, in floats: ``Clip(Round(x / s)) * s``."""
    graph, info = model.graph, np.iinfo(grid.dtype)

    def made(op: str, inputs: Iterable[ir.Value]) -> ir.Node:
        node = ir.node(op, list(inputs))
        node.name = node.outputs[0].name = unique_name(graph, "pretend")
        return node

    def scalar(number: float) -> ir.Value:
        array = np.array(number, np.float32)
        return add_initializer(graph, ir.val(unique_name(graph, "pretend"), const_value=ir.tensor(array)))

    low, high = (scalar(float(limit) - grid.zero_point) for limit in (info.min, info.max))
    divided = made("Mul", [value, scalar(1 / grid.scale)])
    whole = made("Round", [divided.outputs[0]])
    inside = made("Clip", [whole.outputs[0], low, high])
    restored = made("Mul", [inside.outputs[0], scalar(grid.scale)])
    uses = [use for use in value.uses() if use.node is not divided]
    for use in uses:
        use.node.replace_input_with(use.idx, restored.outputs[0])
    nodes = [divided, whole, inside, restored]
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, nodes)
    else:
        graph.insert_before(graph[0], nodes)


def _values(model: ir.Model) -> list[ir.Value]:
    return [*model.graph.inputs, *(value for node in list(model.graph) for value in node.outputs)]


def _float(layer: Layer) -> Array:
    tensor = layer.value.const_value
    assert tensor is not None
    return tensor.numpy()


def _name(value: ir.Value | None) -> str:
    return (value.name or "") if value is not None else ""


def _signature(feed: Feed) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in feed.items()}
