"""The main job on small models: promises are held, the better model is kept, the same input gives the same bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import onnxedge
from onnxedge.api import Accuracy, Context, Pass, PassError, Result, UserError, insert_before, load, set_constant
from onnxedge.runtime import Session

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
linear (float[N, 8] x) => (float[N, 4] y)
<float[8, 4] w, float[4] b = {0.1, 0.2, 0.3, 0.4}>
{ z = MatMul(x, w)  y = Add(z, b) }
"""


@pytest.fixture
def linear() -> onnx.ModelProto:
    model = onnx.parser.parse_model(TEXT)
    weights = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    del model.graph.initializer[:]
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.full(4, 0.5, np.float32), "b"))
    return model


@dataclass(frozen=True, kw_only=True)
class Scale(Pass):
    """Multiply the weights, which changes the answers."""

    name: ClassVar[str] = "scale"
    factor: float = 2.0

    def run(self, model: ir.Model, context: Context) -> Result:
        node = next(n for n in model.graph if n.op_type == "MatMul")
        tensor = node.inputs[1].const_value  # type: ignore[union-attr]
        assert tensor is not None
        set_constant(node, 1, (tensor.numpy() * self.factor).astype(np.float32))
        return Result(rewrites=1)


@dataclass(frozen=True, kw_only=True)
class ScaleLossy(Scale):
    """Do the same and admit it."""

    name: ClassVar[str] = "scale-lossy"
    accuracy: ClassVar[Accuracy] = "lossy"


@dataclass(frozen=True, kw_only=True)
class Crash(Pass):
    """Fail half-way, after an edit."""

    name: ClassVar[str] = "crash"

    def run(self, model: ir.Model, context: Context) -> Result:
        Scale().run(model, context)
        raise IndexError("list index out of range")


@dataclass(frozen=True, kw_only=True)
class Deny(Pass):
    """Edit the model and say that nothing was done."""

    name: ClassVar[str] = "deny"

    def run(self, model: ir.Model, context: Context) -> Result:
        Scale().run(model, context)
        return Result()


@dataclass(frozen=True, kw_only=True)
class Rename(Pass):
    """Rename an output, which breaks the interface."""

    name: ClassVar[str] = "rename"

    def run(self, model: ir.Model, context: Context) -> Result:
        model.graph.outputs[0].name = "other"
        return Result(rewrites=1)


@dataclass(frozen=True, kw_only=True)
class Drag(Pass):
    """Make the model slow and keep its answers."""

    name: ClassVar[str] = "drag"

    def run(self, model: ir.Model, context: Context) -> Result:
        node = next(n for n in model.graph if n.op_type == "MatMul")
        value = node.inputs[0]
        for _ in range(400):
            value = insert_before(node, "Sqrt", [insert_before(node, "Mul", [value, value]).outputs[0]]).outputs[0]
        value = insert_before(node, "Mul", [value, insert_before(node, "Sign", [node.inputs[0]]).outputs[0]]).outputs[0]
        node.replace_input_with(0, value)
        return Result(rewrites=1)


@dataclass(frozen=True, kw_only=True)
class DragRounding(Drag):
    """Do the same under the weaker promise."""

    name: ClassVar[str] = "drag-rounding"
    accuracy: ClassVar[Accuracy] = "rounding"


def untimed(model: ir.Model | onnx.ModelProto, passes: str | Sequence[Pass], **options: Any) -> onnxedge.Optimized:
    """Optimize for a target that is not timed here: what is asserted must not hang on a busy machine."""
    return onnxedge.optimize(model, passes, target="generic", **options)


def outputs(model: ir.Model | onnx.ModelProto) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
    return Session(model).run({"x": x})["y"]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (Scale(), "output 'y' is not bit-equal"),
        (Crash(), "raised IndexError: list index out of range"),
        (Rename(), "outputs changed from ['y'] to ['other']"),
        (Scale(factor=float("nan")), "not finite"),
    ],
)
def test_a_broken_promise_is_rolled_back(
    linear: onnx.ModelProto, broken: Pass, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = untimed(linear, [broken])
    (record,) = result.report.passes
    assert record.status == "rolled back"
    assert reason in record.reason
    assert result.report.kept == 0
    assert np.array_equal(outputs(result.model), outputs(linear))
    folder = tmp_path / "onnxedge-reproducer" / broken.name
    assert sorted(p.name for p in folder.iterdir()) == ["before.onnx", "reproduce.txt"]
    with pytest.raises(PassError, match="reproducer in"):
        untimed(linear, [broken], strict=True)


def test_passes_behind_a_broken_one_still_run(
    linear: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    report = untimed(linear, [Scale(), ScaleLossy(factor=1.01), Crash()]).report
    assert [record.status for record in report.passes] == ["rolled back", "applied", "rolled back"]
    assert report.passes[1].fidelity is not None


def test_the_next_pass_sees_nothing_of_an_edit_that_was_denied(linear: onnx.ModelProto) -> None:
    result = untimed(linear, [Deny(), Rename(), Deny()])
    assert [record.status for record in result.report.passes] == ["no change", "rolled back", "no change"]
    assert np.array_equal(outputs(result.model), outputs(linear))


def test_a_lossy_pass_that_strays_is_taken_back(linear: onnx.ModelProto) -> None:
    result = untimed(linear, [ScaleLossy(factor=-1.0), ScaleLossy(factor=1.001)])
    assert [record.status for record in result.report.passes] == ["rolled back", "applied"]
    assert "strays from the original" in result.report.passes[0].reason
    assert "taken back" in result.report.verdict


def test_a_pass_that_makes_it_slower_is_taken_back(linear: onnx.ModelProto) -> None:
    result = onnxedge.optimize(linear, [DragRounding()])
    assert result.report.passes[0].status == "rolled back"
    assert "is slower" in result.report.passes[0].reason
    assert len(result.model.graph) == 2


@dataclass(frozen=True, kw_only=True)
class DragOnRequest(DragRounding):
    """Be slow, and be asked for."""

    name: ClassVar[str] = "drag-on-request"
    sets_form: ClassVar[bool] = True


def test_a_form_that_was_asked_for_stays_though_it_is_slower(linear: onnx.ModelProto) -> None:
    result = onnxedge.optimize(linear, [DragOnRequest(), ScaleLossy(factor=1.001)])
    assert [record.status for record in result.report.passes] == ["applied", "applied"]
    assert len(result.model.graph) > 2


def test_accuracy_is_measured_on_labels(linear: onnx.ModelProto) -> None:
    x = np.random.default_rng(2).standard_normal((100, 8)).astype(np.float32)
    y = Session(linear).run({"x": x})["y"].argmax(1)
    result = untimed(linear, [ScaleLossy(factor=1.001)], eval={"x": x, "y": y})
    fidelity = result.report.fidelity
    assert fidelity is not None
    assert (fidelity.labelled, fidelity.samples, fidelity.before) == (True, 100, 1.0)
    worse = untimed(linear, [ScaleLossy(factor=-1.0)], eval={"x": x, "y": y})
    assert "--max-drop" in worse.report.passes[0].reason
    kept = untimed(linear, [ScaleLossy(factor=-1.0)], eval={"x": x, "y": y}, max_drop=1.0)
    assert kept.report.passes[0].status == "applied"


def test_without_labels_the_report_says_so(linear: onnx.ModelProto) -> None:
    report = untimed(linear, "fuse").report
    assert any("accuracy: no labelled data" in line for line in report.unmeasured)
    assert json.loads(report.to_json())["pipeline"] == "fuse"


def test_the_report_is_written_as_json_or_as_a_page(linear: onnx.ModelProto, tmp_path: Path) -> None:
    untimed(linear, "fuse", report=tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text("utf-8"))["pipeline"] == "fuse"
    untimed(linear, "fuse", report=tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text("utf-8").startswith("<!doctype html>")


def test_what_was_given_is_never_changed(linear: onnx.ModelProto) -> None:
    text = linear.SerializeToString()
    untimed(linear, [ScaleLossy(factor=1.001)])
    assert linear.SerializeToString() == text
    model = ir.from_proto(linear)
    before = ir.to_proto(model).SerializeToString()
    untimed(model, [ScaleLossy(factor=1.001)])
    assert ir.to_proto(model).SerializeToString() == before


def test_a_protobuf_is_never_changed_by_folding(fixtures: Path) -> None:
    model = onnx.load(fixtures / "digits_resnet.onnx")
    before = model.SerializeToString(deterministic=True)
    onnxedge.optimize(model, "prune,fuse,int8", verify="structure")
    assert model.SerializeToString(deterministic=True) == before


def test_metadata_and_names_are_kept(fixtures: Path, tmp_path: Path) -> None:
    onnxedge.optimize(fixtures / "digits_resnet.onnx", "fold,fuse", output=tmp_path / "out.onnx")
    before = {p.key: p.value for p in onnx.load(fixtures / "digits_resnet.onnx").metadata_props}
    after = {p.key: p.value for p in onnx.load(tmp_path / "out.onnx").metadata_props}
    assert before.items() <= after.items()
    assert after["onnxedge.pipeline"] == "fold,fuse"
    assert str(tmp_path) not in json.dumps(after)


def test_same_input_and_seed_give_the_same_bytes(fixtures: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        onnxedge.optimize(
            fixtures / "digits_resnet.onnx",
            "prune,fuse,int8",
            calib=fixtures / "digits_calib.npz",
            output=tmp_path / f"{name}.onnx",
            seed=3,
        )
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_limits_are_checked(linear: onnx.ModelProto) -> None:
    with pytest.raises(UserError, match="threads: 0"):
        untimed(linear, "fuse", threads=0)
    with pytest.raises(UserError, match="max_drop: 2"):
        untimed(linear, "fuse", max_drop=2)
    with pytest.raises(UserError, match="no input is called 'z'"):
        untimed(linear, "fuse", input_shapes={"z": [1]})
    with pytest.raises(UserError, match="needs float32\\[N,8\\], \\[1, 9\\] came"):
        untimed(linear, "fuse", input_shapes={"x": [1, 9]})


def test_structure_and_off_do_not_run_the_model(linear: onnx.ModelProto) -> None:
    assert untimed(linear, [Scale(factor=1.0)], verify="structure").report.passes[0].verified == "structure"
    assert untimed(linear, [Scale(factor=1.0)], verify="off").report.passes[0].verified == "off"


def test_a_pass_taken_back_keeps_the_numbers_of_the_dumps(linear: onnx.ModelProto, tmp_path: Path) -> None:
    untimed(linear, [ScaleLossy(factor=-1.0), ScaleLossy(factor=1.001)], dump_dir=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["01-scale-lossy.onnx", "02-scale-lossy.onnx"]
    assert np.array_equal(outputs(onnx.load(tmp_path / "01-scale-lossy.onnx")), outputs(linear))


def test_one_sample_is_enough(linear: onnx.ModelProto) -> None:
    report = untimed(linear, "fuse", calib={"x": np.ones((1, 8), np.float32)}).report
    assert report.fidelity is not None
    assert report.fidelity.samples == 1


def test_a_model_without_inputs() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g () => (float[2] y) <float[2] w = {1.0, 2.0}> { y = Relu(w) }'
    )
    report = untimed(model, "fold,prune,int8").report
    assert "has no inputs" in report.unmeasured[0]


def test_outputs_that_are_sequences() -> None:
    model = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        parts (float[6] x) => (seq(float[N]) y) <int64[2] s = {2, 4}> { a = Identity(x) y = SplitToSequence(a, s) }
        """
    )
    report = untimed(model, "fold,fuse").report
    assert report.passes[0].status == "applied"
    assert report.passes[0].verified == "numeric"


def test_without_measuring_nothing_is_compared_or_taken_back(linear: onnx.ModelProto) -> None:
    report = untimed(linear, [ScaleLossy(factor=-1.0)], measure=False).report
    assert report.passes[0].status == "applied"
    assert (report.fidelity, report.speed) == (None, None)
    assert "--no-measure" in report.unmeasured[0]


def test_a_model_beyond_the_memory_is_checked_and_not_run(linear: onnx.ModelProto) -> None:
    result = untimed(linear, "fuse", memory=100)
    assert result.report.passes[0].verified == "structure"
    assert "--memory 1GiB has it run" in result.report.unmeasured[0]
    assert np.allclose(outputs(result.model), outputs(linear), atol=1e-6)


def test_a_model_of_very_many_initializers_is_checked_and_not_run(
    linear: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxedge.samples.RUN_WEIGHTS", len(linear.graph.initializer) - 1)
    report = onnxedge.optimize(linear, "fold,fuse").report
    assert f"it has {len(linear.graph.initializer)} initializers" in report.unmeasured[0]
    assert report.fidelity is None


def test_training_info_that_is_not_kept_is_said(linear: onnx.ModelProto, tmp_path: Path) -> None:
    linear.training_info.add().algorithm.name = "step"
    onnx.save(linear, tmp_path / "in.onnx")
    for given in (linear, tmp_path / "in.onnx", load(tmp_path / "in.onnx")):
        notes = onnxedge.optimize(given, "fold,fuse", verify="structure", measure=False).report.notes
        said = [note.pass_name for note in notes if note.reason.startswith("training_info was not kept")]
        assert said == ["load"]
