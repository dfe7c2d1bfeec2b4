"""Elements as functions of their place: what is said of each value must be what ONNX Runtime computes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnxedge_passes.fuse.attention.element import Choice, Element, Placed
from onnxedge_passes.fuse.attention.places import placed

from onnxedge.api import Session, refresh_scopes
from onnxedge.verify import infer_shapes

HEAD = (
    "g (float[B, T, 4] x, float[N] z) => (float y) <int64 n0 = {0}, int64 n1 = {1}, int64 n2 = {2}, int64[1] v0 = {0},"
    " int64[1] v1 = {1}, int64[1] v2 = {2}, int64[1] last = {-1}, int64[1] end = {9223372036854775807},"
    " int64[2] ax = {0, 1}, float zero = {0}, float one = {1}, float low = {-1e9}, bool[1, 3, 3] tri ="
    " {1, 0, 0, 1, 1, 0, 1, 1, 1}, bool[4, 4] big = {1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1}>"
)
START = (
    "shape = Shape(x) t = Gather(shape, n1) b = Gather(shape, n0) line = Range(n0, t, n1) row = Unsqueeze(line, v1)"
    " rows = Range(n0, b, n1) wide = Unsqueeze(line, v0)"
)
KNOWN = {
    "a line": "int64: y = Identity(line)",
    "sums": "int64: a = Add(line, t) b1 = Mul(a, n2) y = Sub(b1, row)",
    "a line from another start": "int64: u = Add(t, n2) y = Range(n2, u, n1)",
    "less": "bool: y = Less(line, row)",
    "greater or equal": "bool: y = GreaterOrEqual(line, row)",
    "not": "bool: l = LessOrEqual(line, row) y = Not(l)",
    "an equal difference": "bool: a = Add(line, n1) b1 = Sub(a, line) y = Equal(b1, n1)",
    "and, or": "bool: l = Less(line, row) e = Equal(n0, n1) a = And(l, e) o = Or(l, e) y = Or(a, o)",
    "where": "float: l = Less(line, row) w = Where(l, zero, low) s = Sub(one, w) y = Mul(s, low)",
    "where twice": "float: l = Less(line, row) w = Where(l, zero, low) c = Cast<to=9>(w) y = Where(c, low, w)",
    "a triangle of ones": "float: s = Concat<axis=0>(t1, t1) f = ConstantOfShape<value=float[1] {1}>(s)"
    " y = Trilu(f, n1)",
    "the lower one": "float: s = Concat<axis=0>(t1, t1) f = ConstantOfShape<value=float[1] {1}>(s)"
    " y = Trilu<upper=0>(f)",
    "expanded": "int64: s = Concat<axis=0>(b1, t1) y = Expand(wide, s)",
    "transposed": "int64: l = Sub(line, row) y = Transpose(l)",
    "the end of a slice": "int64: a = Add(t1, v1) c = Concat<axis=0>(m1, line) y = Slice(c, v1, a, last)",
    "a constant triangle": "bool: y = And(tri, tri)",
    "a triangle one further": "bool: y = Identity(big)",
    "picked": (
        "int64: s = Concat<axis=0>(b1, t1) e = Expand(wide, s) i0 = Unsqueeze(rows, v1) i1 = Expand(i0, s)"
        " j0 = Unsqueeze(i1, v2) k0 = Expand(wide, s) k1 = Unsqueeze(k0, v2) at = Concat<axis=-1>(j0, k1)"
        " y = GatherND(e, at)"
    ),
    "a sum of zeros": "int64: z0 = Sub(line, line) w = Unsqueeze(z0, v0) y = CumSum(w, n1)",
    "one axis of one": "int64: w = Slice(wide, v0, v1, v1) y = Add(w, row)",
}
UNKNOWN = {
    "two conditions": "bool: l = Less(line, row) d = Sub(row, n2) g = Greater(line, d) y = And(l, g)",
    "a product of places": "int64: y = Mul(line, row)",
    "equal places": "bool: y = Equal(line, row)",
    "sizes that may differ": "int64: u = Shape(z) u1 = Squeeze(u) l = Range(n0, u1, n1) y = Add(l, line)",
    "steps of two": "int64: y = Range(n0, t, n2)",
    "the front cut off from the end": "int64: y = Slice(line, last, end, v0)",
    "a line that is no line": "int64: o = Concat<axis=0>(v2, line) y = Identity(o)",
    "an input": "float: y = Identity(z)",
}
MORE = " t1 = Unsqueeze(t, v0) b1 = Unsqueeze(b, v0) m1 = Sub(v0, v1) "


def model(body: str) -> ir.Model:
    kind, _, body = body.partition(": ")
    more = "" if "b1 = Mul" in body or "b1 = Sub" in body else MORE
    head, last = HEAD.replace("float y", f"{kind} y"), body.replace("y = ", "made = ")
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> {head} {{ {START} {more} {last} y = Identity(made) }}'
    )
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    found = ir.serde.deserialize_model(proto)
    infer_shapes(found)
    refresh_scopes(found)
    return found


def said(found: ir.Model) -> Placed | None:
    """Return what is said of the value that the output is a copy of: the shape of an output is not believed."""
    node = found.graph.outputs[0].producer()
    return placed(node.inputs[0]) if node is not None else None


def computed(element: Element, shape: tuple[int, ...], sizes: Mapping[object, int]) -> np.ndarray:
    places = np.indices(shape)
    total = np.zeros(shape, np.int64)
    for key, factor in element.terms.items():
        is_axis = isinstance(key, int) and key < 0
        total += factor * (places[key] if is_axis else 1 if key == 0 else sizes[key])  # type: ignore[call-overload]
    return np.where(total <= 0, element.then, element.other) if isinstance(element, Choice) else total


@pytest.mark.parametrize("body", KNOWN.values(), ids=KNOWN)
def test_what_is_said_is_what_is_computed(body: str) -> None:
    found = model(body)
    part = said(found)
    assert part is not None
    session = Session(found, level="disable")
    for sizes in ({"B": 2, "T": 3, "N": 5}, {"B": 1, "T": 4, "N": 1}, {"B": 3, "T": 1, "N": 2}):
        feed = {"x": np.zeros((sizes["B"], sizes["T"], 4), np.float32), "z": np.zeros(sizes["N"], np.float32)}
        actual = session.run(feed)["y"]
        np.testing.assert_allclose(computed(part.element, actual.shape, sizes), actual.astype(np.float64), rtol=1e-6)
        for size, real in zip(part.dims, actual.shape, strict=True):
            assert (size if isinstance(size, int) else sizes.get(str(size), real)) == real


@pytest.mark.parametrize("body", UNKNOWN.values(), ids=UNKNOWN)
def test_nothing_is_said(body: str) -> None:
    assert said(model(body)) is None
