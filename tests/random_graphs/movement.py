"""Nodes that move data, with shapes that are constant or computed."""

from __future__ import annotations

import math

import numpy as np

from random_graphs.graph import Dim, Graph, Value, fixed, is_small


def transpose(g: Graph) -> Value | None:
    """Add a Transpose, or one and its inverse around something elementwise."""
    x = g.pick(least=1)
    if x is None:
        return None
    perm = g.r.sample(range(x.rank), x.rank)
    turned = g.add("Transpose", [x], x.kind, [x.shape[i] for i in perm], perm=perm)
    if x.kind == "float32" and g.r.random() < 0.4:
        turned = g.add(g.r.choice(("Relu", "Neg", "Sigmoid")), [turned], x.kind, turned.shape)
        back = [perm.index(i) for i in range(x.rank)]
        return g.add("Transpose", [turned], x.kind, x.shape, perm=back)
    return turned


def reshape(g: Graph) -> Value | None:
    """Add a Reshape that merges or splits dimensions, by a constant with 0 and -1."""
    x = g.pick(least=1)
    if x is None:
        return None
    dims, want = list(x.shape), [0] * x.rank
    for i in range(x.rank):
        size = x.static(i)
        if size is not None and g.r.random() < 0.5:
            want[i] = size
    if x.rank >= 2 and g.r.random() < 0.6:
        i = g.r.randrange(x.rank - 1)
        merged = tuple(a * b for a, b in zip(dims[i], dims[i + 1], strict=True))
        dims[i : i + 2] = [merged]  # type: ignore[list-item]
        want[i : i + 2] = [merged[0] if len(set(merged)) == 1 and g.r.random() < 0.5 else -1]
        for later in range(i + 1, len(want)):  # a zero copies the dimension of the same place
            size = x.static(later + 1)
            if want[later] == 0 and size is None:
                return None
            want[later] = want[later] or size or 0
    else:
        i = g.r.randrange(x.rank)
        size = x.static(i)
        if size is None or size % 2 or size == 0:
            return None
        dims[i : i + 1] = [fixed(2), fixed(size // 2)]
        want[i : i + 1] = [2, size // 2]
        for later in range(i + 2, len(want)):
            if x.static(later - 1) is None:
                return None
            want[later] = x.static(later - 1) or 0
    if 0 in want and any(0 in d for d in dims):
        return None
    return g.add("Reshape", [x, g.ints(*want)], x.kind, dims)


def sizes(g: Graph, x: Value, axes: list[int]) -> Value:
    """Add what an exporter writes to get the sizes of some axes: Shape, and a Gather or Slice."""
    shape = g.add("Shape", [x], "int64", [fixed(x.rank)])
    if len(axes) == 1 and g.r.random() < 0.6:
        one = g.add("Gather", [shape, g.constant(np.int64(axes[0]))], "int64", [], axis=0)
        return unsqueezed(g, one, [0])
    if axes == list(range(axes[0], axes[-1] + 1)) and g.r.random() < 0.5:
        return sliced(g, shape, 0, axes[0], axes[-1] + 1, 1)
    return g.add("Gather", [shape, g.ints(*axes)], "int64", [fixed(len(axes))], axis=0)


def computed_reshape(g: Graph) -> Value | None:
    """Add a Reshape whose shape is computed from a Shape."""
    x = g.pick("float32", least=2)
    if x is None:
        return None
    first = sizes(g, x, [0])
    rest = [x.static(i) for i in range(1, x.rank)]
    if g.r.random() < 0.5 and None not in rest:
        product = math.prod(rest)  # type: ignore[arg-type]
        tail, dims = g.ints(product if g.r.random() < 0.5 else -1), [x.shape[0], fixed(product)]
    else:
        merged = tuple(math.prod(d[i] for d in x.shape[1:]) for i in range(3))
        tail, dims = g.ints(-1), [x.shape[0], merged]  # type: ignore[list-item]
    joined = g.add("Concat", [first, tail], "int64", [fixed(2)], axis=0)
    if g.r.random() < 0.2:
        joined = g.add("Cast", [g.add("Cast", [joined], "int32", joined.shape, to=6)], "int64", joined.shape, to=7)
    return g.add("Reshape", [x, joined], x.kind, dims)


def shape_arithmetic(g: Graph) -> Value | None:
    """Add a Shape, some arithmetic on a size, and leave it as a value."""
    x = g.pick(least=1)
    if x is None:
        return None
    axis = g.r.randrange(x.rank)
    size = sizes(g, x, [axis])
    number = g.r.choice((1, 2, 3))
    return g.add(g.r.choice(("Mul", "Add", "Sub", "Div")), [size, g.ints(number)], "int64", [fixed(1)])


def expand(g: Graph) -> Value | None:
    """Add an Expand, to a constant shape or to another value's."""
    x = g.pick("float32", "int64")
    if x is None:
        return None
    other = g.pick()
    if other is not None and g.r.random() < 0.5:
        from random_graphs.arithmetic import broadcast

        shape = broadcast(x, other)
        if shape is None:
            return None
        return g.add("Expand", [x, g.add("Shape", [other], "int64", [fixed(other.rank)])], x.kind, shape)
    want: list[int] = [1 for _ in x.shape]
    dims: list[Dim] = list(x.shape)
    for i in range(x.rank):
        if x.shape[i] == fixed(1) and g.r.random() < 0.7:
            want[i] = g.r.choice((1, 3))
            dims[i] = fixed(want[i])
    if g.r.random() < 0.4:
        want, dims = [2, *want], [fixed(2), *dims]
    if not want or not is_small(dims):
        return None
    return g.add("Expand", [x, g.ints(*want)], x.kind, dims)


def sliced(g: Graph, x: Value, axis: int, start: int, end: int, step: int) -> Value:
    """Add a Slice in the form of the opset."""
    dims = list(x.shape)
    lengths = [len(range(size)[start:end:step]) for size in dims[axis]]
    dims[axis] = (lengths[0], lengths[1], lengths[2])
    if g.version < 10:
        return g.add("Slice", [x], x.kind, dims, starts=[start], ends=[end], axes=[axis])
    inputs = [x, g.ints(start), g.ints(end)]
    if axis or step != 1 or g.r.random() < 0.5:
        inputs.append(g.ints(axis if g.r.random() < 0.5 else axis - x.rank))
    if step != 1 or (len(inputs) == 4 and g.r.random() < 0.3):
        inputs.append(g.ints(step))
    return g.add("Slice", inputs, x.kind, dims)


def slice_(g: Graph) -> Value | None:
    """Add a Slice, of everything perhaps."""
    x = g.pick(least=1)
    if x is None:
        return None
    axis = g.r.randrange(x.rank)
    start, end, step = g.r.choice(
        (
            (0, 2**31 - 1, 1),
            (0, 2**63 - 1, 1),
            (1, 2**31 - 1, 1),
            (0, 2, 1),
            (0, -1, 1),
            (-2, 2**31 - 1, 1),
            (0, 100, 2),
        )
    )
    if step != 1 and g.version < 10:
        step = 1
    if any(len(range(size)[start:end:step]) == 0 for size in x.shape[axis]):
        return None
    return sliced(g, x, axis, start, end, step)


def gather(g: Graph) -> Value | None:
    """Add a Gather of constant places."""
    x = g.pick(least=1)
    if x is None:
        return None
    axis = g.r.randrange(x.rank)
    if min(x.shape[axis]) < 1:
        return None
    scalar = g.r.random() < 0.4
    places = np.asarray(g.r.choice((0, -1)) if scalar or min(x.shape[axis]) < 2 else [0, 1, -1], np.int64)
    if g.version < 11:
        places = np.abs(places) % min(x.shape[axis])
    dims = [*x.shape[:axis], *(fixed(d) for d in places.shape), *x.shape[axis + 1 :]]
    return g.add("Gather", [x, g.constant(places)], x.kind, dims, axis=axis) if is_small(dims) else None


def concat(g: Graph) -> Value | None:
    """Add a Concat of values alike, of a value with itself, or of one alone."""
    x = g.pick(least=1)
    if x is None:
        return None
    axis = g.r.randrange(x.rank)
    alike = [v for v in g.visible() if v.kind == x.kind and v.rank == x.rank]
    fitting = [v for v in alike if all(v.shape[i] == x.shape[i] for i in range(x.rank) if i != axis)]
    parts = [x, *(g.r.choice(fitting) for _ in range(g.r.randint(0, 2)))]
    total = tuple(sum(p.shape[axis][i] for p in parts) for i in range(3))
    dims = [*x.shape[:axis], total, *x.shape[axis + 1 :]]
    if not is_small(dims):  # type: ignore[arg-type]
        return None
    return g.add("Concat", parts, x.kind, dims, axis=axis if g.version < 11 or g.r.random() < 0.5 else axis - x.rank)  # type: ignore[arg-type]


def split(g: Graph) -> Value | None:
    """Add a Split in two, both parts of which live on, or one."""
    x = g.pick(least=1)
    if x is None:
        return None
    axis = g.r.randrange(x.rank)
    size = x.static(axis)
    if size is None or size < 2 or size % 2:
        return None
    dims = [*x.shape[:axis], fixed(size // 2), *x.shape[axis + 1 :]]
    first, second = (Value(g.name(), x.kind, tuple(dims)) for _ in range(2))
    if g.version < 13:
        g.node("Split", [x], [first.name, second.name], axis=axis, split=g.r.choice((None, [size // 2] * 2)))
    elif g.version < 18:
        inputs = [x, g.ints(size // 2, size // 2)] if g.r.random() < 0.5 else [x]
        g.node("Split", inputs, [first.name, second.name], axis=axis)
    else:
        g.node("Split", [x], [first.name, second.name], axis=axis, num_outputs=2)
    g.values += [first, second]
    if g.r.random() < 0.4:
        whole = [*x.shape]
        return g.add("Concat", [first, second] if g.r.random() < 0.7 else [second, first], x.kind, whole, axis=axis)
    return second


def unsqueezed(g: Graph, x: Value, axes: list[int]) -> Value:
    """Add an Unsqueeze in the form of the opset."""
    dims = list(x.shape)
    for axis in axes:
        dims.insert(axis, fixed(1))
    if g.version < 13:
        return g.add("Unsqueeze", [x], x.kind, dims, axes=axes)
    return g.add("Unsqueeze", [x, g.ints(*axes)], x.kind, dims)


def unsqueeze(g: Graph) -> Value | None:
    """Add an Unsqueeze, and a Squeeze behind it perhaps."""
    x = g.pick()
    if x is None or x.rank > 4:
        return None
    axis = g.r.randint(0, x.rank)
    wide = unsqueezed(g, x, [axis])
    if g.r.random() < 0.3:
        return squeezed(g, wide, axis)
    return wide


def squeezed(g: Graph, x: Value, axis: int) -> Value:
    """Add a Squeeze in the form of the opset."""
    dims = [d for i, d in enumerate(x.shape) if i != axis]
    if g.version < 13:
        return g.add("Squeeze", [x], x.kind, dims, axes=[axis])
    return g.add("Squeeze", [x, g.ints(axis)], x.kind, dims)


def squeeze(g: Graph) -> Value | None:
    """Add a Squeeze of an axis of size 1."""
    x = g.pick(least=1)
    axes = [i for i, d in enumerate(x.shape) if d == fixed(1)] if x is not None else []
    return squeezed(g, x, g.r.choice(axes)) if x is not None and axes else None


def flatten(g: Graph) -> Value | None:
    """Add a Flatten."""
    x = g.pick("float32", least=1)
    if x is None:
        return None
    axis = g.r.randint(0, x.rank)
    dims = [tuple(math.prod(d[i] for d in part) for i in range(3)) for part in (x.shape[:axis], x.shape[axis:])]
    return g.add("Flatten", [x], x.kind, dims, axis=axis)  # type: ignore[arg-type]


def tile(g: Graph) -> Value | None:
    """Add a Tile, once along most axes."""
    x = g.pick("float32", "int64", least=1)
    if x is None:
        return None
    times = [g.r.choice((1, 1, 2)) for _ in x.shape]
    dims = [(d[0] * n, d[1] * n, d[2] * n) for d, n in zip(x.shape, times, strict=True)]
    return g.add("Tile", [x, g.ints(*times)], x.kind, dims) if is_small(dims) else None


def pad(g: Graph) -> Value | None:
    """Add a Pad in the form of the opset, by nothing perhaps."""
    x = g.pick("float32", least=1)
    if x is None:
        return None
    before, after = ([g.r.choice((0, 0, 1)) for _ in x.shape] for _ in range(2))
    dims = [(d[0] + b + a, d[1] + b + a, d[2] + b + a) for d, b, a in zip(x.shape, before, after, strict=True)]
    if not is_small(dims):
        return None
    mode = g.r.choice(("constant", "constant", "edge"))
    value = g.r.choice((None, 0.0, -1.0, float("-inf"))) if mode == "constant" else None
    if g.version < 11:
        return g.add("Pad", [x], x.kind, dims, pads=[*before, *after], mode=mode, value=value)
    inputs = [x, g.ints(*before, *after)] + ([g.constant(np.float32(value))] if value is not None else [])
    return g.add("Pad", inputs, x.kind, dims, mode=mode)


def constant_of_shape(g: Graph) -> Value | None:
    """Add a ConstantOfShape of another value's shape."""
    import onnx

    x = g.pick(least=1)
    if x is None:
        return None
    shape = g.add("Shape", [x], "int64", [fixed(x.rank)])
    filled = onnx.helper.make_tensor("f", 1, [1], [g.r.choice((0.0, 1.0, 0.5))])
    return g.add("ConstantOfShape", [shape], "float32", x.shape, value=filled)


MAKERS = (
    transpose, transpose, reshape, reshape, computed_reshape, shape_arithmetic, expand, slice_, gather, concat, split,
    unsqueeze, squeeze, flatten, tile, pad, constant_of_shape,
)  # fmt: skip
