"""Augmentation: each step does what it says, a view is the same again, and wrong steps are said in one line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from onnxedge.api import SAFE, Array, Augmentation, InputSpec, UserError, try_steps

IMAGES = (InputSpec("x", "float32", ("N", 3, 6, 5)), InputSpec("size", "int64", ("N", 1)))
CLIPS = (InputSpec("audio", "float32", ("N", 40)),)


def images(count: int = 300) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    sizes = np.arange(count)[:, None]
    return {"x": rng.standard_normal((count, 3, 6, 5)).astype(np.float32), "size": sizes}


def view(steps: list[str], arrays: dict[str, Array], inputs: tuple[InputSpec, ...] = IMAGES, seed: int = 1) -> Array:
    made = Augmentation.parse(steps).apply(arrays, inputs, (seed, 0))
    assert {name: (a.shape, a.dtype) for name, a in made.items()} == {n: (a.shape, a.dtype) for n, a in arrays.items()}
    return next(iter(made.values()))


def test_no_steps_share_the_arrays() -> None:
    arrays = images(3)
    assert Augmentation.parse([]).apply(arrays, IMAGES, (0,))["x"] is arrays["x"]


def test_flip_mirrors_about_half() -> None:
    arrays = images()
    made = view(["flip"], arrays)
    mirrored = [np.array_equal(new, old[:, :, ::-1]) for new, old in zip(made, arrays["x"], strict=True)]
    same = [np.array_equal(new, old) for new, old in zip(made, arrays["x"], strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 100 < sum(mirrored) < 200


def test_flip_finds_the_width_of_channels_last() -> None:
    inputs = (InputSpec("x", "float32", ("N", 6, 5, 3)),)
    x = np.random.default_rng(0).standard_normal((20, 6, 5, 3)).astype(np.float32)
    made = view(["flip"], {"x": x}, inputs)
    assert all(np.array_equal(a, b) or np.array_equal(a, b[:, ::-1]) for a, b in zip(made, x, strict=True))


def test_crop_is_a_window_of_the_padded_image() -> None:
    arrays = images(40)
    made, padded = view(["crop:2"], arrays), np.pad(arrays["x"], ((0, 0), (0, 0), (2, 2), (2, 2)))
    offsets = set()
    for new, old in zip(made, padded, strict=True):
        places = [(y, x) for y in range(5) for x in range(5) if np.array_equal(new, old[:, y : y + 6, x : x + 5])]
        assert len(places) == 1
        offsets.add(places[0])
    assert len(offsets) > 10


def test_noise_and_scale_are_of_the_size_asked_for() -> None:
    arrays = images()
    apart = view(["noise:0.5"], arrays) - arrays["x"]
    assert apart.std() == pytest.approx(0.5, rel=0.05)
    ratio = view(["scale:0.2"], arrays) / arrays["x"]
    assert 0.79 < ratio.min() < 0.85
    assert 1.15 < ratio.max() < 1.21
    assert ratio[0].std() < 1e-3


def test_shift_moves_zeros_in() -> None:
    clips = {"audio": np.random.default_rng(0).standard_normal((50, 40)).astype(np.float32)}
    made, steps = view(["shift:0.25"], clips, CLIPS), set()
    for new, old in zip(made, clips["audio"], strict=True):
        fits = [
            s
            for s in range(-10, 11)
            if np.array_equal(
                new, np.concatenate([np.zeros(max(s, 0), "f4"), old, np.zeros(10, "f4")])[max(-s, 0) :][:40]
            )
        ]
        assert fits
        steps.add(fits[0])
    assert min(steps) < -5
    assert max(steps) > 5


def test_a_view_is_the_same_again_and_another_one_is_not() -> None:
    steps = ["flip", "crop:1", "noise:0.1"]
    first, again, other = (view(steps, images(), seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_function_of_the_users(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def halve(feed, rng):\n    feed['x'] = feed['x'] / 2\n    return feed\n"
        "def broken(feed, rng):\n    raise ValueError('no')\n"
        "def narrow(feed, rng):\n    return {**feed, 'x': feed['x'][:1]}\n"
        "def empty(feed, rng):\n    return {'x': feed['x'] * float('nan'), 'size': feed['size']}\n"
    )
    arrays = images(4)
    np.testing.assert_array_equal(view([f"{file}:halve"], arrays), arrays["x"] / 2)
    for name, message in (
        ("broken", "raised ValueError: no"),
        ("narrow", r"gave 'x' as"),
        ("empty", "NaN or infinity"),
    ):
        with pytest.raises(UserError, match=message):
            view([f"{file}:{name}"], arrays)
    with pytest.raises(UserError, match="has no function 'halv'; did you mean 'halve'"):
        Augmentation.parse([f"{file}:halv"])


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("flop", "no step 'flop'; did you mean 'flip'"),
        ("flip:2", "flip takes no amount"),
        ("crop", "needs an amount, such as crop:4"),
        ("crop:0.5", "a whole number above 0"),
        ("noise:x", "needs an amount, such as noise:0.1"),
        ("noise:-1", "a number above 0 and up to 1"),
        ("nothing_like_it:function", "cannot be imported"),
    ],
)
def test_steps_that_are_none(step: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Augmentation.parse([step])


def test_steps_that_no_input_is_for() -> None:
    with pytest.raises(UserError, match="crop:4 is for images, input 'audio' is float32"):
        Augmentation.parse(["crop:4"]).check(CLIPS)
    with pytest.raises(UserError, match="no input of the model is float32"):
        Augmentation.parse(["noise:0.1"]).check((InputSpec("tokens", "int64", ("N", 8)),))


def test_a_view_on_disk_is_the_one_in_memory_and_the_one_before_stays_readable(tmp_path: Path) -> None:
    arrays, made = images(), Augmentation.parse(["flip", "noise:0.1"])
    first = made.apply(arrays, IMAGES, (1, 0), tmp_path)
    second = made.apply(arrays, IMAGES, (1, 1), tmp_path)
    for number, found in enumerate((first, second)):
        assert isinstance(found["x"], np.memmap)
        np.testing.assert_array_equal(found["x"], made.apply(arrays, IMAGES, (1, number))["x"])
        np.testing.assert_array_equal(found["size"], arrays["size"])


def test_usual_steps_are_tried_on_a_model_that_is_good() -> None:
    inputs = (InputSpec("x", "float32", ("N", 3, 16, 16)),)
    x = np.random.default_rng(0).standard_normal((60, 3, 16, 16)).astype(np.float32)

    def bright(feed: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": np.abs(feed["x"]).mean((2, 3))}  # whatever the side

    def left(feed: Mapping[str, Array]) -> dict[str, Array]:
        half = feed["x"].mean(1)
        return {"y": np.stack([half[:, :, :8].mean((1, 2)), half[:, :, 8:].mean((1, 2))], 1)}

    assert try_steps(bright, {"x": x}, inputs)["flip"] == 1
    tried = try_steps(left, {"x": x}, inputs)
    assert list(tried) == ["flip", "crop:2"]
    assert 0.3 < tried["flip"] < 0.7 < SAFE
    assert try_steps(lambda feed: {"y": feed["x"]}, {"x": x}, inputs) == {}, "no class scores"


@pytest.mark.parametrize(
    ("shape", "steps"),
    [
        (("N", 3, 8, 8), []),
        (("N", 32, 24, 1), ["flip", "crop:3"]),
        (("N", 16000), ["shift:0.1"]),
        (("N", 100), []),
        (("N", 3, "H", "W"), []),
    ],
)
def test_what_is_usual_depends_on_the_shape(shape: tuple[int | str, ...], steps: list[str]) -> None:
    sizes = [size if isinstance(size, int) else 20 for size in shape]
    x = np.random.default_rng(0).standard_normal((4, *sizes[1:])).astype(np.float32)
    tried = try_steps(lambda _: {"y": np.eye(4)}, {"x": x}, (InputSpec("x", "float32", shape),))
    assert tried == dict.fromkeys(steps, 1.0)


def test_mix_blends_a_share_of_the_samples_and_their_numbers_alike() -> None:
    inputs = (InputSpec("x", "float32", ("N", 5)),)
    x = np.random.default_rng(0).standard_normal((400, 5)).astype(np.float32)
    steps = Augmentation.parse(["mix:0.5"])
    made = steps.apply({"x": x}, inputs, (3, 1))["x"]
    classes, sums = np.arange(400), x.sum(1)
    marked, blended = steps.relabel(classes, (3, 1)), steps.relabel(sums, (3, 1))
    same = (made == x).all(1)
    assert 150 < same.sum() < 250
    np.testing.assert_array_equal(marked, np.where(same, classes, -1))
    np.testing.assert_allclose(blended, made.sum(1), atol=1e-5)
    assert (classes >= 0).all(), "the labels of other views stay"
    assert (np.abs(made) <= np.abs(x).max()).all()
    assert Augmentation.parse(["noise:0.1"]).relabel(classes, (3, 1)) is classes


def test_mix_is_for_one_input() -> None:
    with pytest.raises(UserError, match=r"mix:0\.5 is for models of one input, this one has 2"):
        Augmentation.parse(["mix:0.5"]).check(IMAGES)
