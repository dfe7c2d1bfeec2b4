"""Random networks that move, split, join and mix channels in every way that operators allow; each ends in weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from random import Random

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxedge.api import Array

LARGEST, FLAT = 24, 64  #: channels of an axis, also of one that was flattened
INPUTS = ((3, 4, 4), (4, 4, 4), (5, 8), (4, 6), (8,))
UNARY = ("Relu", "Sigmoid", "Tanh", "Neg", "Abs")


@dataclass(frozen=True)
class Value:
    """A value float32 [N, *shape]."""

    name: str
    shape: tuple[int, ...]

    def resized(self, axis: int, size: int) -> tuple[int, ...]:
        """Return its shape with another size along an axis (0 is the one behind N)."""
        return tuple(size if place == axis else old for place, old in enumerate(self.shape))


class Network:
    """A graph that grows; what is made last is read more often."""

    def __init__(self, r: Random) -> None:
        self.r, self._rng = r, np.random.default_rng(r.getrandbits(32))
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self._shared: dict[tuple[int, ...], str] = {}
        self.input = Value("x", r.choice(INPUTS))
        self.values = [self.input]

    def add(self, op: str, inputs: list[str], *shapes: tuple[int, ...], **attributes: object) -> Value:
        """Add a node whose outputs have the given shapes; return the last."""
        made = [Value(f"v{len(self.nodes)}_{k}", shape) for k, shape in enumerate(shapes)]
        self.nodes.append(helper.make_node(op, inputs, [value.name for value in made], **attributes))
        self.values += made
        return made[-1]

    def hidden(self, op: str, inputs: list[str], **attributes: object) -> str:
        """Add a node whose output is no float that others read."""
        name = f"h{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def constant(self, array: Array) -> str:
        """Add an initializer."""
        self.tensors.append(numpy_helper.from_array(array, f"c{len(self.tensors)}"))
        return str(self.tensors[-1].name)

    def weight(self, *shape: int) -> str:
        """Return random floats; one in four are those that another node has."""
        if shape not in self._shared or self.r.random() < 0.75:
            self._shared[shape] = self.constant((self._rng.standard_normal(shape) * 0.5).astype(np.float32))
        return self._shared[shape]

    def positive(self, size: int) -> str:
        """Return floats above 0.1."""
        return self.constant(np.abs(self._rng.standard_normal(size)).astype(np.float32) + np.float32(0.1))

    def ints(self, *numbers: int) -> str:
        """Return a row of int64."""
        return self.constant(np.array(numbers, np.int64))

    def batched(self, *shape: int) -> str:
        """Return a shape [N, *shape] that is put together when the model runs."""
        batch = self.hidden("Shape", [self.input.name], start=0, end=1)
        return self.hidden("Concat", [batch, self.ints(*shape)], axis=0)

    def pick(self) -> Value:
        """Choose a value, a late one more often."""
        return self.values[-1 - min(int(self.r.expovariate(0.7)), len(self.values) - 1)]

    def divisor(self, size: int) -> int | None:
        """Choose a divisor between 1 and the number itself."""
        found = [number for number in range(2, size) if size % number == 0]
        return self.r.choice(found) if found else None


def convolution(g: Network, v: Value) -> None:
    """Add a weight: a convolution or its transpose, over groups perhaps, a matrix, or a Gemm of either form."""
    size, bias = g.r.choice((4, 6, 8)), g.r.random() < 0.6
    if len(v.shape) == 2:
        g.add("MatMul", [v.name, g.weight(v.shape[1], size)], (v.shape[0], size))
        return
    if len(v.shape) == 1:
        turned = int(bias)
        shape = (size, v.shape[0]) if turned else (v.shape[0], size)
        g.add("Gemm", [v.name, g.weight(*shape), g.weight(size)], (size,), transB=turned)
        return
    if len(v.shape) != 3:
        return
    form, group = g.r.choice(("plain", "plain", "grouped", "depthwise", "transposed")), 1
    if form == "transposed":
        g.add("ConvTranspose", [v.name, g.weight(v.shape[0], size, 1, 1)], v.resized(0, size))
        return
    if form != "plain":
        group = v.shape[0] if form == "depthwise" else g.divisor(v.shape[0]) or 1
        size = group * g.r.choice((1, 2))
    extra = [g.weight(size)] if bias else []
    kernel = g.r.choice((1, 3))
    weight = g.weight(size, v.shape[0] // group, kernel, kernel)
    g.add("Conv", [v.name, weight, *extra], v.resized(0, size), group=group, pads=[kernel // 2] * 4)


def normalization(g: Network, v: Value) -> None:
    """Add a normalization that fits, or squeeze and excite."""
    size = v.shape[0]
    if len(v.shape) == 2:
        g.add("LayerNormalization", [v.name, g.weight(v.shape[1]), g.weight(v.shape[1])], v.shape)
    if len(v.shape) != 3:
        return
    form, groups = g.r.choice(("batch", "instance", "group", "excite")), g.divisor(size)
    if form == "batch":
        g.add("BatchNormalization", [v.name, *(g.weight(size) for _ in range(3)), g.positive(size)], v.shape)
    elif form == "instance":
        g.add("InstanceNormalization", [v.name, g.weight(size), g.weight(size)], v.shape)
    elif form == "group" and groups:
        g.add("GroupNormalization", [v.name, g.weight(size), g.weight(size)], v.shape, num_groups=groups)
    elif form == "excite":
        p = g.add("GlobalAveragePool", [v.name], (size, 1, 1))
        p = g.add("Conv", [p.name, g.weight(4, size, 1, 1)], (4, 1, 1))
        p = g.add("Conv", [p.name, g.weight(size, 4, 1, 1)], (size, 1, 1))
        g.add("Mul", [v.name, p.name], v.shape)


def elementwise(g: Network, v: Value) -> None:
    """Add an activation, a sum or choice of values of one shape, or a constant of any shape that fits."""
    form, same = (
        g.r.choice(("unary", "sum", "sum", "where", "constant", "slope")),
        [other.name for other in g.values if other.shape == v.shape],
    )
    if form == "unary":
        g.add(g.r.choice(UNARY), [v.name], v.shape)
    elif form == "sum":
        g.add(g.r.choice(("Add", "Add", "Mul", "Max")), [v.name, g.r.choice(same)], v.shape)
    elif form == "where":
        chosen = g.hidden("Cast", [g.hidden("Sign", [g.r.choice(same)])], to=TensorProto.BOOL)
        g.add("Where", [chosen, v.name, g.r.choice(same)], v.shape)
    elif form == "constant":
        shape = [g.r.choice((1, size)) for size in v.shape][g.r.randrange(len(v.shape)) :]
        g.add(g.r.choice(("Add", "Mul", "Max", "Div")), [v.name, g.weight(*shape)], v.shape)
    else:
        g.add("PRelu", [v.name, g.weight(v.shape[0], *[1] * (len(v.shape) - 1))], v.shape)


def concat(g: Network, v: Value) -> None:
    """Join values along an axis, or a value and a constant."""
    axis = g.r.randrange(len(v.shape))
    fitting = [w for w in g.values if len(w.shape) == len(v.shape) and v.resized(axis, w.shape[axis]) == w.shape]
    if g.r.random() < 0.3:
        shape = v.resized(axis, g.r.choice((1, 2)))
        others = [Value(g.hidden("Expand", [g.weight(1, *shape), g.batched(*shape)]), shape)]
    else:
        others = [g.r.choice(fitting) for _ in range(g.r.choice((1, 1, 2)))]
    size = v.shape[axis] + sum(other.shape[axis] for other in others)
    if size <= LARGEST:
        names = [v.name, *(other.name for other in others)]
        g.r.shuffle(names)
        g.add("Concat", names, v.resized(axis, size), axis=axis + 1)


def part(g: Network, v: Value) -> None:
    """Take parts of an axis: a Split, a Slice forwards or backwards, a Gather in any order."""
    axis = g.r.randrange(len(v.shape))
    form, size = g.r.choice(("split", "split", "slice", "gather")), v.shape[axis]
    if size < 2:
        return
    if form == "split":
        first = size // 2 if size % 2 == 0 and g.r.random() < 0.5 else g.r.randrange(1, size)
        shapes = v.resized(axis, first), v.resized(axis, size - first)
        if first == size - first:
            g.add("Split", [v.name], *shapes, axis=axis + 1, num_outputs=2)
        else:
            g.add("Split", [v.name, g.ints(first, size - first)], *shapes, axis=axis + 1)
    elif form == "slice":
        step = g.r.choice((1, 1, 1, 2, -1))
        begin = size - 1 if step < 0 else g.r.randrange(size - 1)
        end = -size - 1 if step < 0 else g.r.choice((size, 99999, g.r.randrange(begin + 1, size + 1)))
        count = len(range(*slice(begin, end if step > 0 else None, step).indices(size)))
        operands = [g.ints(number) for number in (begin, end, axis + 1, step)]
        g.add("Slice", [v.name, *operands], v.resized(axis, count))
    else:
        places = list(range(size))
        g.r.shuffle(places)
        if g.r.random() < 0.4:
            places = [g.r.randrange(-size, size) for _ in range(g.r.randrange(1, size + 2))]
        g.add("Gather", [v.name, g.ints(*places)], v.resized(axis, len(places)), axis=axis + 1)


def more(g: Network, v: Value) -> None:
    """Pad or repeat an axis, or expand one of size 1."""
    axis, rank = g.r.randrange(len(v.shape)), len(v.shape)
    form, size = g.r.choice(("pad", "pad", "tile", "expand")), v.shape[axis]
    if form == "pad" and size < LARGEST - 3:
        pads = [0] * (2 * rank + 2)
        pads[axis + 1], pads[axis + rank + 2] = g.r.choice((0, 1, 2)), g.r.choice((0, 1))
        mode = g.r.choice(("constant", "constant", "edge", "reflect")) if size > 2 else "constant"
        g.add("Pad", [v.name, g.ints(*pads)], v.resized(axis, size + sum(pads)), mode=mode)
    elif form == "tile" and 2 * size <= LARGEST:
        times = g.ints(1, *(2 if place == axis else 1 for place in range(rank)))
        g.add("Tile", [v.name, times], v.resized(axis, 2 * size))
    elif form == "expand" and 1 in v.shape:
        shape = tuple(3 if number == 1 else number for number in v.shape)
        g.add("Expand", [v.name, g.batched(*shape)], shape)


def reshape(g: Network, v: Value) -> None:
    """Split an axis in two, make one of two, flatten all, turn, shuffle, or trade channels for pixels."""
    axis, rank = g.r.randrange(len(v.shape)), len(v.shape)
    form, first = (
        g.r.choice(("split", "join", "flatten", "turn", "turn", "shuffle", "pixels")),
        g.divisor(v.shape[axis]),
    )
    if form == "split" and first and rank < 4:
        shape = (*v.shape[:axis], first, v.shape[axis] // first, *v.shape[axis + 1 :])
        g.add("Reshape", [v.name, _target(g, shape, axis)], shape)
    elif form == "join" and axis + 1 < rank and v.shape[axis] * v.shape[axis + 1] <= FLAT:
        shape = (*v.shape[:axis], v.shape[axis] * v.shape[axis + 1], *v.shape[axis + 2 :])
        g.add("Reshape", [v.name, _target(g, shape, axis)], shape)
    elif form == "flatten" and prod(v.shape) <= FLAT:
        g.add("Flatten", [v.name], (prod(v.shape),))
    elif form == "turn":
        order = list(range(rank))
        g.r.shuffle(order)
        g.add("Transpose", [v.name], tuple(v.shape[k] for k in order), perm=[0, *(k + 1 for k in order)])
    elif form == "shuffle" and rank == 3 and (count := g.divisor(v.shape[0])):
        rest = v.shape[1:]
        w = g.add(
            "Reshape", [v.name, g.ints(0, count, v.shape[0] // count, *rest)], (count, v.shape[0] // count, *rest)
        )
        w = g.add("Transpose", [w.name], (w.shape[1], w.shape[0], *rest), perm=[0, 2, 1, 3, 4])
        g.add("Reshape", [w.name, _target(g, v.shape, 0)], v.shape)
    elif form == "pixels" and rank == 3 and v.shape[0] % 4 == 0:
        shape = (v.shape[0] // 4, 2 * v.shape[1], 2 * v.shape[2])
        g.add("DepthToSpace", [v.name], shape, blocksize=2, mode=g.r.choice(("DCR", "CRD")))
    elif form == "pixels" and rank == 3 and v.shape[1] % 2 == v.shape[2] % 2 == 0:
        g.add("SpaceToDepth", [v.name], (4 * v.shape[0], v.shape[1] // 2, v.shape[2] // 2), blocksize=2)


def _target(g: Network, shape: tuple[int, ...], axis: int) -> str:
    """Return the shape operand of a Reshape, an entry of it left open perhaps."""
    return g.ints(0, *(-1 if place == axis and g.r.random() < 0.4 else size for place, size in enumerate(shape)))


def reduction(g: Network, v: Value) -> None:
    """Reduce an axis, compete along it, or pool."""
    axis, rank = g.r.randrange(len(v.shape)), len(v.shape)
    form = g.r.choice(("reduce", "softmax", "pool"))
    if form == "reduce" and rank > 1:
        keep = g.r.random() < 0.5
        shape = tuple(1 if k == axis else size for k, size in enumerate(v.shape) if keep or k != axis)
        op = g.r.choice(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2"))
        g.add(op, [v.name, g.ints(axis + 1)], shape, keepdims=int(keep))
    elif form == "softmax":
        g.add("Softmax", [v.name], v.shape, axis=axis + 1)
    elif form == "pool" and rank == 3:
        g.add("MaxPool", [v.name], v.shape, kernel_shape=[3, 3], pads=[1] * 4)


def attention(g: Network, v: Value) -> None:
    """Spell out attention of several heads."""
    heads = g.divisor(v.shape[-1])
    if len(v.shape) != 2 or not heads:
        return
    length, width = v.shape
    size, split = width // heads, []
    for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
        w = g.add("MatMul", [v.name, g.weight(width, width)], v.shape)
        w = g.add("Reshape", [w.name, g.ints(0, 0, heads, size)], (length, heads, size))
        split.append(g.add("Transpose", [w.name], tuple(w.shape[k - 1] for k in perm[1:]), perm=perm).name)
    w = g.add("MatMul", split[:2], (heads, length, length))
    w = g.add("Softmax", [w.name], w.shape, axis=-1)
    w = g.add("MatMul", [w.name, split[2]], (heads, length, size))
    w = g.add("Transpose", [w.name], (length, heads, size), perm=[0, 2, 1, 3])
    g.add("Reshape", [w.name, g.ints(0, 0, width)], v.shape)


MAKERS: tuple[tuple[Callable[[Network, Value], None], int], ...] = (
    (convolution, 6), (normalization, 3), (elementwise, 5), (concat, 3), (part, 4), (more, 3), (reshape, 6),
    (reduction, 2), (attention, 1),
)  # fmt: skip


def random_channels(r: Random) -> onnx.ModelProto:
    """Return a model of one input, a weight on it, random nodes, and a weight on each value that nothing reads."""
    g = Network(r)
    convolution(g, g.input)
    if r.random() < 0.8:
        g.values.remove(g.input)
    makers, often = zip(*MAKERS, strict=True)
    for _ in range(r.randint(2, 14)):
        r.choices(makers, often)[0](g, g.pick())
    read = {name for node in g.nodes for name in node.input}
    ends = [value for value in g.values if value.name not in read and value is not g.input]
    outputs = [_end(g, value) for value in ends]
    ports = [helper.make_tensor_value_info(v.name, TensorProto.FLOAT, ["N", *v.shape]) for v in (g.input, *outputs)]
    graph = helper.make_graph(g.nodes, "g", ports[:1], ports[1:], g.tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _end(g: Network, v: Value) -> Value:
    """Add a weight over the first axis, the last, or all."""
    rank, choice = len(v.shape), g.r.random()
    if rank == 3 and choice < 0.6:
        return g.add("Conv", [v.name, g.weight(3, v.shape[0], 1, 1)], v.resized(0, 3))
    if rank > 1 and prod(v.shape) <= 4 * FLAT and choice < 0.8:
        flat = g.add("Flatten", [v.name], (prod(v.shape),))
        return g.add("Gemm", [flat.name, g.weight(flat.shape[0], 3)], (3,))
    if rank > 1 and choice < 0.9:
        v = g.add("Transpose", [v.name], (*v.shape[1:], v.shape[0]), perm=[0, *range(2, rank + 1), 1])
    return g.add("MatMul", [v.name, g.weight(v.shape[-1], 3)], v.resized(rank - 1, 3))
