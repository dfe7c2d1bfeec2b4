"""What prepare-training makes of a graph: equal outputs, gradients everywhere, names kept, and what it names."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from onnxedge_passes.train import PrepareTraining
from onnxedge_passes.train.gradients import walls
from onnxedge_passes.train.prepare_training import Trainable
from spelled import GRAPHS

import onnxedge
from onnxedge.api import Context, Pass, Result, Session, UserError, refresh_scopes, to_proto
from onnxedge.errors import OnnxEdgeError
from onnxedge.target import load_packaged_target
from onnxedge.verify import infer_shapes

Applied = Callable[..., tuple[Result, list[str]]]
SIZES = {"N": (1, 3), "H": (4, 7), "W": (5, 6)}


def parsed(text: str, opset: int, ir_version: int = 8) -> ir.Model:
    """Return a model from text, with normal weights where it declares them without values."""
    import onnx

    head = f'<ir_version: {ir_version}, opset_import: ["": {opset}, "acme": 1]>'
    proto = onnx.parser.parse_model(f"{head} {text}")
    rng = np.random.default_rng(0)
    for info in proto.graph.value_info:
        array = rng.standard_normal([dim.dim_value for dim in info.type.tensor_type.shape.dim]).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
    del proto.graph.value_info[:]
    return ir.serde.deserialize_model(proto)


def assert_same(before: ir.Model, after: ir.Model) -> None:
    """Assert equal outputs at two sizes of each symbol."""
    first, second = Session(before, level="disable"), Session(after, level="disable")
    for index in (0, 1):
        rng = np.random.default_rng(index)
        feed = {}
        for spec in first.inputs:
            shape = [d if isinstance(d, int) else SIZES[str(d)][index] for d in spec.shape]
            feed[spec.name] = (rng.standard_normal(shape) * 2).astype(np.float32)
        mine, other = first.run(feed), second.run(feed)
        assert list(mine) == list(other)
        for name, array in mine.items():
            np.testing.assert_allclose(other[name], array, rtol=1e-5, atol=1e-5 * np.abs(array).max())


def prepared(model: ir.Model, pass_: PrepareTraining | None = None) -> tuple[Trainable, list[str]]:
    """Prepare a model in place."""
    target = load_packaged_target("onnxedge.targets", "ort-cpu")  # type: ignore[arg-type]
    context = Context(target, None, original=model.clone())
    infer_shapes(model)
    refresh_scopes(model)
    trainable = (pass_ or PrepareTraining()).prepare(model, context)[1]
    return trainable, [f"{note.where}: {note.reason}" for note in context.notes]


@pytest.mark.parametrize("name", GRAPHS)
def test_operators_without_a_gradient(name: str, applied: Applied) -> None:
    opset, text = GRAPHS[name]
    before, model = parsed(text, opset), parsed(text, opset)
    pass_: Pass = PrepareTraining()
    result, reasons = applied(pass_, model)
    assert result.rewrites
    assert [reason for reason in reasons if not reason.startswith("nothing to train")] == []
    assert walls(model.graph, model.graph.outputs)[1] == {}
    assert_same(before, model)
    assert applied(pass_, model)[0].rewrites == 0


@pytest.mark.parametrize("mode", ["live", "frozen"])
def test_batch_normalization(mode: str, applied: Applied) -> None:
    text = """g (float[N, 3, H, W] x) => (float[N, 3, H, W] y)
        <float[3] s, float[3] b, float[3] m, float[3] v = {0.5, 1.5, 2.5}>
        { y = BatchNormalization<epsilon=0.01>(x, s, b, m, v) }"""
    before, model = parsed(text, 17), parsed(text, 17)
    trainable, _ = prepared(model, PrepareTraining(batchnorm=mode))  # type: ignore[arg-type]
    assert_same(before, model)
    assert set(trainable.weights) == {"s", "b"}
    assert trainable.statistics == (("m", "v") if mode == "live" else ())
    assert ("BatchNormalization" in {node.op_type for node in model.graph}) == (mode == "live")
    assert walls(model.graph, model.graph.outputs)[1] == {}


def test_versions_come_down_and_up() -> None:
    old = parsed("g (float[N, 4] x) => (float[N, 4] y) { y = Clip<min=-1.0,max=0.5>(x) }", 9)
    new = parsed(
        "g (float[N, 4] x) => (float[N, 4] y) <float[4] s> { r = RMSNormalization(x, s) y = Swish(r) }", 24, 11
    )
    for model, opset in ((old, 17), (new, 21)):
        before = model.clone()
        prepared(model)
        assert model.graph.opset_imports[""] == opset
        assert model.ir_version <= 10
        assert_same(before, model)
        assert walls(model.graph, model.graph.outputs)[1] == {}


def test_what_cannot_be_converted_is_named() -> None:
    text = "g (float[2, 2, 3, 4] q) => (float[2, 2, 3, 4] y) { y = Attention(q, q, q) }"
    with pytest.raises(UserError, match=r"Attention .* cannot be written in opset 21"):
        prepared(parsed(text, 24, 11))


def test_types_of_later_versions_are_named() -> None:
    model = parsed(
        "g (float[2] x) => (float[2] y, float[2] z) <float[2] w> { y = Add(x, w) z = Cast<to=1>(w) }", 25, 12
    )
    tiny = ir.Tensor(np.zeros(2, ir.DataType.FLOAT4E2M1.numpy()), dtype=ir.DataType.FLOAT4E2M1)
    value = model.graph.initializers["w"]
    packed = ir.Value(name="packed", const_value=tiny, type=ir.TensorType(tiny.dtype), shape=ir.Shape([2]))
    model.graph.register_initializer(packed)
    next(use.node for use in value.uses() if use.node.op_type == "Cast").replace_input_with(0, packed)
    with pytest.raises(UserError, match="'packed' is FLOAT4E2M1, which IR version 10 has not"):
        prepared(model)


def test_names_stay_for_features_and_weights() -> None:
    text = """g (float[N, 3, 5, 4] x) => (float[N, 2, 11, 9] y) <float[3, 2, 3, 3] w, float[2] b> {
        inner = HardSwish(x)
        y = ConvTranspose<strides=[2, 2]>(inner, w, b)
    }"""
    before, model = parsed(text, 17), parsed(text, 17)
    trainable, _ = prepared(model)
    assert trainable.weights == {"w": "w", "b": "b"}
    assert "inner" in {value.name for node in model.graph for value in node.outputs}
    for name in ("w", "b"):
        mine, other = (m.graph.initializers[name].const_value for m in (before, model))
        assert mine is not None
        assert other is not None
        assert mine.tobytes() == other.tobytes()


def test_weights_in_nodes_are_lifted() -> None:
    text = """g (float[N, 2] x) => (float[N, 2] y) {
        w = Constant<value = float[2, 2] {1, 2, 3, 4}>()
        y = MatMul(x, w)
    }"""
    before, model = parsed(text, 17), parsed(text, 17)
    trainable, _ = prepared(model)
    assert trainable.weights == {"w": "w"}
    assert "w" in model.graph.initializers
    assert [node.op_type for node in model.graph] == ["MatMul"]
    assert_same(before, model)


def test_a_constant_that_is_an_output_stays() -> None:
    model = parsed(
        "g (float[N, 2] x) => (float[1] c, float[N, 2] y) { c = Constant<value_floats=[1.0]>() y = Add(x, c) }", 17
    )
    before = model.clone()
    prepared(model)
    assert [node.op_type for node in model.graph] == ["Constant", "Add"]
    assert_same(before, model)


def test_functions_are_inlined() -> None:
    text = """g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w> { y = acme.layer(x, w) }
        <domain: "acme", opset_import: ["": 17]> layer (a, b) => (c) { d = MatMul(a, b) c = HardSwish(d) }"""
    before, model = parsed(text, 17), parsed(text, 17)
    trainable, _ = prepared(model)
    assert trainable.weights == {"w": "w"}
    assert not model.functions
    assert_same(before, model)


def test_what_is_no_weight() -> None:
    text = """g (float[N, 4] x) => (float[N, 4] y)
        <float[4] mean, float[4] std = {1, 2, 3, 4}, float[4, 4] w, float[4] bias, float two = {2},
         float[4] mask = {0, 0, -1e9, 0}, float[4] scale> {
        centred = Sub(x, mean)
        ready = Div(centred, std)
        layer = MatMul(ready, w)
        biased = Add(layer, bias)
        doubled = Mul(biased, two)
        masked = Add(doubled, mask)
        y = Mul(masked, scale)
    }"""
    trainable, _ = prepared(parsed(text, 17))
    assert list(trainable.weights) == ["w", "bias", "scale"]
    assert trainable.spared == ("bias", "scale")


def test_weights_by_way_of_views() -> None:
    text = """g (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w> {
        turned = Transpose<perm=[1, 0]>(w)
        y = MatMul(x, turned)
    }"""
    assert prepared(parsed(text, 17))[0].weights == {"w": "w"}


LSTM = """g (float[T, N, 3] x) => (float[T, N, 4] y)
    <float[3, 3] w, float[1, 16, 3] wx, float[1, 16, 4] wh, float[4, 4] head, int64[1] one = {1}> {
        first = MatMul(x, w)
        all = LSTM<hidden_size=4>(first, wx, wh)
        lone = Squeeze(all, one)
        y = MatMul(lone, head)
    }"""


def test_a_wall_is_named_and_what_lies_behind_it_is_trained() -> None:
    trainable, notes = prepared(parsed(LSTM, 17))
    assert trainable.weights == {"head": "head"}
    assert set(trainable.untrained) == {"w", "wx", "wh"}
    assert notes == ["LSTM '-> all': LSTM has no gradient: weights before it are not trained"]


def test_only_what_losses_read_counts() -> None:
    trainable, notes = prepared(parsed(LSTM, 17), PrepareTraining(outputs=("first",)))
    assert trainable.weights == {"w": "w"}
    assert trainable.untrained["head"] == "no output depends on it"
    assert notes == []


def test_outputs_that_are_not_there() -> None:
    model = parsed(LSTM, 17)
    with pytest.raises(UserError, match="has no value 'firts'; did you mean 'first'"):
        onnxedge.optimize(model, "prepare-training(outputs=[firts])")


def test_control_flow_is_a_wall_for_what_it_captures() -> None:
    text = """g (float[N, 4] x, bool c) => (float[N, 4] y) <float[4, 4] w> {
        m = MatMul(x, w)
        y = If (c) <then_branch = t () => (float[N, 4] a) { a = MatMul(m, w) }, else_branch = e () => (float[N, 4] b)
            { b = Identity(m) }>
    }"""
    trainable, notes = prepared(parsed(text, 17))
    assert not trainable.weights
    assert notes[0].startswith("If '-> y': If has no gradient: it runs graphs of its own")


@pytest.mark.parametrize(
    ("node", "shape", "reason"),
    [
        ('Resize<mode="linear">(m, , s)', "N, 3, H, W", "its sizes are not known"),
        ("DepthToSpace<blocksize=1>(m)", "N, 3, H, W", "the size of its input is not known"),
        ("ConvTranspose<strides=[2, 2]>(m, k)", "N, 3, H, W", "the size of its input is not known"),
        ("ConvTranspose<output_shape=[9, 9],strides=[2, 2]>(m, k)", "N, 3, 5, 4", "with output_shape"),
        ('MaxPool<kernel_shape=[2, 2],auto_pad="SAME_UPPER",strides=[2, 2]>(m)', "N, 3, H, W", "input is not known"),
        ("Floor(m)", "N, 3, 5, 4", "Floor has no gradient"),
        ('Pad<mode="reflect">(m, p)', "N, 3, 5, 4", "Pad has no gradient other than with a constant"),
        ("Slice(m, i, j, i, i)", "N, 3, H, W", "the size of its input is not known"),
        ("acme.Thing(m)", "N, 3, 5, 4", "acme::Thing has no gradient"),
        ("BatchNormalization<training_mode=1>(m, b, b, b, b)", "N, 3, 5, 4", "normalises by the batch"),
    ],
)
def test_near_misses_are_named(node: str, shape: str, reason: str) -> None:
    text = f"""g (float[{shape}] x) => (float[?, ?, ?, ?] y)
        <float[3, 3, 1, 1] w, float[3, 2, 3, 3] k, float[4] s = {{1, 1, 2, 2}}, int64[8] p = {{0, 0, 1, 1, 0, 0, 1, 1}},
         int64[1] i = {{-1}}, int64[1] j = {{-99}}, float[3] b = {{1, 1, 1}}> {{ m = Conv(x, w) y = {node} }}"""
    model = parsed(text, 17)
    operators = [n.op_type for n in model.graph]
    trainable, notes = prepared(model)
    assert [n.op_type for n in model.graph] == operators
    assert "w" in trainable.untrained
    assert any(reason in note for note in notes), notes


def test_other_types_stay() -> None:
    model = parsed("g (float16[N, 4] x) => (float16[N, 4] y) { y = HardSwish(x) }", 17)
    before = to_proto(model)
    prepared(model)
    assert to_proto(model).graph.node == before.graph.node


@pytest.mark.usefixtures("untimed")
def test_it_is_a_pass_like_others(fixtures) -> None:  # type: ignore[no-untyped-def]
    done = onnxedge.optimize(fixtures / "sequence_transformer.onnx", "prepare-training")
    assert done.report.passes[0].status == "applied"
    with pytest.raises(OnnxEdgeError):
        onnxedge.optimize(fixtures / "digits_resnet.onnx", "prepare-training(batchnorm=none)")
