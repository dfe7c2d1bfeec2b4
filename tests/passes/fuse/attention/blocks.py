"""Attention blocks as text, their inputs, and what fusing them must keep."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from onnx import numpy_helper
from onnxedge_passes.fuse.attention import FuseAttention

from onnxedge.api import Session

IR = {17: 8, 12: 7, 13: 7, 23: 11}
KERNELS = ("Attention", "MultiHeadAttention", "GroupQueryAttention")
HEAD = "g (float[B, T, 8] q, float[B, S, 8] k, float[B, S, 8] v{more}) => (float y)"
SPLIT = (
    "qs = Reshape(q, hs) ks = Reshape(k, hs) vs = Reshape(v, hs)"
    " qh = Transpose<perm=[0, 2, 1, 3]>(qs) kh = Transpose<perm=[0, 2, 3, 1]>(ks) vh = Transpose<perm=[0, 2, 1, 3]>(vs)"
)
MERGE = "o = Transpose<perm=[0, 2, 1, 3]>(oh) y = Reshape(o, ms)"
SHAPES = (
    "int64[4] hs = {0, 0, 2, 4}, int64[3] ms = {0, 0, 8}, float c = {0.5}, float r = {2},"
    " float h = {0.7071067811865476}"
)
PLAIN = "s = MatMul(qh, kh) t = Mul(s, c) p = Softmax<axis=-1>(t) oh = MatMul(p, vh)"
NEGATIVE = "float low = {-3.4028234663852886e38}, float inf = {-1}, float zero = {0}, float weak = {-10000}"


def graph(body: str, *, more: str = "", constants: str = "", opset: int = 17, head: str = HEAD) -> ir.Model:
    """Return a model of a body that reads q, k and v."""
    text = f"{head.format(more=more)} <{SHAPES}{', ' + constants if constants else ''}> {{ {body} }}"
    version = f'<ir_version: {IR[opset]}, opset_import: ["": {opset}, "com.microsoft": 1]>'
    proto = onnx.parser.parse_model(f"{version} {text}")
    for tensor in proto.graph.initializer:  # the text cannot say it
        if tensor.name == "inf":
            tensor.CopyFrom(numpy_helper.from_array(np.float32(-np.inf), "inf"))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return ir.serde.deserialize_model(proto)


def feed(session: Session, seed: int, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Return seeded inputs with the given sizes of the named dimensions; a mask hides some, for one query all."""
    rng = np.random.default_rng(seed)
    out: dict[str, np.ndarray] = {}
    for spec in session.inputs:
        shape = [d if isinstance(d, int) else sizes[str(d)] for d in spec.shape]
        if spec.dtype == "bool":
            mask = rng.random(shape) > 0.4
            mask[..., 0] = True
            if mask.ndim == 4 and mask.shape[2] > 2:
                mask[0, :, 1] = False
            out[spec.name] = mask
        else:
            out[spec.name] = np.asarray(rng.standard_normal(shape), spec.dtype)
    return out


def same(before: ir.Model, after: ir.Model, *, empty: bool = False) -> None:
    """Compare outputs for several sizes; ``empty`` takes NaN for 0."""
    first, second = Session(before, level="disable"), Session(after, level="disable")
    for seed, sizes in enumerate(({"B": 2, "T": 3, "S": 5}, {"B": 1, "T": 4, "S": 4}, {"B": 3, "T": 1, "S": 2})):
        inputs = feed(first, seed, sizes)
        mine, other = first.run(inputs)["y"], second.run(inputs)["y"]
        assert mine.shape == other.shape
        if empty:
            mine = np.nan_to_num(mine, nan=0.0)
        np.testing.assert_allclose(mine, other, rtol=0, atol=2e-5)


def fused(
    model: ir.Model, applied, *, target: str, expected: str | None, empty: bool = False
) -> tuple[ir.Node | None, list[str]]:
    """Fuse, compare outputs for several sizes, fuse again, and return the fused node and the reasons given."""
    before = model.clone()
    result, reasons = applied(FuseAttention(), model, target)
    kinds = [node.op_type for node in model.graph]
    found = [node for node in model.graph if node.op_type in KERNELS]
    assert [node.op_type for node in found] == ([expected] if expected else [])
    assert ("Softmax" in kinds) == (expected is None)
    same(before, model, empty=empty)
    assert applied(FuseAttention(), model, target)[0].rewrites == 0
    assert bool(result.rewrites) == (expected is not None)
    return (found[0] if found else None), reasons
