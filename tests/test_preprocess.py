"""Preprocessing: the text, the order of the steps, and equality of image folders and arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from onnxedge.data import Preprocess
from onnxedge.errors import UserError

ISSUE = "resize=256,crop=224,scale=1/255,mean=0.485,0.456,0.406,std=0.229,0.224,0.225,layout=NCHW"


def test_text_prints_back_to_one_form() -> None:
    parsed = Preprocess.parse(ISSUE)
    assert str(parsed) == "resize=256,crop=224,scale=1/255,mean=0.485:0.456:0.406,std=0.229:0.224:0.225,layout=NCHW"
    assert Preprocess.parse(str(parsed)) == parsed
    assert parsed == Preprocess.parse(
        " layout = nchw, std=.229:.224:.225,mean=.485:.456:.406,scale=1/255,crop=224,resize=256 "
    )
    assert parsed.scale == 1 / 255


def test_other_forms() -> None:
    parsed = Preprocess.parse("resize=240x320,color=BGR,dtype=uint8,input=image")
    assert parsed == Preprocess(resize=(240, 320), color="bgr", dtype="uint8", input="image")
    assert str(parsed) == "color=bgr,resize=240x320,dtype=uint8,input=image"
    assert str(Preprocess()) == ""
    assert Preprocess.parse("") == Preprocess()


numbers = st.floats(-1e6, 1e6, allow_nan=False)


@given(
    scale=st.none() | numbers | st.integers(1, 70000).map(lambda n: 1 / n),
    mean=st.none() | st.tuples(numbers, numbers, numbers),
    resize=st.none() | st.tuples(st.integers(1, 999)) | st.tuples(st.integers(1, 999), st.integers(1, 999)),
    layout=st.sampled_from([None, "NCHW", "NHWC"]),
)
def test_every_preprocess_reads_back(scale, mean, resize, layout) -> None:  # type: ignore[no-untyped-def]
    made = Preprocess(scale=scale, mean=mean, resize=resize, layout=layout)
    assert Preprocess.parse(str(made)) == made


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reszie=224", r"reszie: no such key; did you mean 'resize'\?"),
        ("scale=1/0", "scale=1/0: is not a number such as 0.5 or 1/255"),
        ("scale=abc", "scale=abc: is not a number"),
        ("mean=1:x", "mean=x: is not a number"),
        ("resize=a", "resize=a: needs a size in pixels such as 224, or HxW"),
        ("crop=0", "crop: needs one size or HxW, each at least 1"),
        ("layout=NCWH", r"layout=NCWH: not known; did you mean 'N...'\? \(known: NCHW, NHWC\)"),
        ("color=blue", "color=blue: not known"),
        ("dtype=float", r"dtype=float: not known; did you mean 'float\d\d'\?"),
        ("scale=1,scale=2", "scale: given twice"),
        ("resize", r"'resize': needs KEY=VALUE; did you mean 'resize'\?"),
        ("scale=", "scale: has no value"),
        ("std=0", "std: must not be 0"),
        ("mean=1:2:3,std=1:2", "mean has 3 numbers, std has 2"),
    ],
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as info:
        Preprocess.parse(text)
    assert "\n" not in str(info.value)


def test_arithmetic_is_float32_and_in_order() -> None:
    raw = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    parsed = Preprocess.parse("scale=1/255,mean=.485:.456:.406,std=.229:.224:.225,layout=NCHW")
    made = parsed.apply(raw, (3, 4, 4))
    expected = ((raw.astype(np.float32) * np.float32(1 / 255) - mean) / std).transpose(0, 3, 1, 2)
    assert made.dtype == np.float32
    np.testing.assert_array_equal(made, expected)
    assert parsed.shape((4, 4, 3), (3, 4, 4)) == (3, 4, 4)


def test_audio_is_scaled() -> None:
    raw = np.array([[-32768, 0, 16384]], np.int16)
    np.testing.assert_array_equal(Preprocess(scale=1 / 32768).apply(raw, (3,)), np.float32([[-1, 0, 0.5]]))


def test_resize_and_crop_are_pillows() -> None:
    raw = np.random.default_rng(0).integers(0, 256, (1, 40, 60, 3)).astype(np.uint8)
    made = Preprocess.parse("resize=20,crop=16").apply(raw, (16, 16, 3))
    image = Image.fromarray(raw[0]).resize((30, 20), Image.Resampling.BILINEAR).crop((7, 2, 23, 18))
    np.testing.assert_array_equal(made[0], np.asarray(image))
    both = Preprocess.parse("resize=20x10").apply(raw, (20, 10, 3))
    np.testing.assert_array_equal(
        both[0], np.asarray(Image.fromarray(raw[0]).resize((10, 20), Image.Resampling.BILINEAR))
    )


def test_float_images_are_resized_in_float() -> None:
    raw = np.random.default_rng(0).random((1, 8, 8, 2), np.float32)
    made = Preprocess(resize=(4,)).apply(raw, (4, 4, 2))
    assert made.dtype == np.float32
    assert made.shape == (1, 4, 4, 2)
    assert not np.array_equal(made, np.rint(made))


def test_data_that_is_channels_first_already_stays() -> None:
    raw = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    np.testing.assert_array_equal(Preprocess(layout="NCHW").apply(raw, (3, 8, 8)), raw)
    resized = Preprocess(resize=(4,)).apply(raw, (3, 4, 4))
    assert resized.shape == (2, 3, 4, 4)
    wide = raw.repeat(3, axis=1)[:, :8]  # 8 channels: the shape that the model takes decides
    np.testing.assert_array_equal(Preprocess(layout="NCHW").apply(wide, (8, 8, 8)), wide)


def test_layout_for_gray_images_without_channel_axis() -> None:
    raw = np.zeros((5, 28, 28), np.uint8)
    assert Preprocess(layout="NCHW").apply(raw, (1, 28, 28)).shape == (5, 1, 28, 28)
    assert Preprocess(layout="NHWC").apply(raw, (28, 28, 1)).shape == (5, 28, 28, 1)


def test_colors() -> None:
    raw = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3)).astype(np.uint8)
    np.testing.assert_array_equal(Preprocess(color="bgr").apply(raw, (4, 4, 3)), raw[..., ::-1])
    gray = Preprocess(color="gray").apply(raw, (4, 4, 1))
    np.testing.assert_array_equal(gray[0, ..., 0], np.asarray(Image.fromarray(raw[0]).convert("L")))
    assert Preprocess(color="rgb").apply(gray, (4, 4, 3)).shape == (1, 4, 4, 3)


def test_dtype_rounds_and_saturates() -> None:
    raw = np.float32([[-3.0, 1.4, 300.0]])
    np.testing.assert_array_equal(Preprocess(dtype="uint8").apply(raw, (3,)), np.uint8([[0, 1, 255]]))


def test_crop_larger_than_the_image() -> None:
    with pytest.raises(UserError, match="crop=224: the image is 32x32 there; give resize first"):
        Preprocess(crop=(224,)).apply(np.zeros((1, 32, 32, 3), np.uint8), (3, 224, 224))


def test_numbers_per_channel_must_fit() -> None:
    with pytest.raises(UserError, match=r"mean: has 3 numbers, the sample \[4, 4, 1\] has not as many channels"):
        Preprocess(mean=(1.0, 2.0, 3.0), layout="NCHW").apply(np.zeros((1, 4, 4, 1), np.uint8), (1, 4, 4))
