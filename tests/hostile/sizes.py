"""Models that are valid and plain, and large in one direction."""

from __future__ import annotations

import numpy as np
import onnx

from hostile.maker import Maker, chain, model_of, parse, proto, spliced

FLOAT = onnx.TensorProto.FLOAT
ONE = {"w": np.ones(4, np.float32)}
HALF = {"w": np.full(4, 0.5, np.float32)}


def _nodes(
    nodes: list[onnx.NodeProto], inputs: list[str], outputs: list[str], **weights: np.ndarray
) -> onnx.ModelProto:
    value = onnx.helper.make_tensor_value_info
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    sides = [value(name, FLOAT, [4]) for name in inputs], [value(name, FLOAT, [4]) for name in outputs]
    return model_of(onnx.helper.make_graph(nodes, "g", *sides, tensors))


def _readers(count: int) -> onnx.ModelProto:
    """One value with many readers, whose results are summed up in groups of a hundred."""
    node = onnx.helper.make_node
    nodes = [node("Relu", ["x"], ["a"])]
    nodes += [node("Add", ["a", "w"], [f"b{i}"]) for i in range(count)]
    groups = range(0, count, 100)
    nodes += [node("Sum", [f"b{i}" for i in range(g, min(g + 100, count))], [f"c{g}"]) for g in groups]
    nodes += [node("Sum", [f"c{g}" for g in groups], ["y"])]
    return _nodes(nodes, ["x"], ["y"], **HALF)


def _constants(count: int) -> onnx.ModelProto:
    """A chain whose every step reads a Constant node of its own."""
    nodes = []
    for i in range(count):
        tensor = onnx.helper.make_tensor("t", FLOAT, [1], [float(i)])
        nodes += [onnx.helper.make_node("Constant", [], [f"c{i}"], value=tensor)]
        nodes += [onnx.helper.make_node("Add", [f"v{i}", f"c{i}"], [f"v{i + 1}"])]
    return _nodes(nodes, ["v0"], [f"v{count}"])


def _foldable(count: int) -> onnx.ModelProto:
    """A chain of constants, all of which fold."""
    nodes = [onnx.helper.make_node("Add", [f"c{i}", "w"], [f"c{i + 1}"]) for i in range(count)]
    return _nodes([*nodes, onnx.helper.make_node("Add", ["x", f"c{count}"], ["y"])], ["x"], ["y"], c0=ONE["w"], **HALF)


def _inputs(count: int) -> onnx.ModelProto:
    names = [f"x{i}" for i in range(count)]
    return _nodes([onnx.helper.make_node("Sum", names, ["y"])], names, ["y"])


def _outputs(count: int) -> onnx.ModelProto:
    names = [f"y{i}" for i in range(count)]
    return _nodes([onnx.helper.make_node("Identity", ["x"], [name]) for name in names], ["x"], names)


def _weights(count: int) -> onnx.ModelProto:
    nodes = [onnx.helper.make_node("Add", [f"v{i}", f"w{i}"], [f"v{i + 1}"]) for i in range(count)]
    return _nodes(nodes, ["v0"], [f"v{count}"], **{f"w{i}": np.full(4, i, np.float32) for i in range(count)})


def _ladder(count: int) -> onnx.ModelProto:
    """Diamonds in a row: 2^count paths through them."""
    nodes = []
    for i in range(count):
        nodes += [
            onnx.helper.make_node("Relu", [f"v{i}"], [f"a{i}"]),
            onnx.helper.make_node("Neg", [f"v{i}"], [f"b{i}"]),
        ]
        nodes += [onnx.helper.make_node("Max", [f"a{i}", f"b{i}"], [f"v{i + 1}"])]
    return _nodes(nodes, ["v0"], [f"v{count}"])


def _ifs(count: int) -> onnx.ModelProto:
    nodes = " ".join(
        f"v{i + 1} = If(t) <then_branch = p{i} () => (float[1] r{i}) {{ r{i} = Relu(v{i}) }},"
        f" else_branch = q{i} () => (float[1] s{i}) {{ s{i} = Neg(v{i}) }}>"
        for i in range(count)
    )
    return parse(spliced("<bool t = {1}>", nodes, f"y = Neg(v{count})").replace("float[1] x", "float[1] v0"))


def _functions(count: int) -> onnx.ModelProto:
    functions = " ".join(
        f'<domain: "f", opset_import: ["": 17]> h{i} (a) => (b) {{ b = Relu(a) }}' for i in range(count)
    )
    calls = " ".join(f"v{i + 1} = f.h{i}(v{i})" for i in range(count))
    return parse(spliced(calls, f"y = Neg(v{count})").replace("float[1] x", "float[1] v0"), functions=functions)


def _rank(rank: int) -> onnx.ModelProto:
    shape, value = [1] * rank, onnx.helper.make_tensor_value_info
    nodes = [
        onnx.helper.make_node("Transpose", ["x"], ["a"], perm=list(reversed(range(rank)))),
        onnx.helper.make_node("Transpose", ["a"], ["b"], perm=list(reversed(range(rank)))),
        onnx.helper.make_node("Relu", ["b"], ["y"]),
    ]
    return model_of(onnx.helper.make_graph(nodes, "g", [value("x", FLOAT, shape)], [value("y", FLOAT, shape)]))


def _join(count: int) -> onnx.ModelProto:
    model = _nodes([onnx.helper.make_node("Concat", ["x"] * count, ["y"], axis=0)], ["x"], ["y"])
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 4 * count
    return model


def _models(many: int) -> dict[str, Maker]:
    fifth = many // 5
    return {
        f"chain of {many:,} Relu": proto(lambda: chain("Relu", many)),
        f"chain of {many:,} Neg": proto(lambda: chain("Neg", many)),
        f"chain of {many:,} Identity": proto(lambda: chain("Identity", many)),
        f"chain of {many:,} Add": proto(lambda: chain("Add", many, extra="w", weights=HALF)),
        f"chain of {many:,} Mul by 1": proto(lambda: chain("Mul", many, extra="w", weights=ONE)),
        f"chain of {many:,} foldable Add": proto(lambda: _foldable(many)),
        f"chain of {fifth:,} Constant and Add": proto(lambda: _constants(fifth)),
        f"{many:,} readers": proto(lambda: _readers(many)),
        f"{fifth:,} inputs": proto(lambda: _inputs(fifth)),
        f"{fifth:,} outputs": proto(lambda: _outputs(fifth)),
        f"{fifth:,} weights": proto(lambda: _weights(fifth)),
        f"Concat of {many // 2:,}": proto(lambda: _join(many // 2)),
    }


MODELS: dict[str, Maker] = {
    **_models(5_000),
    "2,000 diamonds": proto(lambda: _ladder(2_000)),
    "1,000 Ifs": proto(lambda: _ifs(1_000)),
    "1,000 functions": proto(lambda: _functions(1_000)),
    "rank 8": proto(lambda: _rank(8)),
    "rank 64": proto(lambda: _rank(64)),
    "rank 1,000": proto(lambda: _rank(1_000)),
}
HUGE = _models(100_000)  #: these take minutes in all: the benchmark runs them, the tests do not
