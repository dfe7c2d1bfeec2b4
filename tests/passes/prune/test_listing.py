"""What a group lists: every constant that is cut along with it, its axis, and where its units stand on it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnxedge_passes.prune.prune import Prune
from topologies import build

from onnxedge.api import ChannelGroups, Context, Member, member_positions, model_inputs, synthesise
from onnxedge.registry import find_target

CHAIN = """
chain (float[N, 3, 6, 6] x) => (float[N, 5] y)
{
  a = Conv <kernel_shape = [1, 1]> (x, w1, b1)
  n = BatchNormalization (a, scale, shift, mean, var)
  c = Concat <axis = 1> (n, x)
  r = Relu (c)
  d = Conv <kernel_shape = [3, 3]> (r, w2)
  f = Flatten (d)
  y = Gemm <transB = 1> (f, w3, b3)
}
"""
WEIGHTS = {"w1": (8, 3, 1, 1), "b1": (8,), "scale": (8,), "shift": (8,), "mean": (8,), "w2": (4, 11, 3, 3)}
WEIGHTS |= {"w3": (5, 64), "b3": (5,)}


def listed(model: ir.Model) -> ChannelGroups:
    data = synthesise(model, model_inputs(model), 2, 0)
    return Prune().channel_groups(model, Context(find_target("ort-cpu"), data, original=model))


def rows(members: tuple[Member, ...]) -> list[tuple[object, ...]]:
    return [(m.side, m.operand, m.tensor, m.axis, m.size, m.slices, m.index) for m in members]


def test_members_have_their_axes_and_slices() -> None:
    found = listed(build(CHAIN, WEIGHTS, {"var": np.ones(8, np.float32)}))
    whole = ((0, 8, 1),)
    assert [(group.units, group.channels) for group in found.free] == [(8, 1), (4, 1)]
    assert rows(found.free[0].members) == [
        ("makes", "weight", "w1", 0, 8, whole, "u"),
        ("follows", "bias", "b1", 0, 8, whole, "u"),
        ("follows", "scale", "scale", 0, 8, whole, "u"),
        ("follows", "bias", "shift", 0, 8, whole, "u"),
        ("follows", "mean", "mean", 0, 8, whole, "u"),
        ("follows", "variance", "var", 0, 8, whole, "u"),
        ("reads", "weight", "w2", 1, 11, whole, "u"),
    ]
    assert rows(found.free[1].members) == [
        ("makes", "weight", "w2", 0, 4, ((0, 4, 1),), "u"),
        ("reads", "weight", "w3", 1, 64, ((0, 64, 1),), "16u + j, j < 16"),
    ]


def test_what_is_locked_has_its_reason_and_place() -> None:
    found = listed(build(CHAIN, WEIGHTS, {"var": np.ones(8, np.float32)}))
    assert [(group.units, group.reason, group.where) for group in found.locked] == [
        (5, "reaches a graph output", "value 'y'")
    ]


def test_index_maps() -> None:
    units = np.arange(4)[:, None]
    assert member_positions(units + 16) == (((16, 20, 1),), "u + 16")
    assert member_positions(2 * units + 1) == (((1, 8, 2),), "2u + 1")
    assert member_positions(4 * np.arange(3) + units) == (((0, 12, 1),), "u + 4j, j < 3")
    assert member_positions(np.array([[0], [1], [6], [7]])) == (((0, 2, 1), (6, 8, 1)), "in order")
    assert member_positions(np.array([[1], [0], [3], [2]])) == (((0, 4, 1),), "")
    assert member_positions(np.array([[5]])) == (((5, 6, 1),), "5")
