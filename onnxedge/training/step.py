"""Engine ``ort``: a composed graph with its gradients and the optimizer's step in it, in standard operators."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxedge.autodiff import Backward, NoGradient, Values, attribute, graph_values
from onnxedge.errors import UserError
from onnxedge.model.graph import Array
from onnxedge.training.settings import Settings

SECOND_DECAY = 0.999  #: of AdamW's second moments


@dataclass(frozen=True)
class Step:
    """Hold the graphs of a run.

    Attributes:
        model: one batch: the loss, and what takes the place of inputs.
        update: the optimizer's step where it comes after several batches, else None: then it is in ``model``.
        loss: name of the output.
        schedule: input float32 [3] of the optimizer: rate, what is left of a weight, second moment's correction.
        replaces: output -> input that it takes the place of, in either graph.
        state: input -> shape, for all that begins with 0: moments, sums of gradients.
        moments: trained value -> its moments among ``state``.
        sums: those of ``state`` that begin with 0 again after each update.
    """

    model: onnx.ModelProto
    update: onnx.ModelProto | None
    loss: str
    schedule: str
    replaces: Mapping[str, str]
    state: Mapping[str, tuple[int, ...]]
    moments: Mapping[str, tuple[str, ...]]
    sums: tuple[str, ...]


def build_step(
    model: onnx.ModelProto,
    feed: Mapping[str, Array],
    *,
    trained: Sequence[str],
    statistics: Collection[str] = (),
    spared: Collection[str] = (),
    settings: Settings,
) -> Step:
    """Differentiate a training graph.

    Args:
        model: output 0 is the loss, a scalar; consumed.
        feed: one batch of all inputs; gives the shapes, which are fixed.
        trained: initializers that are trained.
        statistics: running statistics of BatchNormalization: nodes that have both among these go by the batch.
        spared: weights without weight decay.
        settings: optimizer, clipping and accumulation; the rate is an input.

    Raises:
        UserError: an operator on the way from a weight to the loss has no gradient.
    """
    graph = model.graph
    loss = graph.output[0].name
    arrays = {tensor.name: tensor for tensor in graph.initializer}
    sizes = {name: tuple(arrays[name].dims) for name in (*trained, *statistics)}
    followed = _follow_batches(graph, set(statistics))
    known = _promoted(graph, sizes)
    values = graph_values(model, feed, {name: numpy_helper.to_array(arrays[name]) for name in sizes}, known)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    back = Backward(values.nodes, values.shapes, values.known, values.dtypes, opset)
    try:
        gradients = back.differentiate({loss: back.constant(np.float32(1))}, trained)
    except NoGradient as err:
        raise UserError(f"ort: no gradient for {err}; see the notes of prepare-training") from err
    made = _Optimizer(back, settings, spared, sizes)
    replaces = {back.make("Identity", source): name for name, source in followed.items()}
    if settings.accumulate == 1:
        replaces |= made.put({name: gradients[name] for name in trained})
        outputs = _replacing(replaces, {**sizes, **made.state}, loss)
        return Step(
            _model(values, back, {**_inputs(feed), **_floats(sizes), **made.inputs}, outputs, model),
            None, loss, made.schedule, replaces, made.state, made.moments, (),
        )  # fmt: skip
    share = np.float32(1 / settings.accumulate)
    sums = {name: f"{back.prefix}_sum{index}" for index, name in enumerate(trained)}
    replaces |= {back.make("Add", sums[name], back.make("Mul", gradients[name], share)): sums[name] for name in trained}
    held = {sums[name]: sizes[name] for name in trained}
    outputs = _replacing(replaces, {**sizes, **held}, loss)
    batch = _model(values, back, {**_inputs(feed), **_floats(sizes), **_floats(held)}, outputs, model)
    alone = Backward([], {}, {}, {}, opset, back.prefix + "_step")
    made = _Optimizer(alone, settings, spared, sizes)
    later = made.put(sums)
    empty = Values([], {}, {}, {}, {})
    weights = {name: sizes[name] for name in trained}
    ends = _replacing(later, {**weights, **made.state})
    update = _model(empty, alone, {**_floats(weights), **_floats(held), **made.inputs}, ends, model)
    return Step(
        batch, update, loss, made.schedule, {**replaces, **later}, {**made.state, **held}, made.moments,
        tuple(sums.values()),
    )  # fmt: skip


class _Optimizer:
    """Nodes of an optimizer's step, as :class:`onnxedge.training.optimizers.Optimizer` has it in NumPy."""

    def __init__(
        self, back: Backward, settings: Settings, spared: Collection[str], sizes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self._back, self._settings, self._spared, self._sizes = back, settings, frozenset(spared), sizes
        self.schedule = f"{back.prefix}_schedule"
        self.state: dict[str, tuple[int, ...]] = {}
        self.moments: dict[str, tuple[str, ...]] = {}
        self.inputs: dict[str, tuple[int, tuple[int, ...]]] = {}

    def put(self, gradients: Mapping[str, str]) -> dict[str, str]:
        """Put the step of all weights, and return what takes the place of what."""
        back, kinds = self._back, ("first", "second") if self._settings.optimizer == "adamw" else ("first",)
        numbers = [back.make("Gather", self.schedule, np.array(place, np.int64), axis=0) for place in range(3)]
        factor = self._clipping(list(gradients.values()))
        result: dict[str, str] = {}
        for index, (name, gradient) in enumerate(gradients.items()):
            if factor:
                gradient = back.make("Mul", gradient, factor)
            self.moments[name] = tuple(f"{back.prefix}_{kind}{index}" for kind in kinds)
            self.state |= dict.fromkeys(self.moments[name], self._sizes[name])
            moved, direction = self._direction(self.moments[name], gradient, numbers[2])
            decays = self._settings.weight_decay and name not in self._spared
            kept = back.make("Mul", name, numbers[1]) if decays else name
            result[back.make("Sub", kept, back.make("Mul", direction, numbers[0]))] = name
            result |= moved
        self.inputs = {**_floats(self.state), **_floats({self.schedule: (3,)})}
        return result

    def _clipping(self, gradients: Sequence[str]) -> str:
        limit = self._settings.clip
        if not limit:
            return ""
        back = self._back
        squares = [back.make("ReduceSumSquare", gradient, keepdims=0) for gradient in gradients]
        norm = back.make("Sqrt", back.make("Sum", *squares))
        return back.make("Div", np.float32(limit), back.make("Max", norm, np.float32(limit)))

    def _direction(self, moments: Sequence[str], gradient: str, correction: str) -> tuple[dict[str, str], str]:
        back, a, b = self._back, np.float32(self._settings.momentum), np.float32(SECOND_DECAY)
        if len(moments) == 1:
            first = back.make("Add", back.make("Mul", moments[0], a), gradient)
            return {first: moments[0]}, first
        one = np.float32(1)
        parts = (back.make("Mul", moments[0], a), back.make("Mul", gradient, one - a))
        first = back.make("Add", *parts)
        square = back.make("Mul", back.make("Mul", gradient, gradient), np.float32(1 - SECOND_DECAY))
        second = back.make("Add", back.make("Mul", moments[1], b), square)
        root = back.make("Add", back.make("Sqrt", back.make("Div", second, correction)), np.float32(1e-8))
        return {first: moments[0], second: moments[1]}, back.make("Div", first, root)


def _follow_batches(graph: onnx.GraphProto, statistics: Collection[str]) -> dict[str, str]:
    """Let BatchNormalization go by the batch; return the value that each running statistic becomes.

    With a momentum of 0 the node's own outputs are mean and variance of the batch. ONNX Runtime writes them over its
    inputs 3 and 4, and so those are values that nothing else reads.
    """
    latest = {name: name for name in statistics}
    nodes: list[onnx.NodeProto] = []
    for place, node in enumerate(graph.node):
        if node.op_type != "BatchNormalization" or not {*node.input[3:5]} <= set(statistics):
            nodes.append(node)
            continue
        momentum = attribute(node, "momentum", 0.9)
        kept = [entry for entry in node.attribute if entry.name not in ("momentum", "training_mode")]
        del node.attribute[:], node.output[1:]
        node.attribute.extend(kept)
        node.attribute.extend([helper.make_attribute("training_mode", 1), helper.make_attribute("momentum", 0.0)])
        followed, after_node = list(node.input[3:5]), list[onnx.NodeProto]()
        for index, name in enumerate(followed):
            parts = ("over", "now", "a", "b", "next")
            over, batch, old, new, after = (f"onnxedge_batch_{place}_{index}_{part}" for part in parts)
            node.output.append(batch)
            node.input[3 + index] = over
            nodes.append(helper.make_node("Neg", [latest[name]], [over]))
            factors = [f"onnxedge_batch_{momentum}_{part}" for part in ("old", "new")]
            known = {tensor.name for tensor in graph.initializer}
            for factor, value in zip(factors, (momentum, 1 - momentum), strict=True):
                if factor not in known:
                    graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), factor))
            after_node += [
                helper.make_node("Mul", [latest[name], factors[0]], [old]),
                helper.make_node("Mul", [batch, factors[1]], [new]),
                helper.make_node("Add", [old, new], [after]),
            ]
            latest[name] = after
        nodes += [node, *after_node]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return {name: value for name, value in latest.items() if value != name}


def _promoted(graph: onnx.GraphProto, names: Collection[str]) -> dict[str, Array]:
    """Take weights and statistics out of the initializers, and return the others."""
    held = [tensor for tensor in graph.initializer if tensor.name not in names]
    copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in held]
    del graph.initializer[:]
    graph.initializer.extend(copies)
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in copies}


_Ports = Mapping[str, tuple[int, tuple[int, ...]]]


def _floats(sizes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, tuple[int, ...]]]:
    return {name: (onnx.TensorProto.FLOAT, size) for name, size in sizes.items()}


def _replacing(replaces: Mapping[str, str], sizes: Mapping[str, tuple[int, ...]], loss: str = "") -> _Ports:
    """Return outputs: the loss, and what takes the place of inputs, of their shapes."""
    scalar: dict[str, tuple[int, ...]] = {loss: ()} if loss else {}
    return _floats({**scalar, **{name: sizes[place] for name, place in replaces.items()}})


def _inputs(feed: Mapping[str, Array]) -> dict[str, tuple[int, tuple[int, ...]]]:
    return {name: (helper.np_dtype_to_tensor_dtype(array.dtype), array.shape) for name, array in feed.items()}


def _model(values: Values, back: Backward, inputs: _Ports, outputs: _Ports, like: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model of what some outputs depend on."""
    wanted, nodes = set(outputs), []
    for node in reversed([*values.nodes, *back.nodes]):
        if wanted.intersection(node.output):
            wanted.update(name for name in node.input if name)
            nodes.append(node)
    ports = [helper.make_tensor_value_info(name, *port) for name, port in inputs.items()]
    held = [tensor for tensor in (*values.initializers.values(), *back.constants) if tensor.name in wanted]
    ends = [helper.make_tensor_value_info(name, *port) for name, port in outputs.items()]
    graph = helper.make_graph(nodes[::-1], "step", ports, ends, held)
    return helper.make_model(graph, opset_imports=like.opset_import, ir_version=like.ir_version)
