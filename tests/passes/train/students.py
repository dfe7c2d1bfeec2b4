"""Small models that are quick to train, and data that a teacher labelled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from onnxedge.api import Array, Session, save

CONVOLUTIONS = """g (float[N, 3, 8, 8] x) => (float[N, 4] y)
    <float[12, 3, 3, 3] first, float[12] first_bias, float[12] s1, float[12] b1, float[12] m1, float[12] v1,
     float[8, 12, 3, 3] second, float[8] second_bias, float[8] s2, float[8] b2, float[8] m2, float[8] v2,
     float[8, 4] head, float[4] bias> {
        a = Conv<pads=[1, 1, 1, 1]>(x, first, first_bias)
        a1 = BatchNormalization(a, s1, b1, m1, v1)
        a2 = Relu(a1)
        c = Conv<pads=[1, 1, 1, 1],strides=[2, 2]>(a2, second, second_bias)
        c1 = BatchNormalization(c, s2, b2, m2, v2)
        c2 = Relu(c1)
        p = GlobalAveragePool(c2)
        f = Flatten(p)
        y = Gemm(f, head, bias)
    }"""


def parsed(text: str, opset: int = 17, seed: int = 0) -> ir.Model:
    """Return a model with seeded weights where the text declares them without values; variances are positive."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
    rng = np.random.default_rng(seed)
    for info in proto.graph.value_info:
        dims = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        array = rng.standard_normal(dims) / (np.sqrt(np.prod(dims[1:])) if len(dims) > 1 else 2)
        array = np.abs(array) + 0.5 if info.name[0] in "vs" and len(dims) == 1 else array
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), info.name))
    del proto.graph.value_info[:]
    return ir.serde.deserialize_model(proto)


def written(model: ir.Model, path: Path) -> Path:
    """Write a model and return its path."""
    save(model, path)
    return path


def labelled(teacher: ir.Model, path: Path, count: int, seed: int = 1, *, labels: bool = True) -> Path:
    """Write random samples with the classes that a teacher gives them, less the mean score of each class."""
    spec = Session(teacher).inputs[0]
    shape = [d for d in spec.shape[1:] if isinstance(d, int)]
    x = np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)
    scores = run(teacher, x)
    scores -= scores.mean(0)
    arrays = {"x": x, "y": scores.argmax(1)} if labels else {"x": x}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def run(model: ir.Model | Path, x: Array) -> Array:
    """Return the first output."""
    session = Session(model)
    return next(iter(session.run({session.inputs[0].name: x}).values()))


def weights(path: Path) -> dict[str, Array]:
    """Return the initializers of a file."""
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
