"""Train what a cut left on the original's own values, block by block, without labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxedge.api import GRADIENT_OPSET, Array, Context, Feed, NoGradient, Session, constant, macs, set_constant
from onnxedge_passes.prune.blocks import Block, find_blocks, joined, weights
from onnxedge_passes.prune.facts import Facts, Shapes
from onnxedge_passes.prune.lesson import Example, Lesson
from onnxedge_passes.prune.stream import Stream
from onnxedge_passes.prune.views import fitting_views, viewed

STEPS = 1000  #: of Adam for each block, at most
_WORK = 3.6e12  #: multiply-accumulates of all steps together: about two minutes of one core
_SAMPLES = 32  #: a step
_BYTES = 1 << 28  #: activations of one batch in a block
_RATE = 5e-2  #: first length of a step, as a share of a weight's root mean square
_OUTPUT = 0.3  #: what an output of the model counts beside a value between blocks: few samples fit it too easily
_LOOKS = 10  #: times that the held-out samples are looked at
_VIEWED = 4  #: held-out batches that say which views fit


class Reconstruction:
    """One model on its way to another's values, see :func:`reconstruct`."""

    def __init__(
        self, student: ir.Model, teacher: ir.Model, fit: Sequence[Feed], held: Sequence[Feed], context: Context
    ) -> None:
        self.student, self.teacher, self.context = student, teacher, context
        same = [feed for feed in (*fit, *held) if _signature(feed) == _signature(fit[0])]
        self.count = sum(_signature(feed) == _signature(fit[0]) for feed in fit)  # the first of them are trained on
        self.feeds = same
        self.facts = Facts(student, same[0], threads=context.threads)
        self.theirs = Facts(teacher, same[0], threads=context.threads).shapes
        self.twins = {value.name: value for value in self.theirs if value.producer() is not None}
        own = self.facts.shapes
        self.comparable = {v for v in own if v.name in self.twins and self.theirs[self.twins[v.name]] == own[v]}
        self.streams = Stream(student, same, threads=context.threads), Stream(teacher, same, threads=context.threads)
        self.views = fitting_views(teacher, same[self.count :][:_VIEWED], threads=context.threads)
        self.rng = np.random.default_rng([context.seed, 1 << 21])

    def run(self) -> int:
        """Return how many blocks were bettered."""
        before = self._error()
        places = [place for node in self.student.graph for place in weights(node)]
        old = {(node, index): constant(node.inputs[index]) for node, index in places}
        waiting, changed = self._parts(find_blocks(self.student, self.comparable)), 0
        samples = self.facts.samples
        mine, theirs = (
            _work(model, shapes) for model, shapes in ((self.student, self.facts.shapes), (self.teacher, self.theirs))
        )
        work = (3 * mine + theirs) / samples
        steps = int(min(STEPS, max(_WORK / max(work * _SAMPLES, 1), 2 * _LOOKS)))
        while waiting:
            blocks = waiting.pop(0)
            try:
                changed += self._train(joined(blocks), steps)
            except NoGradient as err:
                half = len(blocks) // 2
                waiting[:0] = [blocks[:half], blocks[half:]] if half else []
                if half:
                    continue
                self.context.note(blocks[0].nodes[-1], f"its block is not reconstructed: no gradient for {err}")
            if waiting:
                border = blocks[-1].outputs[-1:]
                self.streams[0].fetch(border)
                self.streams[1].fetch([self.twins[value.name] for value in border])
        if changed and not self._error() < before:
            for (node, index), array in old.items():
                if array is not None:
                    set_constant(node, index, array)
            self.context.note(None, "blocks not reconstructed: the outputs came no nearer on held-out samples")
            return 0
        return changed

    def _parts(self, blocks: Sequence[Block]) -> list[list[Block]]:
        """Join consecutive blocks as far as the activations of a batch stay within bounds."""
        parts: list[list[Block]] = []
        room = 0
        for block in blocks:
            values = (value for node in block.nodes for value in node.outputs)
            size = sum(4 * int(np.prod(self.facts.shapes.get(value, (0,)))) for value in values)
            if not parts or size > room:
                parts.append([])
                room = _BYTES
            parts[-1].append(block)
            room -= size
        return parts

    def _error(self) -> float:
        """Return the squared error of the student's outputs on held-out samples, as a share of their squares."""
        mine, theirs = (Session(model, threads=self.context.threads) for model in (self.student, self.teacher))
        error = total = 0.0
        for feed in self.feeds[self.count :]:
            wanted, found = theirs.run(feed), mine.run(feed)
            for name, array in wanted.items():
                if array.dtype.kind == "f":
                    error += float(np.square(array.astype(np.float64) - found[name]).sum())
                    total += float(np.square(array.astype(np.float64)).sum())
        return error / max(total, 1e-30)

    def _train(self, block: Block, steps: int) -> int:
        """Train one block and tell whether it became better on held-out samples.

        Raises:
            NoGradient: it cannot be trained as a whole.
        """
        student, teacher = self.streams
        inside = set(block.nodes)
        places = [place for node in block.nodes for place in weights(node) if place[0] in inside]
        targets = [self.twins[value.name] for value in block.outputs]
        (piece, reads), (original, theirs) = student.piece(block.outputs), teacher.piece(targets)
        frozen = Session(original, threads=self.context.threads)
        names = [value.name or "" for value in targets]

        def batch(k: int, *, is_fresh: bool) -> Example:
            mine: Feed = {name: student.held[name][k] for name in reads}
            other: Feed = {name: teacher.held[name][k] for name in theirs}
            if is_fresh:
                mine = other = viewed(mine, self.views, self.rng)
            answers = frozen.run(other)
            return mine, [answers[name] for name in names]

        held = [batch(k, is_fresh=False) for k in range(self.count, len(self.feeds))]
        own = [constant(node.inputs[index]) for node, index in places]
        begin = [np.array(array, np.float32) for array in own if array is not None]
        lesson = Lesson(
            piece,
            [v.name or "" for v in block.outputs],
            [_name(node.inputs[index]) for node, index in places],
            begin,
            held,
            self.context.threads,
            [_OUTPUT if value.is_graph_output() else 1.0 for value in block.outputs],
        )
        is_fresh = reads == theirs and set(reads) <= set(self.feeds[0]) and bool(self.views)
        first = best = lesson.loss(begin, held)
        kept, now = begin, begin
        adam = Adam(begin)
        share = max(1, _SAMPLES // self.facts.samples)
        order: list[int] = []
        look = max(steps // _LOOKS, 1)
        for step in self.context.progress.track(range(1, steps + 1), "prune: blocks", steps):
            gradients = [np.zeros_like(array) for array in now]
            for _ in range(share):
                order = order or self.rng.permutation(self.count).tolist()
                parts = lesson.gradients(now, *batch(order.pop(), is_fresh=is_fresh))
                gradients = [a + b for a, b in zip(gradients, parts, strict=True)]
            now = adam.step(now, gradients, _RATE * 0.5 * (1 + np.cos(np.pi * step / steps)))
            if step % look == 0 and (loss := lesson.loss(now, held)) < best:
                best, kept = loss, now
        if not best < first:
            return 0
        for (node, index), array in zip(places, kept, strict=True):
            student.replace(node, index, array)
            set_constant(node, index, array)
        return 1


class Adam:
    """Steps in proportion to the size of what is stepped: a bias goes by its weight's root mean square."""

    def __init__(self, weights: Sequence[Array]) -> None:
        self._size: list[float] = []
        for array in weights:
            if array.ndim > 1 or not self._size:
                self._size.append(float(np.sqrt(np.mean(array * array))))
            else:
                self._size.append(self._size[-1])
        self._mean = [np.zeros_like(array) for array in weights]
        self._square = [np.zeros_like(array) for array in weights]
        self._count = 0

    def step(self, weights: Sequence[Array], gradients: Sequence[Array], rate: float) -> list[Array]:
        """Return the weights after a step; an element with an infinite or undefined gradient stays."""
        self._count += 1
        warm = min(1.0, self._count / 20)
        result = []
        for k, (array, gradient) in enumerate(zip(weights, gradients, strict=True)):
            gradient = np.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
            self._mean[k] = 0.9 * self._mean[k] + 0.1 * gradient
            self._square[k] = 0.999 * self._square[k] + 0.001 * gradient * gradient
            mean = self._mean[k] / (1 - 0.9**self._count)
            spread = np.sqrt(self._square[k] / (1 - 0.999**self._count))
            result.append((array - rate * warm * self._size[k] * mean / (spread + 1e-12)).astype(np.float32))
        return result


def reconstruct(
    student: ir.Model, teacher: ir.Model, fit: Sequence[Feed], held: Sequence[Feed], context: Context
) -> int:
    """Bring a cut model nearer to the original, block by block; return how many blocks became better.

    A block is trained on what the student gives it, to what the teacher gives there. It keeps the weights that were
    best on held-out samples, its old ones where none were better, and all are taken back where the model's outputs came
    no nearer. Blocks are trained together as far as a batch of their activations fits in memory. Classifiers see
    flipped and shifted samples, too, where the teacher's answers stay the same. Source: block reconstruction of
    Li et al. 2021, arXiv:2102.05426; Adam of Kingma and Ba 2015, arXiv:1412.6980.

    Args:
        student: is edited.
        teacher: values of the same name and shape are compared.
        fit: samples that are trained on; those of another shape than the first are left out.
        held: samples that decide.
        context: for notes, progress, seed and threads.
    """
    if (version := student.graph.opset_imports.get("", 0)) < GRADIENT_OPSET:
        context.note(None, f"blocks not reconstructed: opset {version} is below {GRADIENT_OPSET}")
        return 0
    if not fit or not any(_signature(feed) == _signature(fit[0]) for feed in held):
        context.note(None, "blocks not reconstructed: no held-out samples of the same shape")
        return 0
    return Reconstruction(student, teacher, fit, held, context).run()


def _name(value: ir.Value | None) -> str:
    return (value.name or "") if value is not None else ""


def _work(model: ir.Model, shapes: Shapes) -> int:
    return sum(macs(node, lambda value: shapes.get(value) if value is not None else None) or 0 for node in model.graph)


def _signature(feed: Feed) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in feed.items()}
