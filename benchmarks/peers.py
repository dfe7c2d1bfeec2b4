"""One optimizer on one file, in a process of its own: ``python peers.py TOOL INPUT OUTPUT KIND`` prints JSON.

What is timed is reading the file, the tool's own work and writing the result; imports are done before and timed apart.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

Run = Callable[[str, str, str], dict[str, Any]]


def onnxedge() -> Run:
    """Passes, shape inference and structure checks, no runs of the model: what the peers do."""
    import networkx  # noqa: F401  # these three are imported where they are needed
    import onnxruntime  # noqa: F401
    from scipy import special  # noqa: F401

    import onnxedge as package
    from onnxedge.registry import find_pass

    find_pass("fold"), find_pass("fuse")
    optimize = package.optimize  # imported by being asked for

    def run(source: str, output: str, kind: str) -> dict[str, Any]:
        target, _, passes = kind.partition(":")
        report = optimize(
            source,
            passes or "fold,fuse",
            output=output,
            target=target or "ort-cpu",
            verify="structure",
            measure=False,
        ).report
        return {
            "passes": {record.text: f"{record.status}: {record.summary}" for record in report.passes},
            "pass_seconds": {record.text: round(record.seconds, 3) for record in report.passes},
            "notes": [str(note) for note in report.notes],
        }

    return run


def onnxedge_verified() -> Run:
    """The whole job as a user runs it: samples made, every pass run and compared, latency measured."""
    import onnxedge as package

    def run(source: str, output: str, kind: str) -> dict[str, Any]:
        target, _, passes = kind.partition(":")
        report = package.optimize(source, passes or "fold,fuse", output=output, target=target or "ort-cpu").report
        return {"verdict": report.verdict, "status": {p.text: p.status for p in report.passes}}

    return run


def onnxsim() -> Run:
    import onnx
    import onnxsim as package

    def run(source: str, output: str, kind: str) -> dict[str, Any]:
        model, checked = package.simplify(source)
        onnx.save(model, output)
        return {"checked": bool(checked)}

    return run


def onnxslim() -> Run:
    import onnxslim as package

    def run(source: str, output: str, kind: str) -> dict[str, Any]:
        package.slim(source, output)
        return {}

    return run


def onnxscript() -> Run:
    """The optimizer, then the rewriter with its default rules."""
    import onnx_ir as ir
    import onnxscript.optimizer
    import onnxscript.rewriter

    def run(source: str, output: str, kind: str) -> dict[str, Any]:
        model = ir.load(source)
        onnxscript.optimizer.optimize(model)
        model = onnxscript.rewriter.rewrite(model)
        ir.save(model, output)
        return {}

    return run


def onnxscript_ort() -> Run:
    """The fusions to ONNX Runtime's own operators."""
    import onnx_ir as ir
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    def run(source: str, output: str, kind: str) -> dict[str, Any]:
        model, counts = optimize_for_ort(ir.load(source))
        ir.save(model, output)
        return {"counts": {name: count for name, count in counts.items() if count}}

    return run


def transformers(level: int) -> Run:
    """onnxruntime.transformers; ``kind`` is its model type."""
    from onnxruntime.transformers import optimizer

    def run(source: str, output: str, kind: str) -> dict[str, Any]:
        model = optimizer.optimize_model(source, model_type=kind or "bert", opt_level=level)
        model.save_model_to_file(output)
        return {"counts": model.get_fused_operator_statistics()}

    return run


def ort_extended() -> Run:
    """The graph that ONNX Runtime writes at level EXTENDED."""
    import onnxruntime as ort

    def run(source: str, output: str, kind: str) -> dict[str, Any]:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = output
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        return {}

    return run


TOOLS: dict[str, Callable[[], Run]] = {
    "onnxedge": onnxedge,
    "onnxedge-verified": onnxedge_verified,
    "onnxsim": onnxsim,
    "onnxslim": onnxslim,
    "onnxscript": onnxscript,
    "onnxscript-ort": onnxscript_ort,
    "transformers-0": lambda: transformers(0),
    "transformers-1": lambda: transformers(1),
    "ort-extended": ort_extended,
}


def peak_bytes() -> int:
    """Return the largest resident size of this process or of one of its children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss counts what the parent held before this program started
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return max(int(line.split()[1]) * 1024, children)
    return max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, children)


def cpu_seconds() -> float:
    """Return the processor time of this process and its children."""
    return sum(os.times()[:4])


def main() -> None:
    """Run one tool and print what it took."""
    tool, source, output, kind = sys.argv[1:5]
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    facts: dict[str, Any] = {}
    with redirect_stdout(sys.stderr):
        start = time.perf_counter()
        run = TOOLS[tool]()
        facts["import_seconds"] = time.perf_counter() - start
        facts["import_bytes"] = peak_bytes()
        start, busy = time.perf_counter(), cpu_seconds()
        facts |= run(source, output, kind)
        facts["seconds"] = time.perf_counter() - start
        facts["cpu_seconds"] = cpu_seconds() - busy
        facts["peak_bytes"] = peak_bytes()
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
