"""A graph that grows: values with their types, and their sizes under three bindings of the free dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import onnx

#: what the free dimensions are in the three runs of each model
BINDINGS = {"N": (1, 3, 2), "T": (4, 2, 7)}
LIMIT = 4096  #: elements of the largest value

Dim = tuple[int, int, int]  #: a size under each binding
FLOATS = ("float32", "float64", "float16")
INTEGERS = ("int64", "int32")


@dataclass(frozen=True)
class Opset:
    """Hold the versions of a model."""

    version: int
    ir_version: int


@dataclass(frozen=True)
class Value:
    """Describe a value: numpy dtype, sizes, whether a node made it, and its array where it is a weight."""

    name: str
    kind: str
    shape: tuple[Dim, ...]
    made: bool = True
    array: Any = field(default=None, compare=False)

    @property
    def rank(self) -> int:
        """Return the number of dimensions."""
        return len(self.shape)

    @property
    def is_float(self) -> bool:
        """Tell whether it holds floats."""
        return self.kind in FLOATS

    def static(self, axis: int) -> int | None:
        """Return the size along an axis where it is the same under all bindings."""
        dim = self.shape[axis]
        return dim[0] if len(set(dim)) == 1 else None


def fixed(size: int) -> Dim:
    """Return a dimension that is the same under all bindings."""
    return size, size, size


def onnx_type(kind: str) -> int:
    """Return ONNX's number for a dtype."""
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)))


def is_small(shape: Sequence[Dim]) -> bool:
    """Tell whether a value is small enough under each binding."""
    return all(math.prod(dim[i] for dim in shape) <= LIMIT for i in range(3))


class Graph:
    """A graph or the body of a node; ``outer`` values may be read, too.

    Args:
        r: source of all choices.
        opset: of the model.
        outer: the enclosing graph.
    """

    def __init__(self, r: Random, opset: Opset, outer: Graph | None = None) -> None:
        self.r, self.opset, self.outer = r, opset, outer
        self.values: list[Value] = []
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.functions: list[onnx.FunctionProto] = outer.functions if outer else []
        self.shared: dict[Any, Value] = {}
        self._count: list[int] = outer._count if outer else [0]

    @property
    def version(self) -> int:
        """Return the opset version."""
        return self.opset.version

    def name(self, stem: str = "v") -> str:
        """Return a name of its own; some hold what names seldom hold."""
        self._count[0] += 1
        odd = self.r.choice(("", "", "", "", "/", " ", ":0", "\n", "é")) if stem == "v" else ""
        return f"{stem}{self._count[0]}{odd}"

    def visible(self) -> list[Value]:
        """Return the values that a node may read."""
        return [*(self.outer.visible() if self.outer else ()), *self.values]

    def pick(self, *kinds: str, rank: int | None = None, least: int = 0) -> Value | None:
        """Choose a value of some dtypes, a late one more often; None where there is none."""
        fitting = [
            value
            for value in self.visible()
            if (not kinds or value.kind in kinds) and value.rank >= least and (rank is None or value.rank == rank)
        ]
        if not fitting:
            return None
        return fitting[-1 - self.late(len(fitting))]

    def late(self, count: int) -> int:
        """Return a place among ``count``, counted from the last, small ones more often."""
        return min(int(-2.0 * math.log(max(self.r.random(), 1e-6))), count - 1)

    def add_input(self, kind: str, shape: Sequence[int | str]) -> Value:
        """Add an input; one in eight has a weight of its own, which a caller may override."""
        dims = tuple(BINDINGS[d] if isinstance(d, str) else fixed(d) for d in shape)
        value = Value(self.name("x"), kind, dims, made=False)
        self.inputs.append(onnx.helper.make_tensor_value_info(value.name, onnx_type(kind), list(shape)))
        if self.inputs[1:] and not any(isinstance(d, str) for d in shape) and self.r.random() < 0.4:
            self.initializers.append(onnx.numpy_helper.from_array(self.array(kind, shape), value.name))  # type: ignore[arg-type]
        self.values.append(value)
        return value

    def array(self, kind: str, shape: Sequence[int], scale: float = 1.0) -> np.ndarray:
        """Return random numbers: small integers, floats of which some are round."""
        rng = np.random.default_rng(self.r.getrandbits(32))
        if kind == "bool":
            return np.asarray(rng.random(shape) > 0.5)
        if kind in INTEGERS:
            return np.asarray(rng.integers(-3, 4, shape)).astype(kind)
        return np.asarray(rng.standard_normal(shape) * scale).astype(kind)

    def constant(self, array: Any, kind: str | None = None) -> Value:
        """Add a weight: an initializer, of this graph or of the outermost, a Constant node, or one that is there."""
        array = np.asarray(array, kind) if kind else np.asarray(array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key in self.shared and self.r.random() < 0.5:
            return self.shared[key]
        value = Value(self.name("c"), str(array.dtype), tuple(fixed(d) for d in array.shape), False, array)
        if self.r.random() < 0.35:
            self.nodes.append(self._constant_node(array, value.name))
        else:
            home: Graph = self
            while home.outer is not None and self.r.random() < 0.5:
                home = home.outer
            home.initializers.append(onnx.numpy_helper.from_array(array, value.name))
        self.shared[key] = value
        return value

    def _constant_node(self, array: np.ndarray, name: str) -> onnx.NodeProto:
        form: dict[str, Any] = {"value": onnx.numpy_helper.from_array(array, "t")}
        if self.version >= 12 and array.ndim <= 1 and array.size and self.r.random() < 0.5:
            ending = "s" if array.ndim else ""
            if array.dtype == np.float32:
                form = {f"value_float{ending}": array.tolist()}
            elif array.dtype == np.int64:
                form = {f"value_int{ending}": array.tolist()}
        return onnx.helper.make_node("Constant", [], [name], **form)

    def ints(self, *numbers: int) -> Value:
        """Add a row of int64."""
        return self.constant(np.array(numbers, np.int64))

    def add(
        self,
        op: str,
        inputs: Sequence[Value | None],
        kind: str,
        shape: Sequence[Dim],
        *,
        domain: str = "",
        more: int = 0,
        **attributes: Any,
    ) -> Value:
        """Add a node of one output; ``more`` optional outputs that nobody wants are left empty."""
        value = Value(self.name(), kind, tuple(shape))
        self.node(op, inputs, [value.name, *[""] * more], domain=domain, **attributes)
        self.values.append(value)
        return value

    def node(
        self, op: str, inputs: Sequence[Value | None], outputs: Sequence[str], *, domain: str = "", **attributes: Any
    ) -> None:
        """Add a node; some have no name, or one that no identifier has."""
        names = [value.name if value is not None else "" for value in inputs]
        name = self.r.choice(("", "", f"n{len(self.nodes)}_{self.name('k')}", f"/a b/{self.name('k')}"))
        given = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(onnx.helper.make_node(op, names, list(outputs), name=name, domain=domain, **given))

    def body(self, name: str, outputs: Sequence[Value], inputs: Sequence[Value] = ()) -> onnx.GraphProto:
        """Return this graph as the body of a node; shapes are declared or not."""
        return onnx.helper.make_graph(
            self.nodes,
            name,
            [_info(value, shaped=value.rank == 0 or self.r.random() < 0.5) for value in inputs],
            [_info(value, shaped=self.r.random() < 0.5) for value in outputs],
            self.initializers,
        )

    def model(self, outputs: Sequence[Value]) -> onnx.ModelProto:
        """Return the model."""
        declared = [_info(value, shaped=True) for value in outputs]
        graph = onnx.helper.make_graph(self.nodes, "g", self.inputs, declared, self.initializers)
        imports = [onnx.helper.make_opsetid("", self.version)]
        if self.functions:
            imports.append(onnx.helper.make_opsetid("local", 1))
        return onnx.helper.make_model(
            graph, opset_imports=imports, functions=self.functions, ir_version=self.opset.ir_version
        )


def _info(value: Value, shaped: bool) -> onnx.ValueInfoProto:
    """Return the declaration of a value, with what is known of its sizes."""
    dims = [value.static(axis) for axis in range(value.rank)] if shaped else None
    return onnx.helper.make_tensor_value_info(value.name, onnx_type(value.kind), dims)
