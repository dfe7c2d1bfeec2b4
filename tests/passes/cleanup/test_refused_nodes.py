"""Nodes that the runtime refuses: rules leave them alone, and do not break on them."""

from __future__ import annotations

import pytest
from onnxedge_passes.cleanup.eliminate_identity import EliminateIdentity
from onnxedge_passes.cleanup.merge_reductions import MergeReductions
from onnxedge_passes.cleanup.merge_slices import MergeSlices
from onnxedge_passes.cleanup.worklist import Rule

HEAD = "g (float[2, 3] x) => (float[2, 3] y) <int64[1] zero = {0}, int64[1] far = {9}, int64[2] two = {9, 9}>"
REFUSED: dict[str, tuple[Rule, str]] = {
    "Slice with more ends than starts": (EliminateIdentity(), "y = Slice(x, zero, two)"),
    "Slice of an axis that is not there": (EliminateIdentity(), "y = Slice(x, zero, far, far)"),
    "reduction of an axis that is not there": (MergeReductions(), "y = ReduceMax<keepdims=0>(x, far)"),
    "reduction of a number's axis": (
        MergeReductions(),
        "s = ReduceSum<keepdims=0>(x) r = ReduceMax(s, zero) y = Squeeze(r, zero)",
    ),
}


@pytest.mark.parametrize(("rule", "body"), REFUSED.values(), ids=REFUSED)
def test_stays(check, rule: Rule, body: str) -> None:
    check(rule, f"{HEAD} {{ {body} }}", opset=18, runs=False, infer=False)


def test_pads_of_a_number(check) -> None:
    head = "g (float x) => (float y) <int64[0] none = {}>"
    before, after = f"{head} {{ h = Pad(x, none) y = Pad(h, none) }}", f"{head} {{ y = Pad(x, none) }}"
    check(MergeSlices(), before, after, runs=False, infer=False)
