"""Axes followed through views: what is known, and what is not to be guessed."""

from __future__ import annotations

import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnxedge_passes.fuse.attention.axes import Factor, backward, expanded, forward, fresh, length, regroup

from onnxedge.verify import infer_shapes


def factors(*sizes: object) -> list[Factor]:
    return [Factor(size) for size in sizes]


def shown(axes: list[tuple[Factor, ...]] | None) -> list[list[object]] | None:
    return [[factor.size for factor in expanded(axis)] for axis in axes] if axes is not None else None


@pytest.mark.parametrize(
    ("have", "dims", "found"),
    [
        (["B", "T", 8], ["B", "T", 2, 4], [["B"], ["T"], [2], [4]]),
        (["B", "T", 2, 4], ["B", "T", 8], [["B"], ["T"], [2, 4]]),
        (["B", 2, "T", 4], ["z", "T", 4], [["B", 2], ["T"], [4]]),
        (["z", "T", 4], ["B", 2, "T", 4], [["B"], [2], ["T"], [4]]),
        ([6, 4], [2, 12], [[2], [3, 4]]),
        (["B", 8], ["B", 1, 8], [["B"], [], [8]]),
        (["B", "unk__1", 8], ["B", "unk__2", 2, 4], [["B"], ["unk__2"], [2], [4]]),
        (["B", "unk__1", 4], ["B", "unk__2", 8], None),
        (["B", "T", 4], ["x", "y", 4], None),
        ([6], [4, 2], None),
    ],
)
def test_regroup(have: list[object], dims: list[object], found: list[list[object]] | None) -> None:
    assert shown(regroup(factors(*have), dims)) == found


def test_a_named_size_is_no_other_named_size() -> None:
    assert regroup(factors("B", 8), ["N", 2, 4]) is None


def test_a_split_factor_is_seen_by_axes_noted_before() -> None:
    axis = (Factor(8),)
    assert regroup(axis, [2, 4]) is not None
    assert [factor.size for factor in expanded(axis)] == [2, 4]
    assert length(axis) == 8


def nodes(text: str) -> ir.Graph:
    model = ir.serde.deserialize_model(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}'))
    infer_shapes(model)
    return model.graph


def test_there_and_back() -> None:
    graph = nodes(
        "g (float[B, T, 8] x) => (float y) <int64[4] s = {0, 0, 2, 4}, int64[3] m = {0, 0, 8}>"
        " { a = Reshape(x, s) b = Transpose<perm=[0, 2, 1, 3]>(a) c = Transpose<perm=[0, 2, 1, 3]>(b)"
        " y = Reshape(c, m) }"
    )
    axes = fresh(graph.inputs[0])
    for node in graph:
        assert axes is not None
        axes = forward(node, axes)
    assert shown(axes) == [["B"], ["T"], [2, 4]]
    for node in reversed(list(graph)):
        assert axes is not None
        axes = backward(node, axes)
    assert shown(axes) == [["B"], ["T"], [2, 4]]


def test_what_is_expanded_has_no_factor() -> None:
    graph = nodes("g (float[B, 2, 1, S, 4] x) => (float y) <int64[5] e = {1, 1, 3, 1, 1}> { y = Expand(x, e) }")
    axes = [tuple(factors(size)) for size in ("B", 2, 3, "S", 4)]
    assert shown(backward(graph[0], axes)) == [["B"], [2], [], ["S"], [4]]


def test_another_operator_is_a_wall() -> None:
    graph = nodes("g (float[B, 8] x) => (float y) { y = Exp(x) }")
    axes = [tuple(factors(size)) for size in ("B", 8)]
    assert backward(graph[0], axes) is None
    assert forward(graph[0], axes) is None
