"""order-einsum: many operands, two by two."""

from __future__ import annotations

import pytest
from onnxedge_passes.fuse.linear.order_einsum import OrderEinsum
from traps import hold, parse

THREE = "float[64, 512] a, float[512, 64] b, float[64, 8] c"


def test_the_cheaper_product_first(check) -> None:
    head = f"g ({THREE}) => (float[64, 8] y)"
    check(
        OrderEinsum(),
        f'{head} {{ y = Einsum<equation="ij,jk,kl->il">(a, b, c) }}',
        f'{head} {{ t = Einsum<equation="jk,kl->jl">(b, c) y = Einsum<equation="ij,jl->il">(a, t) }}',
    )


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("i,i,i->i", ["7", "7", "7"]),
        ("...ij,jk,...kl->...il", ["2, 3, 4", "4, 5", "2, 5, 6"]),
        ("nhw,nw,h", ["N, 4, 5", "N, 5", "4"]),
        ("ij,ij,jk->ik", ["1, 4", "3, 4", "4, 5"]),
        ("ab,bc,cd,de,ef,fg,ga->", ["2, 3", "3, 4", "4, 5", "5, 4", "4, 3", "3, 2", "2, 2"]),
    ],
    ids=["alike", "an ellipsis", "an open size", "a broadcast", "greedy"],
)
def test_products_of_two(rewritten, equation: str, shapes: list[str]) -> None:
    inputs = ", ".join(f"float[{shape}] x{i}" for i, shape in enumerate(shapes))
    names = ", ".join(f"x{i}" for i in range(len(shapes)))
    rank = {"i,i,i->i": "[A]", "...ij,jk,...kl->...il": "[A, B, C]", "ij,ij,jk->ik": "[A, B]", "nhw,nw,h": ""}
    text = f'g ({inputs}) => (float{rank.get(equation, "")} y) {{ y = Einsum<equation="{equation}">({names}) }}'
    model, _ = rewritten(OrderEinsum(), text)
    assert [len(node.inputs) for node in model.graph] == [2] * (len(shapes) - 1)
    hold(parse(text))


@pytest.mark.parametrize(
    "text",
    [
        'g (float[3, 3] a, float[3] b, float[3] c) => (float[3] y) { y = Einsum<equation="ii,i,i->i">(a, b, c) }',
        'g (int64[3] a, int64[3] b, int64[3] c) => (int64[3] y) { y = Einsum<equation="i,i,i->i">(a, b, c) }',
        'g (float[3] a, float[3] b) => (float[3] y) { y = Einsum<equation="i,i->i">(a, b) }',
    ],
    ids=["a diagonal", "integers", "two"],
)
def test_stays(check, text: str) -> None:
    check(OrderEinsum(), text)
