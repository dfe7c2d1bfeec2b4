"""merge-sequences: sequences whose elements are known."""

from __future__ import annotations

import pytest
from onnxedge_passes.cleanup.merge_sequences import MergeSequences

HEAD = "g (float[N, 5] x, float[N, 5] z) => (float[A, B] y)"
AT = "int64 k = {2}, int64 at = {1}"

READ = {
    "an element": (
        f"{HEAD} <{AT}> {{ s = SequenceConstruct(x, z) a = SequenceAt(s, at) y = Relu(a) }}",
        f"{HEAD} {{ y = Relu(z) }}",
    ),
    "an element from the end, exported": (
        f"{HEAD} <int64 at = {{-2}}> {{ s = SequenceConstruct(x, z) y = SequenceAt(s, at) }}",
        f"{HEAD} {{ y = Identity(x) }}",
    ),
    "joined": (
        f"{HEAD} {{ s = SequenceConstruct(x, z, x) y = ConcatFromSequence<axis=-1>(s) }}",
        f"{HEAD} {{ y = Concat<axis=-1>(x, z, x) }}",
    ),
    "joined along a new axis": (
        f"{HEAD.replace('[A, B]', '[A, B, C]')}"
        " { s = SequenceConstruct(x, z) y = ConcatFromSequence<axis=-1, new_axis=1>(s) }",
        f"{HEAD.replace('[A, B]', '[A, B, C]')} <int64[1] i = {{-1}}>"
        " { a = Unsqueeze(x, i) b = Unsqueeze(z, i) y = Concat<axis=-1>(a, b) }",
    ),
    "split into equal parts and a rest": (
        f"{HEAD} <{AT}> {{ s = SplitToSequence<axis=1>(x, k) y = SequenceAt(s, at) }}",
        f"{HEAD} <int64[3] w = {{2, 2, 1}}> {{ a, y, c = Split<axis=1>(x, w) }}",
    ),
    "split as given": (
        f"{HEAD} <int64[2] k = {{4, 1}}, int64 at = {{1}}> {{ s = SplitToSequence<axis=-1>(x, k)"
        " p = SequenceAt(s, at) y = Relu(p) }",
        f"{HEAD} <int64[2] w = {{4, 1}}> {{ a, b = Split<axis=-1>(x, w) y = Relu(b) }}",
    ),
    "split into single columns": (
        f"{HEAD.replace('[A, B]', '[A]')} <int64 at = {{4}}> {{ s = SplitToSequence<axis=1, keepdims=0>(x)"
        " p = SequenceAt(s, at) y = Relu(p) }",
        f"{HEAD.replace('[A, B]', '[A]')} <int64[5] w = {{1, 1, 1, 1, 1}}, int64[1] i = {{1}}>"
        " { a, b, c, d, e = Split<axis=1>(x, w) p = Squeeze(e, i) y = Relu(p) }",
    ),
}
KEPT = {
    "a position at run time": "g (float[N, 5] x, int64 at) => (float[A, B] y) <int64 k = {5}>"
    " { s = SplitToSequence<axis=1>(x, k) y = SequenceAt(s, at) }",
    "an unknown size": "g (float[N, M] x) => (float[A, B] y) <int64 k = {1}, int64 at = {0}>"
    " { s = SplitToSequence<axis=1>(x, k) y = SequenceAt(s, at) }",
    "a sequence that grows": f"{HEAD} <{AT}> {{ s = SplitToSequence<axis=1>(x, k) t = SequenceInsert(s, z)"
    " y = SequenceAt(t, at) }",
    "an exported sequence": "g (float[N, 4] x) => (seq(float[N, 2]) s, float[A, B] y) <int64 k = {2}, int64 at = {0}>"
    " { s = SplitToSequence<axis=1>(x, k) y = SequenceAt(s, at) }",
    "beyond the end": f"{HEAD} <int64 at = {{2}}> {{ s = SequenceConstruct(x, z) y = SequenceAt(s, at) }}",
}


@pytest.mark.parametrize(("before", "after"), READ.values(), ids=READ)
def test_elements_are_read(check, before: str, after: str) -> None:
    check(MergeSequences(), before, after)


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_stays(check, text: str) -> None:
    check(MergeSequences(), text, runs=False)


def test_the_length(rewritten) -> None:
    model, _ = rewritten(
        MergeSequences(), "g (float[N] x) => (int64 y) { s = SequenceConstruct(x, x) n = SequenceLength(s) y = Neg(n) }"
    )
    assert [node.op_type for node in model.graph] == ["Identity", "Neg"]
