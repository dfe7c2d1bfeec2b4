"""narrow-softmax: a Softmax of half precision between casts."""

from __future__ import annotations

import pytest
from onnxedge_passes.fuse.activation.narrow_softmax import NarrowSoftmax

HEAD = "g (float16[N, 4] x) => (float16[N, 4] y)"
BODY = "a = Cast<to=1>(x) b = Softmax<axis=1>(a) y = Cast<to=10>(b)"


@pytest.mark.parametrize("target", ["ort-cpu", "ort-cuda"])
def test_narrows(check, target: str) -> None:
    check(NarrowSoftmax(), f"{HEAD} {{ {BODY} }}", f"{HEAD} {{ y = Softmax<axis=1>(x) }}", target=target)


def test_stays_on_other_runtimes(check) -> None:
    reasons = check(NarrowSoftmax(), f"{HEAD} {{ {BODY} }}", target="generic")
    assert reasons == ["Softmax kept in float32: the runtime may add up in float16"]


@pytest.mark.parametrize(
    "text",
    [
        f"g (float[N, 4] x) => (float16[N, 4] y) {{ {BODY} }}",
        "g (float16[N, 4] x) => (float[N, 4] y) { a = Cast<to=1>(x) y = Softmax<axis=1>(a) }",
        f"g (float16[N, 4] x) => (float16[N, 4] y, float[N, 4] b) {{ {BODY} }}",
    ],
    ids=["from float32", "to float32", "other readers"],
)
def test_stays(check, text: str) -> None:
    check(NarrowSoftmax(), text)
