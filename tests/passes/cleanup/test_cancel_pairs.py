"""cancel-pairs: operators that undo each other."""

from __future__ import annotations

import pytest
from onnxedge_passes.cleanup.cancel_pairs import CancelPairs

CANCELLED = {
    "two signs": "g (float[N] x) => (float[N] y) { a = Neg(x) b = Neg(a) y = Relu(b) }",
    "blocks": "g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y)"
    " { a = SpaceToDepth<blocksize=2>(x) b = DepthToSpace<blocksize=2>(a) y = Relu(b) }",
}

KEPT = {
    "other blocks": "g (float[N, 4, 8, 8] x) => (float[N, A, B, C] y)"
    " { a = SpaceToDepth<blocksize=4>(x) y = DepthToSpace<blocksize=2>(a) }",
    "another order": "g (float[N, 4, 8, 8] x) => (float[N, A, B, C] y)"
    ' { a = SpaceToDepth<blocksize=2>(x) y = DepthToSpace<blocksize=2, mode="CRD">(a) }',
    "a reciprocal rounds": "g (float[N] x) => (float[N] y) { a = Reciprocal(x) y = Reciprocal(a) }",
}


@pytest.mark.parametrize("text", CANCELLED.values(), ids=CANCELLED)
def test_cancels(check, text: str) -> None:
    check(CancelPairs(), text, f"{text.split('{')[0]} {{ y = Relu(x) }}")


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_stays(check, text: str) -> None:
    check(CancelPairs(), text)


def test_nothing_between_input_and_output(check) -> None:
    head = "g (float[N] x) => (float[N] y)"
    check(CancelPairs(), f"{head} {{ a = Neg(x) y = Neg(a) }}", f"{head} {{ y = Identity(x) }}")


def test_negations_of_truth(check) -> None:
    check(
        CancelPairs(),
        "g (bool[N] x) => (int32[N] y) { a = Not(x) b = Not(a) y = Cast<to=6>(b) }",
        "g (bool[N] x) => (int32[N] y) { y = Cast<to=6>(x) }",
    )
