"""``onnxedge inspect --groups``: what is printed, the JSON, and models whose groups cannot be known."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper
from samples import run

from onnxedge.channels import channel_groups
from onnxedge.errors import UserError
from onnxedge.model.io import load
from onnxedge.registry import find_target
from onnxedge.report.text import label_text, middle_cut


def test_groups_are_printed(fixtures: Path) -> None:
    result = run("inspect", fixtures / "digits_resnet.onnx", "--groups")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "digits_resnet.onnx: 6 channel groups can be cut, 1 cannot"
    assert "2. Conv '/layer1/conv1/Conv': 32 channels" in lines
    start = lines.index("2. Conv '/layer1/conv1/Conv': 32 channels")
    member = [line.split() for line in lines[start + 1 : start + 4]]
    assert [words[0] for words in member] == ["makes", "follows", "reads"]
    assert all(words[-2:] == ["all", "32"] for words in member)
    assert "8:40 of 48" in result.stdout
    assert "reaches a graph output" in lines[-1]
    assert "value 'logits'" in lines[-1]


def test_groups_as_json(fixtures: Path) -> None:
    found = json.loads(run("inspect", fixtures / "digits_resnet.onnx", "--groups", "--json").stdout)
    assert found["size"]["nodes"] > 0
    assert found["channel_groups_unknown"] == ""
    groups = found["channel_groups"]
    assert set(groups) == {"free", "locked", "notes"}
    assert set(groups["free"][0]) == {"name", "units", "channels", "members", "reason", "where"}
    member = groups["free"][0]["members"][0]
    assert set(member) == {"side", "node", "operand", "tensor", "axis", "size", "slices", "count", "index"}
    assert (member["side"], member["slices"], member["index"]) == ("makes", [[0, 16, 1]], "u")
    assert groups["locked"][0]["reason"] == "reaches a graph output"


@pytest.mark.parametrize("name", ["branch_if", "detector", "external_data", "local_function", "sequence_transformer"])
def test_every_fixture_has_groups_or_a_reason(fixtures: Path, name: str) -> None:
    result = run("inspect", fixtures / f"{name}.onnx", "--groups")
    assert result.exit_code == 0, result.output
    assert "can be cut" in result.stdout


def test_a_model_that_the_runtime_does_not_run(fixtures: Path) -> None:
    result = run("inspect", fixtures / "custom_domain.onnx", "--groups")
    assert result.exit_code == 0, result.output
    assert "the channel groups are not known: " in result.stdout
    assert len(result.stdout.splitlines()) == 1
    found = json.loads(run("inspect", fixtures / "custom_domain.onnx", "--groups", "--json").stdout)
    assert found["channel_groups"] is None
    assert found["channel_groups_unknown"]


def test_overridable_weights_are_told(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x, float[4, 6] w) => (float[N, 3] y)'
        " <float[4, 6] w, float[6, 3] v> { h = MatMul(x, w) y = MatMul(h, v) }"
    )
    del model.graph.initializer[:]
    for name, shape in (("w", (4, 6)), ("v", (6, 3))):
        values = [0.5] * (shape[0] * shape[1])
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, shape, values))
    onnx.save(model, tmp_path / "m.onnx")
    text = " ".join(run("inspect", tmp_path / "m.onnx", "--groups").stdout.split())
    assert "0 channel groups can be cut" in text
    assert "graph input that may be overridden" in text


def test_a_pass_without_groups(fixtures: Path) -> None:
    model = load(fixtures / "digits_resnet.onnx")
    with pytest.raises(UserError, match="pass 'fold' lists no channel groups"):
        channel_groups(model, target=find_target("ort-cpu"), pass_name="fold")


def test_long_names_keep_their_ends() -> None:
    assert middle_cut("abcdefghij", 7) == "ab…ghij"
    label = "BatchNormalization '/layer3/layer3.0/bn2/BatchNormalization'"
    assert label_text(label, 80) == label
    assert label_text(label, 40) == "BatchNorm… '/layer3/layer3.0/bn2'"
    assert label_text(label, 28) == "BatchNorm… '…3/layer3.0/bn2'"
    assert all(len(label_text(label, width)) <= width for width in range(10, 80))
