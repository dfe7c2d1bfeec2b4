"""Random graphs that begin and end in weights, cut at random: what is left computes what the masked model does.

python tests/passes/prune/test_random_cuts.py channels 0 5000        # seeds; what breaks is shown
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

import numpy as np
import onnx
import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from onnxedge_passes.prune.branches import close_branches
from onnxedge_passes.prune.compensation import masked_constants
from onnxedge_passes.prune.cut import Cut
from onnxedge_passes.prune.prune import analyse, prepare
from onnxedge_passes.prune.surgery import apply
from onnxedge_passes.prune.trial import masked
from random_channels import random_channels
from random_graphs import arithmetic, blocks, control, movement, networks
from random_graphs.build import feed_for
from random_graphs.graph import BINDINGS, Graph, Opset, Value, fixed

from onnxedge.api import CannotRun, Context, Feed, Session, refresh_scopes, to_proto
from onnxedge.model.io import from_proto
from onnxedge.target import load_packaged_target
from onnxedge.verify import infer_shapes

SEEDS, PARTS = 160, 8

MAKERS = (
    (networks.conv, 12), (networks.matmul, 10), (networks.gemm, 6), (networks.conv_transpose, 3),
    (networks.normalized, 3), (networks.pool, 2), (networks.resize, 2), (networks.residual, 6),
    (networks.product, 1), (networks.einsum, 2),
    *((maker, 1) for maker in (*arithmetic.MAKERS, *blocks.MAKERS)), *((maker, 2) for maker in movement.MAKERS),
    (control.if_, 4), (control.loop, 1), (control.scan, 1), (control.function, 1),
)  # fmt: skip
INPUTS = (("N", 3, 6, 6), ("N", 4, 5, 5), ("N", "T", 8), ("N", 4, 8), ("N", 8))


class Samples:
    """Calibration data of one feed."""

    synthetic = False

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def feeds(self, size: int = 1, limit: int | None = None) -> Iterator[Feed]:
        return iter([self._feed])


def random_network(r: Random) -> onnx.ModelProto | None:
    """Return a model in which a weight reads the input, and weights read all that nothing else reads."""
    graph = Graph(r, Opset(r.choice((*range(9, 25), 13, 17, 17, 18, 21)), r.choice((8, 10))))
    start = graph.add_input("float32", r.choice(INPUTS))
    (networks.conv if start.rank == 4 else networks.matmul)(graph)
    makers, often = zip(*MAKERS, strict=True)
    for _ in range(r.randint(2, 10)):
        r.choices(makers, often)[0](graph)
    read = {name for node in graph.nodes for name in node.input}
    ends = [value for value in graph.values if value.made and value.kind == "float32" and value.rank >= 2]
    outputs = [_read(graph, value) for value in ends if value.name not in read]
    found = [value for value in outputs if value is not None]
    return graph.model(found) if found else None


def _read(graph: Graph, value: Value) -> Value | None:
    """Add a contraction behind a value, over its last axis or over its channels, those of all pixels perhaps."""
    last, channels = value.static(value.rank - 1), value.static(1)
    if value.rank == 4 and channels and graph.r.random() < 0.6:
        weight = graph.constant(graph.array("float32", [3, channels, 1, 1]))
        return graph.add("Conv", [value, weight], "float32", [value.shape[0], fixed(3), *value.shape[2:]])
    if value.rank == 4 and channels and last and value.static(2) and graph.r.random() < 0.4:
        width = channels * last * (value.static(2) or 0)
        value, last = graph.add("Flatten", [value], "float32", [value.shape[0], fixed(width)]), width
    if not last:
        return None
    weight = graph.constant(graph.array("float32", [last, 3]))
    return graph.add("MatMul", [value, weight], "float32", [*value.shape[:-1], fixed(3)])


def outcome(make: Callable[[Random], onnx.ModelProto | None], seed: int) -> str:
    """Cut one model and tell how many groups it has, or why there is nothing to cut.

    Raises:
        AssertionError: the cut model does not load, or does not compute what the masked one does.
    """
    proto = make(Random(seed))
    if proto is None:
        return "no end"
    feeds = [feed_for(proto, binding) for binding in range(len(BINDINGS["N"]))]
    try:
        onnx.checker.check_model(proto)
        session = Session(proto, level="disable")
        for feed in feeds:
            session.run(feed)
    except (CannotRun, onnx.checker.ValidationError):
        return "not accepted"
    model = from_proto(proto)
    infer_shapes(model)
    refresh_scopes(model)
    target, data = load_packaged_target("onnxedge.targets", "ort-cpu"), Samples(feeds[1])
    context = Context(target, data, original=model.clone())  # type: ignore[arg-type]
    context.begin("prune")
    prepare(model, context)
    groups = analyse(model, context)
    removed, rng = np.zeros(len(groups.component), bool), np.random.default_rng(seed)
    for group in groups.free:
        removed[rng.choice(group.units, rng.integers(0, len(group.units)), replace=False)] = True
    cut = Cut(groups, removed)
    assert not cut.failures, [(node.op_type, reason) for node, _, reason in cut.failures]
    constants = masked_constants(groups, removed)
    wanted = [outputs(masked(model, constants), feed) for feed in feeds]
    apply(cut, constants)
    close_branches(model)
    onnx.checker.check_model(to_proto(model))
    for binding, feed in enumerate(feeds):
        compare(outputs(model, feed), wanted[binding], f"seed {seed} at binding {binding}")
    return "free" if groups.free else "locked"


def outputs(model: object, feed: Feed) -> list[np.ndarray]:
    return list(Session(model, level="disable").run(feed).values())  # type: ignore[arg-type]


def compare(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray], where: str) -> None:
    """What is infinite or undefined times 0 is undefined in the masked model: there the cut one may give numbers."""
    for array, expected in zip(found, wanted, strict=True):
        assert array.shape == expected.shape, where
        finite = np.isfinite(expected)
        scale = float(np.abs(expected[finite]).max(initial=0))
        np.testing.assert_allclose(array[finite], expected[finite], rtol=1e-3, atol=1e-3 * scale, err_msg=where)


MADE = {"network": random_network, "channels": random_channels}


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", MADE)
def test_a_cut_computes_what_the_masked_model_does(name: str, part: int) -> None:
    counts = Counter(outcome(MADE[name], seed) for seed in range(part, SEEDS, PARTS))
    assert counts["free"] >= 0.4 * SEEDS / PARTS, counts


if __name__ == "__main__":
    told: Counter[str] = Counter()
    for number in range(int(sys.argv[2]), int(sys.argv[3])):
        try:
            told[outcome(MADE[sys.argv[1]], number)] += 1
        except Exception as err:  # a pass may raise anything
            told["BROKEN"] += 1
            print(number, type(err).__name__, str(err)[:300], flush=True)  # noqa: T201
    print(dict(told))  # noqa: T201
