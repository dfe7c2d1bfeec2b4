"""A piece of a model with what trains it in one graph: loss and gradients for given weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxedge.api import Array, Backward, Feed, NoGradient, Session

Example = tuple[Feed, list[Array]]  #: what the piece reads, and what its outputs should be


class Lesson:
    """Compute the loss of a piece: each output's mean squared error as a share of its target's variance, weighted."""

    def __init__(
        self,
        piece: onnx.ModelProto,
        outputs: Sequence[str],
        trained: Sequence[str],
        weights: Sequence[Array],
        examples: Sequence[Example],
        threads: int,
        factors: Sequence[float],
    ) -> None:
        """Make the graphs.

        Args:
            piece: with the trained weights among its initializers.
            outputs: values that have targets.
            trained: names of the weights.
            weights: their values.
            examples: give the shapes and the variances.
            threads: of ONNX Runtime.
            factors: how much each output counts.

        Raises:
            NoGradient: an operator has none, or there is nothing to train.
        """
        if not trained:
            raise NoGradient("a block without weights of its own")
        self._trained = list(trained)
        graph = onnx.ModelProto()
        graph.CopyFrom(piece)
        held = [tensor for tensor in piece.graph.initializer if tensor.name not in trained]
        del graph.graph.initializer[:]
        graph.graph.initializer.extend(held)
        given = dict(zip(trained, weights, strict=True))
        graph.graph.input.extend(_port(name, array) for name, array in given.items())
        known = {tensor.name: numpy_helper.to_array(tensor) for tensor in held}
        known |= _constants(piece.graph.node)
        feed, goals = examples[0]
        made = _probed(graph, {**feed, **given}, threads)
        values = {**made, **feed, **given, **known}
        shapes = {name: array.shape for name, array in values.items()}
        dtypes = {name: array.dtype for name, array in values.items()}
        back = Backward(list(piece.graph.node), shapes, known, dtypes, _opset(piece))
        self._goals: dict[str, int] = {}
        seeds, losses = {}, []
        for k, (name, goal) in enumerate(zip(outputs, goals, strict=True)):
            if goal.dtype != np.float32 or made[name].shape != goal.shape or not goal.size:
                continue
            port = f"onnxedge_goal_{k}"
            self._goals[port] = k
            graph.graph.input.append(_port(port, goal))
            variance = float(np.mean([e[1][k].var(dtype=np.float64) for e in examples]))
            scale = factors[k] / (goal.size * (variance + 1e-12))
            difference = back.make("Sub", name, port)
            seeds[name] = back.make("Mul", difference, np.array(2 * scale, np.float32))
            square = back.make("Mul", back.make("Mul", difference, difference), np.array(scale, np.float32))
            losses.append(back.make("ReduceSum", square, keepdims=0))
        if not losses:
            raise NoGradient("outputs that are no float32 arrays of the original's shape")
        self._loss = back.make("Sum", *losses)
        gradients = back.differentiate(seeds, self._trained)
        self._gradients = [gradients[name] for name in self._trained]
        graph.graph.node.extend(back.nodes)
        graph.graph.initializer.extend(back.constants)
        self._forward = Session(_ending(graph, [self._loss]), threads=threads)
        self._backward = Session(_ending(graph, self._gradients), threads=threads)

    def loss(self, weights: Sequence[Array], examples: Sequence[Example]) -> float:
        """Return the mean loss over some examples."""
        return float(np.mean([self._forward.run(self._feed(weights, *e))[self._loss] for e in examples]))

    def gradients(self, weights: Sequence[Array], feed: Feed, goals: Sequence[Array]) -> list[Array]:
        """Return the loss's gradients on one example."""
        found = self._backward.run(self._feed(weights, feed, goals))
        return [found[name] for name in self._gradients]

    def _feed(self, weights: Sequence[Array], feed: Feed, goals: Sequence[Array]) -> Feed:
        wanted = {port: goals[k] for port, k in self._goals.items()}
        return {**feed, **dict(zip(self._trained, weights, strict=True)), **wanted}


def _opset(model: onnx.ModelProto) -> int:
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _port(name: str, array: Array) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, array.shape)


def _constants(nodes: Sequence[onnx.NodeProto]) -> dict[str, Array]:
    return {
        node.output[0]: numpy_helper.to_array(node.attribute[0].t)
        for node in nodes
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }


def _ending(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy of a model with other outputs."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.output[:]
    result.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names))
    return result


def _probed(model: onnx.ModelProto, feed: Feed, threads: int) -> dict[str, Array]:
    """Return all values of one run."""
    names = [name for node in model.graph.node for name in node.output if name]
    return Session(_ending(model, names), threads=threads, level="disable").run(feed)
