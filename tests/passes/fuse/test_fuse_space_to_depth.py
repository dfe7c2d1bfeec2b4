"""fuse-space-to-depth: Slices of every second pixel, and their channels side by side."""

from __future__ import annotations

import numpy as np
import pytest
from onnxedge_passes.fuse.linear.fuse_space_to_depth import FuseSpaceToDepth

HEAD = "g (float[N, 2, H, W] x) => (float[A, B, C, D] y)"
LAST = 9223372036854775807
ROWS = ["0, 0", "0, 1", "1, 0", "1, 1"]
FOCUS = [0, 2, 1, 3]  #: of YOLOv5


def slices(order: list[int], end: int = LAST, step: str = "2, 2") -> tuple[str, str]:
    """Return initializers and nodes that give ``c``, the pixels of a block in an order."""
    bounds = "".join(f"int64[2] p{i} = {{{ROWS[i]}}}, " for i in range(4))
    bounds += f"int64[2] e = {{{end}, {end}}}, int64[2] a = {{2, 3}}, int64[2] k = {{{step}}}"
    parts = " ".join(f"s{i} = Slice(x, p{i}, e, a, k)" for i in range(4))
    return bounds, f"{parts} c = Concat<axis=1>({', '.join(f's{i}' for i in order)})"


def graph(order: list[int], behind: str = "y = Relu(c)", head: str = HEAD, **options: object) -> str:
    bounds, nodes = slices(order, **options)  # type: ignore[arg-type]
    return f"{head} <{bounds}> {{ {nodes} {behind} }}"


def test_in_order(check) -> None:
    after = f"{HEAD} {{ c = SpaceToDepth<blocksize=2>(x) y = Relu(c) }}"
    check(FuseSpaceToDepth(), graph([0, 1, 2, 3]), after)


def test_out_of_order_with_a_gather(check) -> None:
    after = f"{HEAD} <int64[8] i = {{0, 1, 4, 5, 2, 3, 6, 7}}>"
    after += " { s = SpaceToDepth<blocksize=2>(x) c = Gather<axis=1>(s, i) y = Relu(c) }"
    check(FuseSpaceToDepth(), graph(FOCUS), after)


def test_out_of_order_into_the_weight(check) -> None:
    weight = np.arange(8)
    moved = weight.reshape(4, 2)[FOCUS].ravel()  # the middle two change places, which undoes itself
    texts = [f"float[1, 8, 1, 1] w = {{{', '.join(map(str, w))}}}" for w in (weight, moved)]
    bounds, nodes = slices(FOCUS)
    before = f"{HEAD} <{bounds}, {texts[0]}> {{ {nodes} y = Conv(c, w) }}"
    check(FuseSpaceToDepth(), before, f"{HEAD} <{texts[1]}> {{ c = SpaceToDepth<blocksize=2>(x) y = Conv(c, w) }}")


KEPT = {
    "a pixel twice": graph([0, 1, 1, 3]),
    "a border left out": graph([0, 1, 2, 3], end=4),
    "another step": graph([0, 1, 2, 3], step="2, 1"),
    "a part that others read": graph([0, 1, 2, 3], "z = Mul(c, c) y = Relu(s0)").replace(
        "y = Relu(s0)", "y = Concat<axis=1>(z, s0)"
    ),
}


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_stays(check, text: str) -> None:
    check(FuseSpaceToDepth(), text.replace("[N, 2, H, W]", "[N, 2, 6, 6]"), runs="2, 1}" not in text)


def test_unknown_channels_are_named(check) -> None:
    text = graph(FOCUS, head=HEAD.replace("N, 2", "N, M"))
    assert check(FuseSpaceToDepth(), text) == ["SpaceToDepth not fused: the number of channels is not known"]
