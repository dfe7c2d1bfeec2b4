"""What the makers of hostile models share: writing a model from text, or from a graph that is changed afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.parser

Maker = Callable[[Path], Path]  #: writes a model into a folder and returns its path
Change = Callable[[onnx.ModelProto], object]

TINY = """
tiny (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
<float[4, 3, 1, 1] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[4] b = {1, 2, 3, 4}>
{ c = Conv(x, w, b)  y = Relu(c) }
"""


def parse(text: str, opset: int = 17, ir_version: int = 8, functions: str = "") -> onnx.ModelProto:
    """Return a model from the text of its graph and of its local functions, which are of domain ``f``."""
    head = f'<ir_version: {ir_version}, opset_import: ["": {opset}, "f": 1]>'
    model = onnx.parser.parse_model(f"{head} {text} {functions}")
    if not functions:
        del model.opset_import[1:]
    return model


def write(model: onnx.ModelProto | bytes, folder: Path) -> Path:
    """Write a model, valid or not, and return its path."""
    path = folder / "m.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def from_text(text: str, opset: int = 17, functions: str = "", change: Change | None = None) -> Maker:
    """Return a maker of a model from text, with ``change`` applied to it."""

    def make(folder: Path) -> Path:
        model = parse(text, opset, functions=functions)
        if change is not None:
            change(model)
        return write(model, folder)

    return make


def changed(change: Change, text: str = TINY, opset: int = 17) -> Maker:
    """Return a maker of a small valid model that ``change`` spoils in place."""
    return from_text(text, opset, change=change)


def texts(graphs: Mapping[str, str], opset: int = 17) -> dict[str, Maker]:
    """Return makers of models whose text is all that there is to them."""
    return {name: from_text(text, opset) for name, text in graphs.items()}


def proto(build: Callable[[], onnx.ModelProto | bytes]) -> Maker:
    """Return a maker of what a function builds."""
    return lambda folder: write(build(), folder)


def spliced(*parts: str) -> str:
    """Return a graph from one float[1] input ``x`` to one output ``y``, with nodes and initializers of ``parts``.

    Args:
        parts: nodes; a part that starts with ``<`` holds the initializers.
    """
    weights = " ".join(part for part in parts if part.startswith("<"))
    nodes = " ".join(part for part in parts if not part.startswith("<"))
    return f"g (float[1] x) => (float[1] y) {weights} {{ {nodes} }}"


def reduced(nodes: str, weights: str = "", kind: str = "float") -> str:
    """Return a graph that adds the sum of a computed value ``big`` to its input."""
    tail = "total = ReduceSum<keepdims=0>(big) y = Add(total, x)"
    if kind != "float":
        tail = f"floats = Cast<to=1>(big) {tail.replace('big', 'floats')}"
    return spliced(weights and f"<{weights}>", nodes, tail)


def chain(op: str, count: int, *, extra: str = "", weights: Mapping[str, np.ndarray] | None = None) -> onnx.ModelProto:
    """Return a chain of one operator; ``extra`` is a second input that each node reads."""
    nodes = [
        onnx.helper.make_node(op, [f"v{i}", *([extra] if extra else [])], [f"v{i + 1}"], name=f"n{i}")
        for i in range(count)
    ]
    value = onnx.helper.make_tensor_value_info
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(nodes, "g", [value("v0", kind, [4])], [value(f"v{count}", kind, [4])], tensors)
    return model_of(graph)


def model_of(graph: onnx.GraphProto, opset: int = 17) -> onnx.ModelProto:
    """Return a model around a graph."""
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
