"""A vendor's passes run between the built-in ones, for the vendor's own target; a broken plugin harms nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
from samples import run

import onnxedge


def test_a_vendors_pass_runs_between_built_ins(fixtures: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    result = run(
        *("optimize", fixtures / "digits_resnet.onnx", "--passes", "fuse,acme-name-nodes,int8", "-o", output),
        *("--target", "acme-npu", "--calib", fixtures / "digits_calib.npz"),
    )
    assert (result.exit_code, result.stderr) == (0, "")
    model = onnx.load(output)
    onnx.checker.check_model(model)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["onnxedge.pipeline"] == "fuse,acme-name-nodes,int8"
    assert facts["onnxedge.target"] == "acme-npu"
    assert any(node.name.startswith("acme_") for node in model.graph.node)
    assert any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def test_each_pass_of_a_mixed_pipeline_is_recorded(fixtures: Path) -> None:
    report = onnxedge.optimize(
        fixtures / "digits_resnet.onnx", "fuse,acme-name-nodes(prefix=n)", target="acme-npu"
    ).report
    assert [record.status for record in report.passes] == ["applied", "applied"]
    assert report.passes[1].verified == "numeric"
    assert any("acme-npu does not run on this machine" in line for line in report.unmeasured)


def test_a_broken_plugin_is_an_error_only_where_it_is_named(fixtures: Path, tmp_path: Path) -> None:
    model = fixtures / "branch_if.onnx"
    assert run("optimize", model, "--passes", "fold", "-o", tmp_path / "out.onnx").exit_code == 0
    assert "broken-edge 0.0.1" in run("passes").stdout
    result = run("optimize", model, "--passes", "fold,broken-pass", "-o", tmp_path / "none.onnx")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "broken-edge 0.0.1 does not load" in result.stderr
    assert not (tmp_path / "none.onnx").exists()


def test_processes_with_other_hash_seeds_write_the_same_bytes(fixtures: Path, tmp_path: Path) -> None:
    for seed in ("1", "2"):
        arguments = ["optimize", "digits_resnet.onnx", "--passes", "prune,fuse,int8", "--calib", "digits_calib.npz"]
        subprocess.run(
            [sys.executable, "-m", "onnxedge", *arguments, "-o", str(tmp_path / f"{seed}.onnx"), "-q"],
            check=True,
            cwd=fixtures,
            env={**os.environ, "PYTHONHASHSEED": seed},
            timeout=300,
        )
    assert (tmp_path / "1.onnx").read_bytes() == (tmp_path / "2.onnx").read_bytes()
