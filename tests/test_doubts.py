"""Wrong calibration data is said: NaN, constant, one sample, wrong layout, bytes instead of small numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from samples import run

from onnxedge.api import save
from onnxedge.data import data_doubts, model_inputs, open_data
from onnxedge.data.arrays import Array
from onnxedge.data.signals import image
from onnxedge.model.io import from_proto, load
from onnxedge.verify import infer_shapes

SIDE = 32


def network(shape: tuple[Any, ...] = ("N", 3, SIDE, SIDE), gain: float = 1.0, *, bias: float = 1.0) -> ir.Model:
    """Return two convolutions with folded normalization, for images in NCHW, or in NHWC behind a Transpose.

    Args:
        shape: of the input.
        gain: what the first weight is multiplied by: 1 for normalised images, 1/64 for bytes.
        bias: of the first one; 0 for none.
    """
    rng = np.random.default_rng(0)
    last, nodes = "x", []
    if shape[1] != 3:
        nodes.append(helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]))
        last = "t"
    nodes += [
        helper.make_node("Conv", [last, "w", "b"] if bias else [last, "w"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["y"], pads=[1] * 4),
    ]
    arrays = {"w": rng.normal(size=(32, 3, 3, 3)) / 5 * gain, "v": rng.normal(size=(16, 32, 3, 3)) / 17}
    arrays |= {"b": rng.normal(size=32) * bias} if bias else {}
    weights = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    x, y = (helper.make_tensor_value_info(*end) for end in (("x", 1, shape), ("y", 1, ["N", 16, SIDE, SIDE])))
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    model = from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    infer_shapes(model)
    return model


def images(count: int = 12, seed: int = 0) -> Array:
    """Return uint8 [N, H, W, 3] images of coloured structure."""
    rng = np.random.default_rng(seed)
    made = [128 + 50 * image(rng, 3, SIDE, SIDE) for _ in range(count)]
    return np.moveaxis(np.clip(made, 0, 255), 1, -1).astype(np.uint8)


def normalised(pixels: Array) -> Array:
    return ((pixels.astype(np.float32) / 255 - 0.5) / 0.25).astype(np.float32)


def planes(pixels: Array) -> Array:
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 1))


def doubts(model: ir.Model, array: Array) -> list[str]:
    return list(data_doubts(model, open_data({"x": array}, model_inputs(model))))


NHWC = ("N", SIDE, SIDE, 3)


@pytest.mark.parametrize(("shape", "turn"), [(("N", 3, SIDE, SIDE), planes), (NHWC, lambda a: a)])
def test_right_data_is_not_doubted(shape: tuple[Any, ...], turn: Any) -> None:
    pixels = turn(images())
    assert doubts(network(shape), normalised(pixels)) == []
    assert doubts(network(shape), pixels.astype(np.float32) / 255) == []
    assert doubts(network(shape, 1 / 64), pixels.astype(np.float32)) == []
    gray = np.repeat(pixels.mean(axis=shape.index(3), keepdims=True), 3, axis=shape.index(3))
    assert doubts(network(shape), normalised(gray)) == []
    noise = np.random.default_rng(0).normal(size=pixels.shape).astype(np.float32)
    assert doubts(network(shape), noise) == []


def test_enlarged_images_are_not_doubted() -> None:
    """Pixels three wide stand in threes, as the channels of a pixel do."""
    small = images()[:, ::3, ::3]
    wide = np.repeat(np.repeat(small, 3, axis=1), 3, axis=2)[:, :SIDE, :SIDE]
    assert doubts(network(), normalised(planes(wide))) == []
    assert doubts(network(NHWC), normalised(wide)) == []


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("wanted", ["NCHW", "NHWC"])
def test_images_reshaped_instead_of_transposed(wanted: str, colour: bool) -> None:
    pixels = images() if colour else np.repeat(images()[..., :1], 3, axis=-1)
    x = normalised(pixels)
    come, model = ("NHWC", network()) if wanted == "NCHW" else ("NCHW", network(NHWC))
    wrong = x.reshape(len(x), 3, SIDE, SIDE) if wanted == "NCHW" else planes(x).reshape(x.shape)
    (line,) = doubts(model, wrong)
    assert line == (
        f"input 'x': the images lie in memory like {come}, the model takes {wanted}; "
        "were they reshaped instead of transposed?"
    )


def test_bytes_where_the_model_wants_small_numbers() -> None:
    (line,) = doubts(network(), planes(images()).astype(np.float32))
    assert line.startswith("input 'x': the data lies in 0..255, which makes the first Conv ")
    assert line.endswith(" times its bias; is --preprocess (scale=1/255, mean, std) right?")


@pytest.mark.parametrize("scale", [normalised, lambda a: a.astype(np.float32) / 255])
def test_small_numbers_where_the_model_wants_bytes(scale: Any) -> None:
    (line,) = doubts(network(gain=1 / 64), scale(planes(images())))
    assert line.endswith(" of its bias; is --preprocess (scale) right?")


def test_without_a_bias_nothing_is_known() -> None:
    assert doubts(network(bias=0.0), planes(images()).astype(np.float32)) == []
    assert doubts(network(bias=0.0), normalised(planes(images())) / 100) == []


def test_a_scale_inside_of_the_model_counts() -> None:
    model = network()
    scale = ir.val("scale", const_value=ir.tensor(np.array(1 / 64, np.float32), name="scale"))
    model.graph.register_initializer(scale)
    conv = model.graph[0]
    mul = ir.node("Mul", [model.graph.inputs[0], scale])
    mul.outputs[0].name = "scaled"
    model.graph.insert_before(conv, mul)
    conv.replace_input_with(0, mul.outputs[0])
    assert doubts(model, planes(images()).astype(np.float32)) == []
    assert len(doubts(model, normalised(planes(images())))) == 1


def test_a_contraction_in_a_branch_and_empty_samples() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N,K] x, bool k, float[3,2] w, float[2] b) => (float[N,2] y) {
      y = If (k) <then_branch = t () => (float[N,2] u) { u = Gemm(x, w, b) },
                  else_branch = e () => (float[N,2] o) { o = Gemm(x, w, b) }>
    }"""
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    for name, shape in (("w", (3, 2)), ("b", (2,))):
        value = next(v for v in model.graph.inputs if v.name == name)
        value.const_value = ir.tensor(np.ones(shape, np.float32), name=name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    rng = np.random.default_rng(0)
    same = "the first 8 samples are all the same; give samples that differ"
    for x, lines in ((rng.uniform(0, 255, (8, 3)), []), (np.zeros((8, 0)), [same])):
        feeds = {"x": x.astype(np.float32), "k": np.array(True)}
        assert list(data_doubts(model, open_data(feeds, model_inputs(model)))) == lines


@pytest.mark.parametrize("count", [1, 3])
def test_few_samples(count: int) -> None:
    (line,) = doubts(network(), normalised(planes(images(count))))
    assert line == f"only {count} to fit on: what is learned from so few samples is a guess; give 32 or more"
    assert doubts(network(), normalised(planes(images(4)))) == []


def test_the_same_sample_again_and_again() -> None:
    one = normalised(planes(images(1)))
    assert doubts(network(), np.repeat(one, 6, axis=0)) == [
        "the first 6 samples are all the same; give samples that differ"
    ]


def test_constant_samples() -> None:
    lines = doubts(network(), np.full((8, 3, SIDE, SIDE), 0.5, np.float32))
    assert lines == ["the first 8 samples are constant ('x' is 0.5 all over); give real samples"]


def optimize(folder: Path, array: Array, passes: str, *more: str) -> tuple[int, str]:
    save(network(), folder / "m.onnx")
    np.save(folder / "x.npy", array)
    result = run("optimize", folder / "m.onnx", "--calib", folder / "x.npy", "--no-measure", "--passes", passes, *more)
    return result.exit_code, " ".join(result.output.split())


def test_the_command_line_says_it(tmp_path: Path) -> None:
    code, text = optimize(tmp_path, planes(images()).astype(np.float32), "fold", "-v")
    assert code == 0
    assert "which makes the first Conv" in text
    code, text = optimize(tmp_path, normalised(planes(images())), "fold", "-v")
    assert code == 0
    assert "--preprocess" not in text


@pytest.mark.parametrize(
    ("strange", "message"),
    [
        ("nan", "input 'x': sample 5 holds NaN or infinity"),
        ("constant", "int8: the calibration samples are constant ('x' is 0 all over); give real samples with --calib"),
        ("layout", "looks like NHWC; add layout=NCHW to --preprocess"),
    ],
)
def test_nothing_right_can_come_of_it(tmp_path: Path, strange: str, message: str) -> None:
    x = normalised(planes(images()))
    if strange == "nan":
        x[5, 0, 0, 0] = np.nan
    elif strange == "constant":
        x[:] = 0
    else:
        x = normalised(images())
    code, text = optimize(tmp_path, x, "int8")
    assert code == 2
    assert message in text


def test_a_layout_that_only_the_weights_know(tmp_path: Path) -> None:
    model = network()
    model.graph.inputs[0].shape = ir.Shape(["N", "C", "H", "W"])
    save(model, tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", normalised(images()))
    result = run("optimize", tmp_path / "m.onnx", "--calib", tmp_path / "x.npy", "--passes", "int8")
    text = " ".join(result.output.split())
    assert result.exit_code == 2
    assert "input 'x': axis 1 has 32 entries, needs 3; looks like NHWC; add layout=NCHW to --preprocess" in text


@pytest.mark.zoo
@pytest.mark.parametrize("model", ["cifar10_resnet20_bn", "mlperftiny_ic_resnet8_cifar10_float"])
def test_the_zoo(zoo: Path, model: str) -> None:
    net = load(zoo / "models" / f"{model}.onnx")
    infer_shapes(net)
    pixels = np.load(zoo / "data" / "cifar10_train.npz")["x"][:32]
    takes_bytes = model.startswith("mlperf")
    right = pixels.astype(np.float32) if takes_bytes else normalised(planes(pixels))
    wrong = normalised(pixels) if takes_bytes else planes(pixels).astype(np.float32)
    inputs = model_inputs(net)
    assert list(data_doubts(net, open_data({inputs[0].name: right}, inputs))) == []
    (line,) = data_doubts(net, open_data({inputs[0].name: wrong}, inputs))
    assert "--preprocess" in line
    shape = (-1, *right.shape[1:])
    other = planes(pixels) if takes_bytes else pixels
    reshaped = normalised(other).reshape(shape) * (64 if takes_bytes else 1)
    (line,) = data_doubts(net, open_data({inputs[0].name: reshaped}, inputs))
    assert "reshaped" in line
