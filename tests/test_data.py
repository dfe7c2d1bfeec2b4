"""Data sources, how they fit a model's inputs, batches, errors, and synthetic samples."""

from __future__ import annotations

import itertools
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from PIL import Image

from onnxedge.data import (
    Batch,
    Batching,
    Data,
    Preprocess,
    data_doubts,
    from_arrays,
    model_inputs,
    open_data,
    synthesise,
)
from onnxedge.data.arrays import Mapped, PackedMember, open_npz
from onnxedge.errors import UserError
from onnxedge.model.io import load
from onnxedge.runtime import CannotRun, InputSpec, Session

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
ZOO = Path(os.environ.get("ONNXEDGE_ZOO", Path(__file__).resolve().parents[2] / "shared" / "zoo"))

IMAGES = (InputSpec("pixels", "float32", ("N", 3, 8, 8)),)
AUDIO = (InputSpec("wave", "float32", (1, 100)),)
STREAM = (
    InputSpec("input", "float32", ("batch", "sequence")),
    InputSpec("state", "float32", (2, "batch", 4)),
    InputSpec("sr", "int64", ()),
)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def pixels(count: int = 10) -> np.ndarray[Any, Any]:
    return rng().integers(0, 256, (count, 3, 8, 8)).astype(np.uint8)


def first(data: Data, size: int = 32) -> Batch:
    return next(data.batches(size))


def values(data: Data, name: str = "pixels") -> np.ndarray[Any, Any]:
    return np.concatenate([batch.feed[name][: batch.count] for batch in data.batches(4)])


# Files


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "d.npz", x=pixels(), y=np.arange(10), labels=np.array(["cat", "dog"]))
    data = open_data(tmp_path / "d.npz", IMAGES)
    assert (len(data), data.has_labels, data.synthetic) == (10, True, False)
    batches = list(data.batches(4))
    assert [batch.count for batch in batches] == [4, 4, 2]
    assert batches[0].feed["pixels"].dtype == np.float32
    np.testing.assert_array_equal(values(data), pixels())
    np.testing.assert_array_equal(np.concatenate([b.labels for b in batches if b.labels is not None]), np.arange(10))
    assert sum(batch.count for batch in data.batches(4, limit=5)) == 5
    assert [len(feed["pixels"]) for feed in data.feeds(4, limit=5)] == [4, 1]


def test_npz_members_are_mapped_or_wait(tmp_path: Path) -> None:
    big = np.asfortranarray(pixels())
    np.savez(tmp_path / "stored.npz", x=big, empty=np.zeros((0, 3)), scalar=np.int64(7))
    np.savez_compressed(tmp_path / "packed.npz", x=big)
    stored, packed = open_npz(tmp_path / "stored.npz"), open_npz(tmp_path / "packed.npz")
    assert all(isinstance(rows, Mapped) for rows in stored.values())
    assert isinstance(stored["x"].array(), np.memmap)
    assert isinstance(packed["x"], PackedMember)
    for opened in (stored, packed):
        assert (opened["x"].shape, opened["x"].dtype) == ((10, 3, 8, 8), np.uint8)
        np.testing.assert_array_equal(opened["x"].array(), big)
    assert stored["empty"].array().shape == (0, 3)
    assert stored["scalar"].array() == 7


def test_npy_without_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", pixels())
    data = open_data(str(tmp_path / "d.npy"), IMAGES)
    assert not data.has_labels
    assert first(data).labels is None
    np.testing.assert_array_equal(values(data), pixels())


def test_large_arrays_stay_out_of_memory(tmp_path: Path) -> None:
    array = np.lib.format.open_memmap(tmp_path / "d.npy", "w+", np.uint8, (300, 1 << 20))
    array[-1] = 1
    del array
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = open_data(tmp_path / "d.npy", [InputSpec("x", "float32", ("N", 1 << 20))])
    assert sum(float(batch.feed["x"][:, 0].sum()) for batch in data.batches(4)) == 1.0
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 150 << (20 if sys.platform == "darwin" else 10)


def test_folder_of_samples_and_feeds(tmp_path: Path) -> None:
    for index, array in enumerate(pixels(5)):
        np.savez(tmp_path / f"{index}.npz", pixels=array if index % 2 else array[None], label=index)
    data = open_data(tmp_path, IMAGES)
    assert len(data) == 5
    np.testing.assert_array_equal(values(data), pixels(5))
    np.testing.assert_array_equal(first(data).labels, np.arange(5))


def test_folder_with_samples_of_different_size(tmp_path: Path) -> None:
    for index, length in enumerate([5, 5, 7, 7, 7]):
        np.save(tmp_path / f"{index}.npy", np.zeros(length, np.float32))
    data = open_data(tmp_path, [InputSpec("x", "float32", ("N", "T"))])
    assert [batch.feed["x"].shape for batch in data.batches(4)] == [(2, 5), (2, 7), (1, 7)]


def test_folder_of_images(tmp_path: Path) -> None:
    for name, level in (("dog/0", 10), ("cat/0", 0), ("cat/1", 1), ("cat/2", 2)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 30, 3), level, np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    preprocess = Preprocess.parse("resize=10,crop=8,scale=1/2,layout=NCHW")
    data = open_data(tmp_path, IMAGES, preprocess)
    batch = first(data)
    np.testing.assert_array_equal(batch.labels, [0, 1, 0, 0])  # in turns, so that few hold all
    np.testing.assert_array_equal(batch.feed["pixels"][:, 0, 0, 0], [0, 5, 0.5, 1])
    assert batch.feed["pixels"].shape == (4, 3, 8, 8)


def test_images_and_arrays_are_preprocessed_alike(tmp_path: Path) -> None:
    raw = rng().integers(0, 256, (3, 12, 16, 3)).astype(np.uint8)
    for index, image in enumerate(raw):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    text = "color=bgr,resize=10,crop=8,scale=1/255,mean=.485:.456:.406,std=.229:.224:.225,layout=NCHW"
    folder, array = open_data(tmp_path, IMAGES, text), open_data(raw, IMAGES, text)
    assert not folder.has_labels
    np.testing.assert_array_equal(values(folder), values(array))


def test_gray_model_reads_gray_images(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(tmp_path / "0.png")
    data = open_data(tmp_path, [InputSpec("x", "float32", (1, 1, 8, 8))], "layout=NCHW")
    assert first(data).feed["x"].shape == (1, 1, 8, 8)


# Functions, readers, Python objects

MODULE = """
import numpy as np
calls = 0
def dicts():
    global calls
    calls += 1
    for i in range(5):
        yield {"pixels": np.full((3, 8, 8), i)}
def labelled():
    for i in range(5):
        yield {"pixels": np.full((1, 3, 8, 8), i)}, i
def arrays():
    return [np.full((2, 3, 8, 8), i) for i in range(3)]
def endless():
    i = 0
    while True:
        yield np.full((3, 8, 8), i % 256)
        i += 1
def broken():
    yield np.zeros((3, 8, 8))
    raise KeyError("lost")
def nothing():
    return iter(())
def strange():
    yield object()
wrong = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = f"own_data_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_functions(module: str) -> None:
    data = open_data(f"{module}:dicts", IMAGES)
    assert values(data)[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert values(data)[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert sys.modules[module].calls == 1  # drawn once, read back afterwards
    labelled = open_data(f"{module}:labelled", IMAGES)
    np.testing.assert_array_equal(first(labelled).labels, np.arange(5))
    by_file = open_data(f"{module}.py:arrays", IMAGES)
    assert values(by_file)[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]


def test_functions_are_drawn_from_only_as_far_as_asked(module: str) -> None:
    data = open_data(f"{module}:endless", IMAGES)
    assert sum(batch.count for batch in data.batches(4, limit=10)) == 10
    assert values(data.slice(5, 8))[:, 0, 0, 0].tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dict", r"has no 'dict'; did you mean 'dicts'\?"),
        ("broken", "item 1: raised KeyError: 'lost'"),
        ("nothing", "no samples"),
        ("strange", "item 0: gives object, not an array"),
        ("wrong", "a int is no data; give an iterable of dicts or arrays"),
    ],
)
def test_functions_that_fail(module: str, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        len(open_data(f"{module}:{name}", IMAGES))


def test_calibration_data_reader() -> None:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{"pixels": array[None].astype(np.float32)} for array in pixels(5)]

        def get_next(self) -> Any:
            return self.left.pop(0) if self.left else None

    data = open_data(Reader(), IMAGES)
    np.testing.assert_array_equal(values(data), pixels(5))
    np.testing.assert_array_equal(values(data), pixels(5))
    assert len(data) == 5


def test_python_objects() -> None:
    expected = values(open_data(pixels(), IMAGES))
    for source in ({"pixels": pixels()}, {"images": pixels(), "y": np.arange(10)}, list(pixels()), {"what": pixels()}):
        np.testing.assert_array_equal(values(open_data(source, IMAGES)), expected)
    data = from_arrays(IMAGES, {"pixels": pixels()}, labels=np.arange(10))
    assert data.has_labels
    assert open_data(data, IMAGES) is data
    with pytest.raises(UserError, match="was opened for another model's inputs"):
        open_data(data, AUDIO)


# Shapes


def test_batching_of_inputs() -> None:
    assert Batching.of(IMAGES) == Batching((0,), None)
    assert Batching.of(AUDIO) == Batching((0,), 1)
    assert Batching.of(STREAM) == Batching((0, 1, None), None)
    recurrent = [InputSpec("x", "float32", ("seq", "batch", 5)), InputSpec("h", "float32", (1, "batch", 5))]
    assert Batching.of(recurrent) == Batching((1, 1), None)
    fixed = [InputSpec("a", "float32", (4, 3)), InputSpec("b", "float32", (4,)), InputSpec("c", "float32", (7, 3))]
    assert Batching.of(fixed) == Batching((0, 0, None), 4)
    assert Batching.of([InputSpec("image", "float32", (3, 224, 224))]) == Batching((None,), 1)
    assert Batching.of([InputSpec("wave", "float32", (16000,))]) == Batching((None,), 1)


def test_fixed_batch_of_one() -> None:
    array = rng().standard_normal((5, 100))
    for shaped in (array, array[:, None]):  # rows may hold the whole shape
        batches = list(open_data(shaped, AUDIO).batches(32))
        assert [(batch.feed["wave"].shape, batch.count) for batch in batches] == [((1, 100), 1)] * 5
        np.testing.assert_array_equal(batches[3].feed["wave"][0], array[3].astype(np.float32))


def test_fixed_batch_is_filled_up() -> None:
    data = open_data({"x": pixels(6), "y": np.arange(6)}, [InputSpec("x", "uint8", (4, 3, 8, 8))])
    batches = list(data.batches(1))
    assert data.fixed_batch == 4
    assert [(len(batch.feed["x"]), batch.count) for batch in batches] == [(4, 4), (4, 2)]
    assert [batch.labels.tolist() for batch in batches if batch.labels is not None] == [[0, 1, 2, 3], [4, 5]]
    np.testing.assert_array_equal(batches[1].feed["x"][2], pixels(6)[5])


def test_inputs_without_a_batch_axis() -> None:
    whole = [InputSpec("image", "uint8", (3, 32, 32))]
    array = rng().integers(0, 256, (4, 3, 32, 32)).astype(np.uint8)
    batches = list(open_data(array, whole).batches(32))
    assert [batch.feed["image"].shape for batch in batches] == [(3, 32, 32)] * 4
    np.testing.assert_array_equal(batches[2].feed["image"], array[2])
    assert len(open_data(array[0], whole)) == 1


def test_state_and_scalar_inputs() -> None:
    wave, state = rng().standard_normal((5, 16)), rng().standard_normal((5, 2, 1, 4))
    data = open_data({"input": wave, "state": np.zeros((2, 1, 4)), "sr": 16000}, STREAM)
    batch = first(data, 4)
    assert {name: array.shape for name, array in batch.feed.items()} == {"input": (4, 16), "state": (2, 4, 4), "sr": ()}
    assert isinstance(batch.feed["sr"], np.ndarray)
    own = first(open_data({"input": wave, "state": state, "sr": np.array([16000])}, STREAM))
    np.testing.assert_array_equal(own.feed["state"][:, 3], state[3, :, 0].astype(np.float32))
    along = first(open_data({"input": wave, "state": state[:, :, 0].swapaxes(0, 1), "sr": 16000}, STREAM))
    np.testing.assert_array_equal(along.feed["state"], own.feed["state"])
    reader = ({"input": w[None], "state": s, "sr": np.array(8000)} for w, s in zip(wave, state, strict=True))
    np.testing.assert_array_equal(first(open_data(reader, STREAM)).feed["state"], own.feed["state"])


def test_a_whole_input_that_differs_is_fed_one_by_one() -> None:
    specs = [InputSpec("x", "float32", ("N", 3)), InputSpec("k", "int64", ())]
    data = open_data({"x": np.ones((4, 3)), "k": np.arange(4)}, specs)
    assert [(batch.count, int(batch.feed["k"])) for batch in data.batches(32)] == [(1, 0), (1, 1), (1, 2), (1, 3)]


def test_several_inputs_get_the_same_batch() -> None:
    specs = [InputSpec("ids", "int64", ("a", "T")), InputSpec("mask", "int64", ("b", "T"))]
    feed = first(open_data({"ids": np.ones((6, 5), np.int32), "mask": np.ones((6, 5), np.int64)}, specs), 4).feed
    assert {array.shape for array in feed.values()} == {(4, 5)}
    assert feed["ids"].dtype == np.int64


def test_preprocess_is_for_one_input() -> None:
    specs = (*IMAGES, InputSpec("extra", "float32", ("N", 2)))
    arrays = {"pixels": pixels(2), "extra": np.full((2, 2), 255.0)}
    feed = first(open_data(arrays, specs, "scale=1/255")).feed
    assert (feed["pixels"].max() <= 1, feed["extra"].max()) == (True, 255)
    feed = first(open_data(arrays, specs, "scale=1/255,input=extra")).feed
    assert feed["extra"].max() == 1


# Errors


def shape_errors() -> Iterator[Any]:
    image = np.zeros((2, 3, 8, 8), np.uint8)
    yield (
        image.transpose(0, 2, 3, 1),
        None,
        (
            r"data: input 'pixels': needs float32\[N,3,8,8\], got uint8\[2,8,8,3\]; "
            "looks like NHWC; add layout=NCHW to --preprocess"
        ),
    )
    yield np.zeros((2, 3, 16, 16)), None, "add resize=8x8 to --preprocess"
    yield np.zeros((2, 20, 30, 3), np.uint8), None, "add resize=8x8,layout=NCHW to --preprocess"
    yield np.zeros((2, 20, 30, 3), np.uint8), "layout=NCHW", r"\(with preprocess layout=NCHW\); add resize=8x8 to"
    yield np.zeros((3, 8, 8)), None, r"one sample without the axis of samples; give \[1,\.\.\.\]"
    yield np.zeros((2, 192)), None, r"the same number of elements; reshape each sample to \[3,8,8\]"
    yield np.zeros((2, 1, 8, 8)), None, "needs 3 channels, has 1; add color=rgb to --preprocess"
    yield np.zeros((2, 5)), None, r"got float64\[2,5\]$"
    yield np.zeros((2, 5)), "layout=NCHW", r"--preprocess works on images, a sample of \[5\] is none"


@pytest.mark.parametrize(("array", "preprocess", "message"), list(shape_errors()))
def test_wrong_shape(array: Any, preprocess: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message) as info:
        open_data(array, IMAGES, preprocess)
    assert "\n" not in str(info.value)


def test_missing_channel_axis() -> None:
    with pytest.raises(UserError, match="no channel axis; add layout=NCHW to --preprocess"):
        open_data(np.zeros((5, 28, 28)), [InputSpec("x", "float32", (1, 1, 28, 28))])


@pytest.mark.parametrize(
    ("array", "dtype", "preprocess", "message"),
    [
        (
            np.zeros((2, 3)),
            "int64",
            None,
            "needs int64, got float64; give integers, or add dtype=int64 to --preprocess",
        ),
        (np.zeros((2, 3), np.uint8), "uint8", "scale=1/255", "needs uint8, got float32; leave scale, mean and std out"),
        (np.array([["a"] * 3]), "float32", None, "needs float32, got <U1; give an array of float32"),
        (np.zeros((2, 3)), "object", None, "needs object, got float64"),
        (np.zeros((2, 3)), "tensor(bfloat16)", None, r"tensor\(bfloat16\) inputs cannot be given as arrays"),
    ],
)
def test_wrong_dtype(array: Any, dtype: str, preprocess: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_data(array, [InputSpec("x", dtype, ("N", 3))], preprocess)


def test_casts_keep_values() -> None:
    types = ("bool", "uint8", "int16", "int64", "float16", "float64")
    for came, needed in itertools.product(types, ("float32", "float64")):
        array = np.array([[0, 1, 1]]).astype(came)
        feed = first(open_data(array, [InputSpec("x", needed, ("N", 3))])).feed["x"]
        assert (feed.dtype, feed.tolist()) == (np.dtype(needed), [[0, 1, 1]])
    assert first(open_data(np.array([["a", "b"]]), [InputSpec("x", "object", ("N", 2))])).feed["x"].dtype == object
    with pytest.raises(UserError, match="input 'x': sample 1 holds a value that uint8 cannot hold"):
        first(open_data(np.array([[0], [256]]), [InputSpec("x", "uint8", ("N", 1))]))
    with pytest.raises(UserError, match="input 'x': sample 0 holds a value that float16 cannot hold"):
        first(open_data(np.array([[1e6]]), [InputSpec("x", "float16", ("N", 1))]))


def test_nan_is_found_when_it_is_read() -> None:
    array = np.zeros((100, 3), np.float32)
    array[77, 1] = np.nan
    data = open_data(array, [InputSpec("x", "float32", ("N", 3))])
    assert first(data).count == 32
    with pytest.raises(UserError, match="data: input 'x': sample 77 holds NaN or infinity"):
        list(data.batches(32))


def test_missing_and_unequal_inputs() -> None:
    message = (
        r"input 'state' \(float32\[2,batch,4\]\) is not in the data, which has 'input', 'stat'; did you mean 'stat'"
    )
    with pytest.raises(UserError, match=message):
        open_data({"input": np.zeros((2, 16)), "stat": np.zeros(1)}, STREAM)
    specs = [InputSpec("a", "float32", ("N", 1)), InputSpec("b", "float32", ("N", 1))]
    with pytest.raises(UserError, match="input 'b' has 3 samples, 'a' has 4"):
        open_data({"a": np.zeros((4, 1)), "b": np.zeros((3, 1))}, specs)
    with pytest.raises(UserError, match="9 labels in 'y' for 10 samples"):
        open_data({"x": pixels(), "y": np.arange(9)}, IMAGES)
    with pytest.raises(UserError, match="no samples"):
        open_data(pixels(0), IMAGES)
    with pytest.raises(UserError, match="the model has no inputs"):
        open_data(pixels(), [])
    with pytest.raises(UserError, match=r"input=image: the model has no such input \(inputs: pixels\)"):
        open_data(pixels(), IMAGES, "scale=2,input=image")


def test_bad_files(tmp_path: Path) -> None:
    np.save(tmp_path / "good.npy", pixels())
    cut = tmp_path / "cut.npy"
    cut.write_bytes((tmp_path / "good.npy").read_bytes()[:500])
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.savez(tmp_path / "good.npz", x=pixels())
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:500])
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "data.csv").write_text("1,2")
    (tmp_path / "images").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"no image")
    for name, message in {
        "cut.npy": "not a readable npy file: cut short",
        "objects.npy": r"holds Python objects \(pickle\)",
        "cut.npz": "not a readable npz file",
        "text.npz": "not a readable npz file",
        "data.csv": "not a kind of data that is read",
        "god.npz": r"no such file or folder; did you mean 'good.npz'\?",
        "images": "a.png: not a readable image",
        "empty": "holds no .npz, no .npy and no images",
    }.items():
        with pytest.raises(UserError, match=message) as info:
            open_data(tmp_path / name, IMAGES)
        assert "\n" not in str(info.value)
    np.save(tmp_path / "images" / "b.npy", pixels())
    with pytest.raises(UserError, match=r"holds both arrays \(b.npy\) and images \(a.png\)"):
        open_data(tmp_path / "images", IMAGES)


# Slices and digests


def test_slices_and_splits() -> None:
    data = open_data({"x": pixels(), "y": np.arange(10)}, IMAGES)
    part = data.slice(2, 9)
    np.testing.assert_array_equal(values(part), pixels()[2:9])
    np.testing.assert_array_equal(values(part.slice(1, 3)), pixels()[3:5])
    assert len(data.slice(8, 99)) == 2
    fit, held_out = data.split(0.25)
    np.testing.assert_array_equal(first(held_out).labels, [3, 7])
    assert len(fit) == 8
    assert [len(d) for d in data.slice(0, 2).split(0.25)] == [1, 1]
    assert [len(d) for d in data.slice(0, 2).split(0.9)] == [1, 1]
    assert [len(d) for d in data.slice(0, 1).split(0.25)] == [1, 0]


def test_digest(tmp_path: Path, module: str) -> None:
    np.savez(tmp_path / "a.npz", x=pixels())
    np.savez_compressed(tmp_path / "b.npz", pixels=pixels())
    a, b = open_data(tmp_path / "a.npz", IMAGES), open_data(tmp_path / "b.npz", IMAGES)
    assert a.digest == b.digest == open_data(pixels(), IMAGES).digest
    assert len(a.digest) == 16
    others = [
        open_data(pixels() + 1, IMAGES),
        open_data(pixels(), IMAGES, "scale=1/255"),
        a.slice(0, 9),
        open_data({"x": pixels(), "y": np.arange(10)}, IMAGES),
        open_data(f"{module}:dicts", IMAGES),
    ]
    assert len({a.digest, *(data.digest for data in others)}) == 6


# Synthetic samples, and doubts about real ones


def test_doubt_about_missing_preprocessing() -> None:
    model = load(FIXTURES / "digits_resnet.onnx")
    right = open_data(FIXTURES / "digits_calib.npz", model_inputs(model))
    wrong = open_data(FIXTURES / "digits_calib.npz", model_inputs(model), "scale=1/255")
    assert list(data_doubts(model, right)) == []
    assert list(data_doubts(model, synthesise(model))) == []
    assert next(data_doubts(model, wrong)).startswith("input 'input': the data has mean 0.0")


def model_of(text: str) -> ir.Model:
    return ir.serde.deserialize_model(onnx.parser.parse_model(text))


HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'


def check_runs(model: ir.Model, data: Data) -> None:
    session = Session(model, level="disable")
    feeds = list(data.feeds(5))
    for feed in feeds[:3] + feeds[-1:]:
        session.run(feed)


def test_synthetic_is_seeded_and_runs() -> None:
    model = load(FIXTURES / "digits_resnet.onnx")
    data = synthesise(model, count=10, seed=3)
    assert (data.synthetic, len(data), data.has_labels) == (True, 10, False)
    assert data.slice(0, 2).synthetic
    again, other = synthesise(model, count=10, seed=3), synthesise(model, count=10, seed=4)
    np.testing.assert_array_equal(values(data, "input"), values(again, "input"))
    assert data.digest == again.digest != other.digest
    check_runs(model, data)
    pixel = values(data, "input")  # trained on pixels 0..16 of mean 4.9 and deviation 6, which BatchNormalization shows
    assert 2 < pixel.mean() < 8
    assert 3 < pixel.std() < 9
    assert np.abs(np.diff(pixel, axis=-1)).mean() < 0.6 * pixel.std()  # neighbours are alike: not white noise


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.onnx")), ids=lambda p: p.stem)
def test_synthetic_runs_on_fixtures(path: Path) -> None:
    model = load(path)
    if path.stem == "custom_domain":
        with pytest.raises(CannotRun, match="Magic"):
            synthesise(model)
        assert first(synthesise(model, run=False)).feed["image"].shape == (32, 3, 16, 16)
        return
    check_runs(model, synthesise(model, count=7))


@pytest.mark.zoo
@pytest.mark.skipif(not ZOO.is_dir(), reason=f"the zoo is not at {ZOO}; set ONNXEDGE_ZOO")
@pytest.mark.parametrize("path", sorted((ZOO / "models").glob("*.onnx")), ids=lambda p: p.stem)
def test_synthetic_runs_on_the_zoo(path: Path) -> None:
    model = load(path)
    assert model_inputs(model) == Session(path).inputs
    check_runs(model, synthesise(model, count=6))


def test_synthetic_indices_stay_in_the_table() -> None:
    model = model_of(
        HEADER + "g (int64[N, T] ids, int64[N, T] attention_mask, int64[N, T] kind) => (float[N, T, 2] y)\n"
        "<float[5, 2] table, float[2, 2] kinds, int64[1] last = {2}> {\n"
        " table = Constant<value = float[5, 2] {0,1,2,3,4,5,6,7,8,9}>()\n"
        " kinds = Constant<value = float[2, 2] {0,1,2,3}>()\n"
        " a = Gather(table, ids)\n b = Gather(kinds, kind)\n c = Cast<to = 1>(attention_mask)\n"
        " d = Unsqueeze(c, last)\n e = Add(a, b)\n y = Mul(e, d)\n}"
    )
    data = synthesise(model, count=20)
    feed = first(data).feed
    assert (feed["ids"].min(), feed["ids"].max(), feed["kind"].max(), feed["attention_mask"].min()) == (0, 4, 1, 1)
    check_runs(model, data)


def test_synthetic_scalars_and_flags() -> None:
    model = model_of(
        HEADER + "g (float[N, 4] x, int64 mode, bool flag) => (float[N, 4] y)\n<int64 seven = {7}> {\n"
        " hit = Equal(mode, seven)\n any = Or(hit, flag)\n f = Cast<to = 1>(any)\n y = Mul(x, f)\n}"
    )
    feed = first(synthesise(model, count=4)).feed
    assert (int(feed["mode"]), feed["flag"].dtype, feed["x"].shape) == (7, np.dtype(bool), (4, 4))


def test_synthetic_range_of_a_normalization_in_the_graph() -> None:
    body = " n = Sub(x, mean)\n m = Div(n, std)\n y = Conv(m, w)\n}"
    weights = ",".join(f"{v:.3f}" for v in rng().standard_normal(2 * 3 * 9) * 0.2)
    model = model_of(
        HEADER + "g (float[N, 3, H, W] x) => (float[N, 2, A, B] y)\n"
        "<float mean = {127.5}, float std = {64}, float[2, 3, 3, 3] w = {" + weights + "}> {\n" + body
    )
    pixel = first(synthesise(model, count=4)).feed["x"]
    assert pixel.shape[2] == pixel.shape[3] >= 32
    assert (pixel.min() >= 0, pixel.max() <= 255, 60 < pixel.mean() < 180) == (True, True, True)


def test_synthetic_sizes_are_those_that_run() -> None:
    model = model_of(
        HEADER + "g (float[N, L] x, float[N, C, 6] z) => (float[N, K] y, float[N, C, M] u)\n"
        "<int64[3] by64 = {0, -1, 64}, int64[1] axis = {1}, float[6, 2] w = {1,2,3,4,5,6,7,8,9,10,11,12}> {\n"
        " r = Reshape(x, by64)\n y = ReduceSum<keepdims = 0>(r, axis)\n u = MatMul(z, w)\n}"
    )
    data = synthesise(model, count=4)
    assert first(data).feed["x"].shape[1] % 64 == 0
    check_runs(model, data)


def test_synthetic_batch_that_the_graph_fixes() -> None:
    model = model_of(
        HEADER + "g (float[N, 4] x) => (float[A, B] y)\n<int64[2] one = {1, 4}> {\n y = Reshape(x, one)\n}"
    )
    assert synthesise(model, count=3).fixed_batch == 1


def test_synthetic_shapes_of_the_user() -> None:
    model = model_of(HEADER + "g (float[N, 3, H, W] x) => (float[N, 3, H, W] y) {\n y = Relu(x)\n}")
    data = synthesise(model, count=4, shapes={"x": (1, 3, 40, 56)})
    assert (first(data).feed["x"].shape, data.fixed_batch) == ((1, 3, 40, 56), 1)
    for shapes, message in {
        ("z", (1,)): "the model has no input 'z'",
        ("x", (1, 4, 8, 8)): r"'x' is float32\[N,3,H,W\], 1x4x8x8 does not fit it",
        ("x", (1, 3)): "1x3 does not fit it",
    }.items():
        with pytest.raises(UserError, match=message):
            synthesise(model, shapes=dict([shapes]))


def test_synthetic_says_why_nothing_runs() -> None:
    model = model_of(
        HEADER + "g (float[N, T] x) => (float[N, T] y)\n<int64[2] odd = {-1, 1000003}> {\n y = Reshape(x, odd)\n}"
    )
    with pytest.raises(CannotRun, match="give --calib or --input-shape; ONNX Runtime does not run the model") as info:
        synthesise(model)
    assert "\n" not in str(info.value)


def test_only_required_inputs_are_made() -> None:
    model = model_of(
        HEADER + "g (float[N, 2] x, float[2] w) => (float[N, 2] y)\n<float[2] w = {1, 2}> {\n y = Mul(x, w)\n}"
    )
    assert [spec.name for spec in model_inputs(model)] == ["x"]
    assert list(first(synthesise(model)).feed) == ["x"]


def test_strings_cannot_be_made() -> None:
    model = model_of(HEADER + "g (string[N] x) => (string[N] y) {\n y = Identity(x)\n}")
    with pytest.raises(UserError, match="input 'x': object values cannot be synthesised; give data with --calib"):
        synthesise(model)


def test_synthetic_sums_of_symbols() -> None:
    model = model_of(
        HEADER
        + "g (int64[batch, seq] ids, float[batch, 2, past, 4] cache, int64[batch, total] mask) => (float[A, B] y)\n"
        "<float[9, 3] table, int64[2] none = {0, 1}> {\n i = Cast<to = 1>(ids)\n m = Cast<to = 1>(mask)\n"
        " c = ReduceMean<axes = [1, 3], keepdims = 0>(cache)\n y = Concat<axis = 1>(i, m, c)\n}"
    )
    for value in model.graph.inputs:
        if value.name == "mask":
            value.shape = ir.Shape(["batch", "past + seq"])
    feed = first(synthesise(model, count=2)).feed
    assert feed["mask"].shape[1] == feed["ids"].shape[1] + feed["cache"].shape[2]


def test_synthetic_sizes_that_the_graph_writes_down() -> None:
    model = model_of(
        HEADER + "g (int64[N, T] x) => (float[N, A, B] y)\n<int64[3] traced = {0, 3, 37}> {\n"
        " f = Cast<to = 1>(x)\n y = Reshape(f, traced)\n}"
    )
    with pytest.raises(CannotRun):
        synthesise(model)  # 111 stands nowhere
    model = model_of(
        HEADER + "g (int64[N, T] x) => (float[N, A, B] y)\n<int64[3] traced = {0, 37, 1}> {\n"
        " f = Cast<to = 1>(x)\n y = Reshape(f, traced)\n}"
    )
    assert first(synthesise(model, count=3)).feed["x"].shape == (3, 37)


def test_synthetic_sequence_first() -> None:
    model = model_of(
        HEADER + "g (float[seq, batch, 5] x, float[1, batch, 5] h) => (float[seq, batch, 5] y) {\n y = Add(x, h)\n}"
    )
    feed = first(synthesise(model, count=6)).feed
    assert (feed["x"].shape[1], feed["h"].shape) == (6, (1, 6, 5))
    assert feed["x"].std() > 3 * feed["h"].std() > 0  # states are small
