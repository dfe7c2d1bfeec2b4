"""Build a random model: inputs, then nodes one by one on values whose types and sizes are known, then outputs."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
import onnx

from random_graphs import arithmetic, blocks, control, movement, networks
from random_graphs.graph import BINDINGS, Graph, Opset, Value

Maker = Callable[[Graph], Value | None]

#: what the next node or block is made by, and how often
MAKERS: tuple[tuple[Maker, int], ...] = (
    *((maker, 4) for maker in arithmetic.MAKERS),
    *((maker, 3) for maker in movement.MAKERS),
    *((maker, 2) for maker in networks.MAKERS),
    *((maker, 1) for maker in blocks.MAKERS),
    *((maker, 1) for maker in control.MAKERS),
)
KINDS = (*(["float32"] * 8), "float64", "int64", "int64", "int32", "bool", "float16")
SHAPES = (
    ("N", 4, 8), ("N", "T", 8), ("N", 3, 6, 6), ("N", 4), ("N", "T", 4), (2, 8), (4,), ("N", 8), ("T",), (),
    ("N", 4, 5, 5),
    (1, "T", 8), ("N", "N"), (3, 4, 4), ("N", 2, 2, 8),
)  # fmt: skip


def random_model(r: Random, *, nodes: int = 12) -> onnx.ModelProto:
    """Return a model that ONNX's checker takes, most of which ONNX Runtime takes too."""
    opset = r.choice((*range(9, 25), 13, 17, 17, 18, 21))
    version = r.choice((8, 8, 9, 10)) if opset > 14 or r.random() < 0.5 else r.choice((4, 5, 6, 7))
    graph = Graph(r, Opset(opset, version))
    for index in range(r.choice((1, 1, 2, 2, 3))):
        kind = "float32" if index == 0 and r.random() < 0.8 else r.choice(KINDS)
        graph.add_input(kind, r.choice(SHAPES))
    makers, weights = zip(*MAKERS, strict=True)
    for _ in range(r.randint(1, nodes)):
        maker = r.choices(makers, weights)[0]
        maker(graph)
    return finish(graph)


def finish(graph: Graph) -> onnx.ModelProto:
    """Choose outputs and return the model."""
    r = graph.r
    made = [value for value in graph.values if value.made] or graph.values[:1]
    chosen = [made[-1], *r.sample(made, min(len(made), r.choice((0, 0, 1, 2, 3))))]
    if r.random() < 0.05:
        chosen.append(r.choice(graph.values))  # an input, perhaps
    outputs = list({value.name: value for value in chosen}.values())
    return graph.model(outputs)


def feed_for(model: onnx.ModelProto, binding: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return inputs for one of the three bindings of the free dimensions; optional ones are left out at the first."""
    rng = np.random.default_rng([binding, seed])
    optional = {tensor.name for tensor in model.graph.initializer}
    feed = {}
    for value in model.graph.input:
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        dims = value.type.tensor_type.shape.dim
        shape = [BINDINGS[d.dim_param][binding] if d.dim_param else d.dim_value for d in dims]
        if kind.kind == "f":
            array = np.asarray(rng.standard_normal(shape) * 2).astype(kind)
        elif kind.kind == "b":
            array = np.asarray(rng.random(shape) > 0.5)
        else:
            array = np.asarray(rng.integers(-4, 5, shape)).astype(kind)
        if value.name not in optional or binding == 1:
            feed[value.name] = array
    return feed
