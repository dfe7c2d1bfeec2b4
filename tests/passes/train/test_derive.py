"""Students cut out of teachers: widths, blocks, drawn weights, and that nobody holds their answers against them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from onnxedge_passes.fuse.linear.fold_batchnorm import FoldBatchnorm
from onnxedge_passes.train.derive import Derive
from onnxedge_passes.train.signal import signal_nodes
from teachers import build, grouped, mobile, resnet, samples, shared, transformer

import onnxedge
from onnxedge.api import Array, Context, Pass, Result, Session, UserError, refresh_scopes, save, set_constant
from onnxedge.cli import main
from onnxedge.data import from_arrays
from onnxedge.target import load_packaged_target
from onnxedge.verify import infer_shapes

TEACHERS: dict[str, tuple[Callable[[], ir.Model], tuple[int, ...]]] = {
    "resnet": (resnet, (3, 8, 8)),
    "transformer": (transformer, (6, 12)),
    "mobile": (mobile, (3, 8, 8)),
    "grouped": (grouped, (3, 8, 8)),
    "shared": (shared, (4, 8, 8)),
}


def derived(model: ir.Model, shape: tuple[int, ...], /, **options: object) -> tuple[Result, list[str]]:
    """Derive a student in place and return the result and the reasons given."""
    calibration = from_arrays(Session(model).inputs, {model.graph.inputs[0].name or "": samples(shape)})
    target = load_packaged_target("onnxedge.targets", "ort-cpu")  # type: ignore[arg-type]
    context = Context(target, calibration, original=model.clone())
    context.begin("derive")
    infer_shapes(model)
    refresh_scopes(model)
    step = Derive(**options)  # type: ignore[arg-type]
    step.requires(model, context)
    return step.run(model, context), [f"{note.where}: {note.reason}" for note in context.notes]


def shapes_of(model: ir.Model) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight that has kept its name, or that of the node that reads it."""
    return {
        node.outputs[0].name or "": tuple(node.inputs[1].const_value.shape.numpy())
        for node in model.graph
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.inputs[1] is not None and node.inputs[1].const_value
    }


def values_of(model: ir.Model, op_type: str, index: int) -> list[Array]:
    nodes = (node for node in model.graph if node.op_type == op_type and len(node.inputs) > index)
    return [node.inputs[index].const_value.numpy() for node in nodes]  # type: ignore[union-attr]


@pytest.mark.parametrize("init", ["teacher", "random"])
@pytest.mark.parametrize("name", TEACHERS)
def test_a_student_has_the_interface_of_its_teacher(name: str, init: str) -> None:
    make, shape = TEACHERS[name]
    teacher, student = make(), make()
    result, _ = derived(student, shape, width=0.5, depth=0.5, init=init, multiple=1)
    assert result.rewrites
    feed = {"x": samples(shape, 3, 5)}
    wanted, found = Session(teacher).run(feed), Session(student).run(feed)
    assert {n: a.shape for n, a in wanted.items()} == {n: a.shape for n, a in found.items()}
    assert all(np.isfinite(a).all() and a.std() > 1e-3 for a in found.values())
    weights = [sum(v.const_value.size for v in m.graph.initializers.values()) for m in (teacher, student)]  # type: ignore[union-attr]
    assert weights[1] < 0.7 * weights[0]


def test_every_group_gets_its_share() -> None:
    model = resnet()
    result, reasons = derived(model, (3, 8, 8), width=0.5, multiple=1)
    assert {(w["before"], w["after"]) for w in result.figures["widths"]} == {(8, 4), (16, 8)}
    widths = shapes_of(model)
    assert widths["c0"] == (4, 3, 3, 3)
    assert widths["c1a"] == (4, 4, 3, 3)
    assert widths["e"] == (8, 4, 1, 1)
    assert widths["y"] == (5, 8)
    assert [a.shape for a in values_of(model, "BatchNormalization", 4)] == [(4,), (4,), (4,), (8,)]
    assert any("Gemm" in reason and "reaches a graph output" in reason for reason in reasons)


def test_multiples_of_the_target() -> None:
    model = resnet()
    derived(model, (3, 8, 8), width=0.6)
    assert shapes_of(model)["c0"][0] == 4  # 8 channels in multiples of 4: 4.8 is nearer to 4


def test_heads_go_whole_and_groups_too() -> None:
    model = transformer()
    derived(model, (6, 12), width=0.5, multiple=1)
    found = shapes_of(model)
    assert found["q0"][1] == found["k0"][1] == found["v0"][1] == found["o3"][0] == 8
    assert found["u0"][1] == found["m"][0] == 16
    model = grouped()
    derived(model, (3, 8, 8), width=0.5, multiple=1)
    assert shapes_of(model)["c"] == (8, 4, 3, 3)
    assert next(node for node in model.graph if node.outputs[0].name == "c").attributes.get_int("group", 0) == 2
    model = mobile()
    derived(model, (3, 8, 8), width=0.5, multiple=1)
    assert shapes_of(model)["e"] == (12, 1, 3, 3)


def test_shared_weights_stay_shared() -> None:
    model = shared()
    derived(model, (4, 8, 8), width=0.5, init="random", multiple=1)
    first, second = (node for node in model.graph if node.outputs[0].name in ("a", "b"))
    assert first.inputs[1] is second.inputs[1]
    assert shapes_of(model)["a"] == (4, 4, 3, 3)


@pytest.mark.parametrize("importance", ["obs", "activation", "l2", "bn-gamma"])
def test_the_best_channels_stay(importance: str) -> None:
    """Channels that carry nothing go, and then the student answers as its teacher."""
    model = resnet()
    dead = np.array([0, 3, 4, 6])
    for node in model.graph:  # the first layers of the blocks of width 8
        if node.outputs[0].name in ("c1a", "c2a", "c3a"):
            weight = node.inputs[1].const_value.numpy().copy()  # type: ignore[union-attr]
            weight[dead] = 0
            set_constant(node, 1, weight)
        if node.op_type == "BatchNormalization" and node.outputs[0].name != "n4a":
            for index in (1, 2, 3):
                array = node.inputs[index].const_value.numpy().copy()  # type: ignore[union-attr]
                array[dead] = 0
                set_constant(node, index, array)
    feed = {"x": samples((3, 8, 8), 4, 3)}
    wanted = Session(model).run(feed)["y"]
    stem = [node for node in model.graph if node.outputs[0].name in ("c0", "c1b", "c2b", "c3b", "d", "e", "c4a", "c4b")]
    for node in stem:  # so that the others cannot be narrowed
        value = node.outputs[0]
        model.graph.outputs.append(value)
    result, _ = derived(model, (3, 8, 8), width=0.5, multiple=1, importance=importance)
    assert [w["after"] for w in result.figures["widths"]] == [4, 4, 4]
    np.testing.assert_allclose(Session(model).run(feed)["y"], wanted, rtol=1e-4, atol=1e-5)


def test_the_least_important_block_goes_first() -> None:
    model = resnet()
    small = next(node for node in model.graph if node.outputs[0].name == "c2b")
    for index in (1, 2):
        set_constant(small, index, 1e-4 * small.inputs[index].const_value.numpy())  # type: ignore[union-attr]
    feed = {"x": samples((3, 8, 8), 4, 3)}
    wanted = Session(model).run(feed)["y"]
    result, _ = derived(model, (3, 8, 8), width=1.0, depth=0.75)
    assert result.figures["dropped"] == ["s2"]
    np.testing.assert_allclose(Session(model).run(feed)["y"], wanted, rtol=1e-2, atol=1e-2 * np.abs(wanted).max())
    assert sum(node.op_type == "Add" for node in model.graph) == 4


def test_the_last_block_of_each_stage_goes_first() -> None:
    model = resnet()
    result, reasons = derived(model, (3, 8, 8), width=1.0, depth=0.5, init="random")
    assert result.figures["blocks"] == 4
    assert result.figures["dropped"] == ["s2", "s3"]
    assert any("'-> f'" in reason and "neither of the two values" in reason for reason in reasons)
    for block in ("c3a", "c3b"):
        assert block not in shapes_of(model)


def test_depth_of_a_transformer() -> None:
    model = transformer()
    result, _ = derived(model, (6, 12), width=1.0, depth=0.0)
    assert result.figures["dropped"] == ["x2", "x3"]
    assert [node.op_type for node in model.graph] == ["MatMul", "Add", "MatMul"]


NO_BLOCKS = {
    "read elsewhere": "h = Conv<pads=[1,1,1,1]>(a, w1) s = Add(h, a) t = Relu(h) y = Add(s, t)",
    "it changes the shape": "g1 = GlobalAveragePool(a) h = Conv<pads=[1,1,1,1]>(a, w1) s = Add(g1, h) y = Relu(s)",
    "it holds other blocks": """h = Conv<pads=[1,1,1,1]>(a, w1) s = Add(h, a) i = Relu(s)
        j = Conv<pads=[1,1,1,1]>(i, w2) t = Add(j, a) y = Relu(t)""",
}


@pytest.mark.parametrize("reason", NO_BLOCKS)
def test_sums_that_end_no_block(reason: str) -> None:
    text = f"g (float[N,4,6,6] x) => (float[N,4,6,6] y) {{ a = Conv<pads=[1,1,1,1]>(x, w0) {NO_BLOCKS[reason]} }}"
    model = build(text, {"w0": (4, 4, 3, 3), "w1": (4, 4, 3, 3), "w2": (4, 4, 3, 3)})
    result, reasons = derived(model, (4, 6, 6), width=1.0, depth=0.0)
    dropped = 1 if "other" in reason else 0
    assert result.rewrites == dropped
    told = reason if "shape" not in reason else "neither"  # the pool and the layer are two branches
    assert any(told in given for given in reasons)


def test_a_block_that_widens_its_input_stays() -> None:
    text = """g (float[N,4,6,6] x) => (float[N,4,6,6] y) {
        g1 = GlobalAveragePool(x) a = Conv(g1, w0) e = Expand(a, size) s = Add(e, g1) y = Relu(s) }"""
    model = build(text, {"w0": (4, 4, 1, 1)}, {"size": [1, 1, 6, 6]})
    result, reasons = derived(model, (4, 6, 6), width=1.0, depth=0.0)
    assert result.rewrites == 0
    assert any("it changes the shape" in given for given in reasons)


def test_a_sum_without_weights_is_no_block() -> None:
    text = "g (float[N,4,6,6] x) => (float[N,4,6,6] y) { a = Conv(x, w0) b = Sigmoid(a) c = Add(a, b) y = Relu(c) }"
    model = build(text, {"w0": (4, 4, 1, 1)})
    result, _ = derived(model, (4, 6, 6), width=1.0, depth=0.0)
    assert result.rewrites == 0
    assert len(model.graph) == 4


def test_weights_drawn_anew() -> None:
    model = resnet()
    before = values_of(model, "Conv", 1)
    derived(model, (3, 8, 8), width=1.0, init="random")
    after = values_of(model, "Conv", 1)
    for old, new in zip(before, after, strict=True):
        assert old.shape == new.shape
        assert not np.isclose(old, new).any()
        assert abs(new.mean()) < 4 * new.std() / np.sqrt(new.size)
    he, size = np.sqrt(2 / (8 * 9)), after[1].size
    assert abs(after[1].std() / he - 1) < 4 / np.sqrt(2 * size)
    (last,) = values_of(model, "Gemm", 1)
    assert abs(last.std() / np.sqrt(2 / (16 + 5)) - 1) < 4 / np.sqrt(2 * last.size)
    for index, number in ((1, 1), (2, 0), (3, 0), (4, 1)):
        assert all((array == number).all() for array in values_of(model, "BatchNormalization", index))
    assert not values_of(model, "Gemm", 2)[0].any()
    assert not values_of(model, "Conv", 2)[0].any()


def test_positions_and_norms_drawn_anew() -> None:
    model = transformer()
    derived(model, (6, 12), width=1.0, init="random")
    values = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}  # type: ignore[union-attr]
    assert 0.01 < values["position"].std() < 0.03
    assert (values["gamma0"] == 1).all()
    assert not values["beta0"].any()
    assert not values["bu"].any()


SPECTRUM = """g (float[N,32] x) => (float[N,5] y) {
    a = MatMul(x, cosines) b = Mul(a, a) c = MatMul(b, bands) d = Max(c, floor) e = Log(d)
    f = MatMul(e, w0) h = Relu(f) y = MatMul(h, w1) }"""


def test_transforms_of_a_signal_stay() -> None:
    weights = {"cosines": (32, 24), "bands": (24, 16), "floor": (1,), "w0": (16, 24), "w1": (24, 5)}
    model = build(SPECTRUM, weights)
    value = model.graph.initializers["floor"]
    value.const_value = ir.tensor(np.full(1, 1e-3, np.float32), name="floor")
    before = dict(zip("acfy", values_of(model, "MatMul", 1), strict=True))
    _, reasons = derived(model, (32,), width=0.5, init="random", multiple=1)
    after = dict(zip("acfy", values_of(model, "MatMul", 1), strict=True))
    np.testing.assert_array_equal(after["a"], before["a"])
    np.testing.assert_array_equal(after["c"], before["c"])
    assert after["f"].shape == (16, 12)
    assert any("transforms the signal" in reason for reason in reasons)


def test_a_logarithm_of_exponentials_is_none_of_a_signal() -> None:
    text = """g (float[N,32] x) => (float[N,8] y) {
        a = MatMul(x, w0) b = Exp(a) c = Add(b, one) d = Log(c) e = MatMul(d, w1) f = Softmax(e) y = Log(f) }"""
    model = build(text, {"w0": (32, 24), "w1": (24, 8), "one": (1,)})
    assert signal_nodes(model.graph) == set()
    derived(model, (32,), width=0.5, multiple=1)
    assert shapes_of(model)["a"] == (32, 12)


def test_seeds() -> None:
    def weights(seed: int) -> Array:
        model = resnet()
        derived(model, (3, 8, 8), init="random", seed=seed)
        return values_of(model, "Conv", 1)[0]

    np.testing.assert_array_equal(weights(1), weights(1))
    assert not np.isclose(weights(1), weights(2)).any()


def test_what_a_caller_may_override_stays() -> None:
    text = "g (float[N,4,6,6] x) => (float[N,4,6,6] y) { a = Conv(x, w0) b = Relu(a) y = Conv(b, w1) }"
    model = build(text, {"w0": (8, 4, 1, 1), "w1": (4, 8, 1, 1)}, overridable="w0")
    before = model.graph.initializers["w0"].const_value.numpy().copy()  # type: ignore[union-attr]
    _, reasons = derived(model, (4, 6, 6), width=0.5, init="random", multiple=1)
    np.testing.assert_array_equal(model.graph.initializers["w0"].const_value.numpy(), before)  # type: ignore[union-attr]
    assert any("keep the teacher's values: a caller may override" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"width": 0.0}, "width=0 is not a share"),
        ({"width": 1.5}, "width=1.5 is not a share"),
        ({"depth": -0.1}, "depth=-0.1 is not a share"),
        ({"depth": 2.0}, "depth=2 is not a share"),
        ({"multiple": 0}, "multiple=0"),
        ({"samples": 1}, "samples=1 is too few"),
        ({"seed": -1}, "seed=-1"),
        ({"importance": "nothing"}, "nothing"),
    ],
)
def test_options(options: dict[str, object], match: str) -> None:
    with pytest.raises(UserError, match=match):
        derived(resnet(), (3, 8, 8), **options)


class Scrambled(Pass):
    """Draw the last bias anew: worse answers, by a pass that promises none of it."""

    name: ClassVar[str] = "scrambled"
    accuracy: ClassVar[str] = "lossy"  # type: ignore[assignment]

    def run(self, model: ir.Model, context: Context) -> Result:
        """Draw it."""
        node = next(node for node in model.graph if node.op_type == "Gemm")
        set_constant(node, 2, np.arange(5, dtype=np.float32) * 9)
        return Result(rewrites=1)


@pytest.mark.usefixtures("untimed")
def test_a_student_is_not_taken_back() -> None:
    """What comes behind it is held against it, and not against the original."""
    calib = samples((3, 8, 8), 64)
    both = onnxedge.optimize(resnet(), [Derive(init="random"), Scrambled()], calib={"x": calib})
    assert [record.status for record in both.report.passes] == ["applied", "rolled back"]
    assert "strays from what was trained" in both.report.passes[1].reason
    assert any("a student" in note.reason for note in both.report.notes)
    both = onnxedge.optimize(resnet(), [Derive(init="random"), FoldBatchnorm()], calib={"x": calib})
    assert [record.status for record in both.report.passes] == ["applied", "applied"]
    alone = onnxedge.optimize(resnet(), [Scrambled()], calib={"x": calib})
    assert [record.status for record in alone.report.passes] == ["rolled back"]
    assert "strays from the original" in alone.report.passes[0].reason


@pytest.mark.usefixtures("untimed")
def test_command_line(tmp_path: Path) -> None:
    save(resnet(), tmp_path / "teacher.onnx")
    args = ["optimize", str(tmp_path / "teacher.onnx"), "--passes", "derive(width=0.5)", "-o", str(tmp_path / "s.onnx")]
    done = CliRunner().invoke(main, args)
    assert done.exit_code == 0, done.output
    assert shapes_of(onnxedge.api.load(tmp_path / "s.onnx"))["c0"][0] == 4
    done = CliRunner().invoke(main, [*args[:3], "derive(width=7)"])
    assert done.exit_code == 2
    assert "width=7 is not a share" in done.output
