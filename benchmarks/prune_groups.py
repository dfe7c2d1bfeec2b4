"""Build large graphs and print how long `prune` takes to find their channel groups, beside what it finds.

    python benchmarks/prune_groups.py                 # 1,000 and 5,000 nodes
    python benchmarks/prune_groups.py --nodes 20000
    python benchmarks/prune_groups.py MODEL.onnx ...  # models instead

A graph repeats a residual block, a dense block, a block that splits, shuffles and joins its channels, and attention
with its MLP, on one residual stream. The processor time is that of the whole analysis: the run that gives the shapes,
the labels, the groups, and the cuts on trial, until none fails; one thread. Issue 4 bounds it by 5 seconds for 5,000
nodes.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper
from onnxedge_passes.prune.prune import analyse, prepare

from onnxedge.api import Context, load, refresh_scopes, synthesise
from onnxedge.target import load_packaged_target

WIDTH, SIDE, HEADS = 32, 4, 4


class Builder:
    """Nodes and weights of a graph on images float32 [N, 32, 4, 4]."""

    def __init__(self) -> None:
        """Begin with no node."""
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(0)

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        """Append a node; returns its output, or the names of several with commas between."""
        names = [f"v{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, **attributes))
        return ",".join(names)

    def weight(self, *shape: int) -> str:
        """Return a random weight."""
        scale = 1 / np.sqrt(max(np.prod(shape[1:]), 1))
        return self._keep((self._random.standard_normal(shape) * scale).astype(np.float32))

    def integers(self, *values: int) -> str:
        """Return a shape operand."""
        return self._keep(np.array(values, np.int64))

    def _keep(self, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(array, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def convolution(self, x: str, into: int, out: int) -> str:
        """Return a 1x1 convolution with a bias, behind a Relu."""
        return self.add("Relu", self.add("Conv", x, self.weight(out, into, 1, 1), self.weight(out)))

    def residual(self, x: str) -> str:
        """Return a bottleneck and its shortcut."""
        return self.add("Add", x, self.convolution(self.convolution(x, WIDTH, 16), 16, WIDTH))

    def dense(self, x: str) -> str:
        """Return two layers that see all before them, and a layer that brings the width back."""
        first = self.add("Concat", x, self.convolution(x, WIDTH, 8), axis=1)
        second = self.add("Concat", first, self.convolution(first, WIDTH + 8, 8), axis=1)
        return self.add("Add", x, self.convolution(second, WIDTH + 16, WIDTH))

    def shuffled(self, x: str) -> str:
        """Return halves of which one is convolved, shuffled together, on a shortcut."""
        entry = self.convolution(x, WIDTH, WIDTH)
        left, right = self.add("Split", entry, self.integers(16, 16), outputs=2, axis=1).split(",")
        joined = self.add("Concat", left, self.convolution(right, 16, 16), axis=1)
        halves = self.add("Reshape", joined, self.integers(0, 2, 16, SIDE, SIDE))
        mixed = self.add("Transpose", halves, perm=[0, 2, 1, 3, 4])
        whole = self.add("Reshape", mixed, self.integers(0, WIDTH, SIDE, SIDE))
        return self.add("Add", x, self.convolution(whole, WIDTH, WIDTH))

    def attention(self, x: str) -> str:
        """Return attention over the pixels, decomposed, and a gated MLP."""
        tokens = self.add("Transpose", self.add("Reshape", x, self.integers(0, WIDTH, -1)), perm=[0, 2, 1])
        parts = []
        for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
            product = self.add("Add", self.add("MatMul", tokens, self.weight(WIDTH, WIDTH)), self.weight(WIDTH))
            split = self.add("Reshape", product, self.integers(0, 0, HEADS, WIDTH // HEADS))
            parts.append(self.add("Transpose", split, perm=order))
        scores = self.add("Softmax", self.add("MatMul", parts[0], parts[1]), axis=-1)
        heads = self.add("Transpose", self.add("MatMul", scores, parts[2]), perm=[0, 2, 1, 3])
        joined = self.add("Reshape", heads, self.integers(0, 0, WIDTH))
        mixed = self.add("Add", tokens, self.add("MatMul", joined, self.weight(WIDTH, WIDTH)))
        gate = self.add("Sigmoid", self.add("MatMul", mixed, self.weight(WIDTH, 64)))
        inner = self.add("Mul", gate, self.add("MatMul", mixed, self.weight(WIDTH, 64)))
        out = self.add("Add", mixed, self.add("MatMul", inner, self.weight(64, WIDTH)))
        return self.add("Reshape", self.add("Transpose", out, perm=[0, 2, 1]), self.integers(0, WIDTH, SIDE, SIDE))


def build(count: int) -> ir.Model:
    """Return a model of at least that many nodes."""
    builder = Builder()
    x = builder.convolution("x", 3, WIDTH)
    while len(builder.nodes) < count:
        for block in (builder.residual, builder.dense, builder.shuffled, builder.attention):
            x = block(x)
    builder.nodes.append(helper.make_node("Conv", [x, builder.weight(5, WIDTH, 1, 1)], ["y"]))
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5, SIDE, SIDE])
    graph = helper.make_graph(builder.nodes, "g", [image], [result], builder.weights)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def measure(name: str, model: ir.Model) -> str:
    """Return a line of the table."""
    target = load_packaged_target("onnxedge.targets", "ort-cpu")
    context = Context(target, synthesise(model, count=2, run=False), original=model.clone(), seed=0)
    context.begin("prune")
    refresh_scopes(model)
    prepare(model, context)
    nodes = len(model.graph)
    start = time.process_time()
    groups = analyse(model, context)
    seconds = time.process_time() - start
    locked = Counter(group.reason for group in groups.locked if group.begins)
    told = ", ".join(f"{reason} ({count})" for reason, count in locked.most_common(3)) or "nothing"
    return f"| {name} | {nodes:,} | {seconds:.2f} | {len(groups.free)} | {told} |"


def models(paths: list[Path], counts: list[int]) -> Iterator[tuple[str, ir.Model]]:
    """Yield names and models."""
    for path in paths:
        yield path.stem, load(path)
    for count in [] if paths else counts:
        yield "built", build(count)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="*", help="ONNX files instead of built graphs")
    parser.add_argument("--nodes", type=int, nargs="*", default=[1000, 5000], help="sizes of the built graphs")
    given = parser.parse_args()
    print("| model | nodes | CPU seconds | groups | locked |\n|---|---|---|---|---|")
    for name, model in models(given.models, given.nodes):
        print(measure(name, model))


if __name__ == "__main__":
    main()
