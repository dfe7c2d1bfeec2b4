"""What is told of a run: in one sentence, in lines of the report, in the metadata of the model."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxedge import __version__
from onnxedge.data import Data
from onnxedge.report.records import Fidelity, Measure, Report
from onnxedge.target import Target


def note_in(model: ir.Model, report: Report) -> None:
    """Note in a model what was done and measured.

    Timings stay out of the metadata: the same input and seed must give the same bytes.
    """
    facts = {
        "pipeline": report.pipeline,
        "target": report.target,
        "seed": str(report.seed),
        "calibration": report.calibration,
        "preprocess": report.preprocess,
        "versions": " ".join(f"{name}={number}" for name, number in report.versions.items()),
    }
    if report.fidelity is not None:
        fidelity = report.fidelity
        measured = {
            "samples": fidelity.samples,
            "data": Path(fidelity.data).name,
            fidelity.metric or "agreement": fidelity.after if fidelity.labelled else fidelity.agreement,
            "before": fidelity.before,
        }
        facts["measured"] = json.dumps({k: _rounded(v) for k, v in measured.items() if v is not None})
    for key in ("calibration", "measured"):  # of an earlier run; how inputs are prepared still holds
        model.metadata_props.pop(f"onnxedge.{key}", None)
    model.metadata_props.update({f"onnxedge.{key}": value for key, value in facts.items() if value})


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def describe(data: Data | None, *, given: bool) -> str:
    """Name samples as the report does; nothing where there are none."""
    if data is None:
        return ""
    if not given and data.synthetic:
        return "synthetic"
    name = Path(data.source).name if data.source else "arrays"
    return f"{name} {data.digest} ({len(data)} samples)"


def versions() -> dict[str, str]:
    """Return the versions that decide the result."""
    known = {"onnxedge": __version__, "onnx": onnx.__version__, "onnxruntime": version("onnxruntime")}
    return known | {"onnx-ir": ir.__version__, "numpy": np.__version__}


def unmeasured(unrunnable: str, target: Target, fidelity: Fidelity | None, *, measure: bool) -> tuple[str, ...]:
    """Say what was not measured and why, a line each."""
    lines = []
    if unrunnable:
        return (f"nothing was run or measured: {unrunnable}",)
    if not measure:
        return ("nothing was compared with the original, as was asked for (--no-measure); no pass is taken back",)
    if not target.timed_here:
        lines.append(f"latency: target {target.name} does not run on this machine")
    if fidelity is not None and not fidelity.labelled:
        where = "synthetic inputs" if fidelity.data == "synthetic" else "samples"
        lines.append(
            f"accuracy: no labelled data (--eval); agreement with the original on held-out {where} is given instead"
        )
    return tuple(lines)


def verdict(report: Report, after: Measure) -> str:
    """Say in one sentence what came out."""
    taken = [record for record in report.passes if record.status == "rolled back"]
    back = "".join(f"; {record.text.split('(')[0]} taken back: {record.reason}" for record in taken)
    if report.kept == 0:
        return f"the model is unchanged{back}"
    parts = [f"{after.file_bytes / max(report.before.file_bytes, 1):.0%} of the bytes"]
    if report.speed is not None:
        parts.append(f"{report.speed.ratio:.2f} of the latency")
    fidelity = report.fidelity
    if fidelity is not None and fidelity.before is not None and fidelity.after is not None:
        parts.append(
            f"{fidelity.metric} {100 * fidelity.before:.2f} -> {100 * fidelity.after:.2f} on {fidelity.samples} samples"
        )
    elif fidelity is not None and fidelity.agreement is not None:
        parts.append(f"{fidelity.agreement:.1%} of {fidelity.samples} answers agree")
    elif fidelity is not None:
        parts.append("equal outputs" if fidelity.sqnr_db is None else f"SQNR {fidelity.sqnr_db:.1f} dB")
    return ", ".join(parts) + back
