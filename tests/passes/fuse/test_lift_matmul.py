"""lift-matmul: products of flattened rows."""

from __future__ import annotations

import pytest
from onnxedge_passes.fuse.linear.lift_matmul import LiftMatmul

WEIGHT = "float[2, 3] w = {1, 2, 3, 4, 5, 6}"
BODY = "r = Reshape(x, s) p = MatMul(r, w) y = Reshape(p, t)"


def graph(dims: str, first: str, second: str, body: str = BODY) -> str:
    target = f"int64[{len(second.split(','))}] t = {{{second}}}"
    letters = ", ".join("ABCD"[: len(second.split(","))])
    return (
        f"g (float[{dims}] x) => (float[{letters}] y)"
        f" <{WEIGHT}, int64[{len(first.split(','))}] s = {{{first}}}, {target}> {{ {body} }}"
    )


@pytest.mark.parametrize(
    ("dims", "first", "second"),
    [("5, 4, 2", "-1, 2", "5, 4, 3"), ("N, 4, 2", "-1, 2", "-1, 4, 3"), ("5, 4, 2", "20, 2", "5, 4, -1")],
    ids=["known sizes", "an open batch", "an open width"],
)
def test_lifts(check, dims: str, first: str, second: str) -> None:
    text = graph(dims, first, second)
    check(LiftMatmul(), text, f"{text.split('{ r')[0]} {{ y = MatMul(x, w) }}")


@pytest.mark.parametrize(
    ("dims", "first", "second"),
    [
        ("5, 4, 2", "-1, 2", "4, 5, 3"),
        ("5, 4, 2", "-1, 2", "20, 3"),
        ("4, 4", "-1, 2", "4, 2, 3"),
        ("N, 4, 2", "-1, 2", "0, 3"),
    ],
    ids=["other rows", "flat rows", "cut rows", "a copied size"],
)
def test_stays(check, dims: str, first: str, second: str) -> None:
    check(LiftMatmul(), graph(dims, first, second))


def test_other_readers(check) -> None:
    check(
        LiftMatmul(),
        graph(
            "5, 4, 2",
            "-1, 2",
            "5, 4, 3",
            "r = Reshape(x, s) p = MatMul(r, w) q = Reshape(p, t) o = Reshape(p, t) y = Mul(q, o)",
        ),
    )
