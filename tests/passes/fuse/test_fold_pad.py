"""fold-pad: zeros around images."""

from __future__ import annotations

import pytest
from onnxedge_passes.fuse.linear.fold_pad import FoldPad

HEAD = "g (float[1, 1, 4, 4] x) => (float[A, B, C, D] y)"
PADS = "int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}"
WEIGHT = "float[1, 1, 2, 2] w = {1, 2, 3, 4}"

FOLDED = {
    "Conv": (
        f"{HEAD} <{PADS}, {WEIGHT}> {{ a = Pad(x, p) y = Conv<pads=[0, 1, 0, 1]>(a, w) }}",
        f"{HEAD} <{WEIGHT}> {{ y = Conv<pads=[1, 2, 1, 2]>(x, w) }}",
    ),
    "Conv with VALID": (
        f'{HEAD} <{PADS}, {WEIGHT}> {{ a = Pad(x, p) y = Conv<auto_pad="VALID">(a, w) }}',
        f"{HEAD} <{WEIGHT}> {{ y = Conv<pads=[1, 1, 1, 1]>(x, w) }}",
    ),
    "Conv with SAME_UPPER": (
        f'{HEAD} <{PADS}, {WEIGHT}> {{ a = Pad(x, p) y = Conv<auto_pad="SAME_UPPER", strides=[1, 2]>(a, w) }}',
        f"{HEAD} <{WEIGHT}> {{ y = Conv<pads=[1, 1, 2, 1], strides=[1, 2]>(x, w) }}",
    ),
    "Conv with SAME_LOWER": (
        f'{HEAD} <{PADS}, {WEIGHT}> {{ a = Pad(x, p) y = Conv<auto_pad="SAME_LOWER">(a, w) }}',
        f"{HEAD} <{WEIGHT}> {{ y = Conv<pads=[2, 2, 1, 1]>(x, w) }}",
    ),
    "ConvInteger": (
        f"g (uint8[1, 1, 4, 4] x) => (int32[A, B, C, D] y) <{PADS}, uint8[1, 1, 2, 2] w = {{1, 2, 3, 4}}>"
        " { a = Pad(x, p) y = ConvInteger(a, w) }",
        "g (uint8[1, 1, 4, 4] x) => (int32[A, B, C, D] y) <uint8[1, 1, 2, 2] w = {1, 2, 3, 4}>"
        " { y = ConvInteger<pads=[1, 1, 1, 1]>(x, w) }",
    ),
    "AveragePool": (
        f"{HEAD} <{PADS}> {{ a = Pad(x, p) y = AveragePool<kernel_shape=[2, 2]>(a) }}",
        f"{HEAD} {{ y = AveragePool<kernel_shape=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1>(x) }}",
    ),
    "MaxPool of what is never negative": (
        f"{HEAD} <{PADS}> {{ r = Relu(x) a = Pad(r, p) y = MaxPool<kernel_shape=[2, 2]>(a) }}",
        f"{HEAD} {{ r = Relu(x) y = MaxPool<kernel_shape=[2, 2], pads=[1, 1, 1, 1]>(r) }}",
    ),
    **{
        f"MaxPool with {low} around": (
            f"{HEAD} <{PADS}, float v = {{{low}}}> {{ a = Pad(x, p, v) y = MaxPool<kernel_shape=[2, 2]>(a) }}",
            f"{HEAD} {{ y = MaxPool<kernel_shape=[2, 2], pads=[1, 1, 1, 1]>(x) }}",
        )
        for low in ("-inf", "-3.4028234663852886e38")
    },
}

KEPT = {
    "another value": f"{HEAD} <{PADS}, {WEIGHT}, float v = {{1}}> {{ a = Pad(x, p, v) y = Conv(a, w) }}",
    "another mode": f'{HEAD} <{PADS}, {WEIGHT}> {{ a = Pad<mode="edge">(x, p) y = Conv(a, w) }}',
    "cropping": f"{HEAD} <int64[8] p = {{0, 0, -1, 0, 0, 0, 0, 0}}, {WEIGHT}> {{ a = Pad(x, p) y = Conv(a, w) }}",
    "SAME of an unknown size": f"g (float[1, 1, H, W] x) => (float[A, B, C, D] y) <{PADS}, {WEIGHT}>"
    ' { a = Pad(x, p) y = Conv<auto_pad="SAME_UPPER">(a, w) }',
    "an integer convolution with a zero point": f"g (uint8[1, 1, 4, 4] x) => (int32[A, B, C, D] y) <{PADS},"
    " uint8[1, 1, 2, 2] w = {1, 2, 3, 4}, uint8 z = {3}> { a = Pad(x, p) y = ConvInteger(a, w, z) }",
    "MaxPool of anything": f"{HEAD} <{PADS}> {{ a = Pad(x, p) y = MaxPool<kernel_shape=[2, 2]>(a) }}",
    "MaxPool with less around": f"{HEAD} <{PADS}, float v = {{-9}}>"
    " { a = Pad(x, p, v) y = MaxPool<kernel_shape=[2, 2]>(a) }",
    "MaxPool with more around": f"{HEAD} <{PADS}, float v = {{1}}>"
    " { r = Relu(x) a = Pad(r, p, v) y = MaxPool<kernel_shape=[2, 2]>(a) }",
    "AveragePool with minus infinity around": f"{HEAD} <{PADS}, float v = {{-inf}}>"
    " { a = Pad(x, p, v) y = AveragePool<kernel_shape=[2, 2]>(a) }",
    "AveragePool that does not count": f"{HEAD} <{PADS}>"
    " { a = Pad(x, p) y = AveragePool<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(a) }",
    "as large as the kernel": f"{HEAD} <int64[8] p = {{0, 0, 2, 2, 0, 0, 2, 2}}>"
    " { a = Pad(x, p) y = AveragePool<kernel_shape=[2, 2]>(a) }",
    "ceil_mode": f"{HEAD} <{PADS}>"
    " { a = Pad(x, p) y = AveragePool<kernel_shape=[2, 2], ceil_mode=1, strides=[2, 2]>(a) }",
}


@pytest.mark.parametrize(("before", "after"), FOLDED.values(), ids=FOLDED)
def test_folds(check, before: str, after: str) -> None:
    check(FoldPad(), before, after)


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_stays(check, text: str) -> None:
    reasons = check(FoldPad(), text)
    assert len(reasons) == 1
    assert reasons[0].startswith("Pad not folded: ")


def test_pads_of_named_axes(check) -> None:
    check(
        FoldPad(),
        f'{HEAD} <int64[2] p = {{1, 0}}, int64[1] k = {{-1}}, {WEIGHT}> {{ a = Pad(x, p, "", k) y = Conv(a, w) }}',
        f"{HEAD} <{WEIGHT}> {{ y = Conv<pads=[0, 1, 0, 0]>(x, w) }}",
        opset=18,
    )


def test_old_pad_with_attributes(check) -> None:
    check(
        FoldPad(),
        f"{HEAD} <{WEIGHT}> {{ a = Pad<pads=[0, 0, 1, 1, 0, 0, 1, 1]>(x) y = Conv(a, w) }}",
        f"{HEAD} <{WEIGHT}> {{ y = Conv<pads=[1, 1, 1, 1]>(x, w) }}",
        opset=9,
    )
