"""One quantizer on one model, in a process of its own: ``python int8_tools.py`` reads a job from stdin, prints JSON.

What is timed is reading the model and the samples, preparing, calibrating and writing; imports are timed apart. ONNX
Runtime calibrates with one thread in every tool, so that processor time compares.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from peers import cpu_seconds, peak_bytes

Job = dict[str, Any]
Run = Callable[[Job], dict[str, Any]]
PLAIN = (
    "method=minmax", "min_sqnr=-99", "timing=false", "bias_correction=false", "rounding=nearest", "equalize=off",
    "smooth=off",
)  # fmt: skip
LATER_OPSET = 17  #: what a model is converted to where a peer refuses its opset


class Feeds:
    """Samples one at a time, made when they are asked for, as often as they are asked for."""

    def __init__(self, job: Job) -> None:
        from onnxedge.api import Session, open_data

        self.data = open_data(job["calib"], Session(Path(job["source"]), level="disable").inputs, job["preprocess"])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.data.feeds(1)

    def __len__(self) -> int:
        return len(self.data)


def onnxedge(method: str) -> Run:
    """The passes without a look at the result, as the peers do, or all that a user's call does."""
    import networkx  # noqa: F401  # these three are imported where they are needed
    import onnxruntime  # noqa: F401
    from scipy import special  # noqa: F401

    import onnxedge as package
    from onnxedge.registry import find_pass

    find_pass("fuse"), find_pass("int8")
    optimize = package.optimize

    def run(job: Job) -> dict[str, Any]:
        options = [f"samples={job['samples']}", *(PLAIN if method == "minmax" else ())]
        options += [job["options"]] if job["options"] else []
        report = optimize(
            job["source"],
            f"{job['passes']},int8({','.join(options)})",
            output=job["output"],
            calib=job["calib"],
            preprocess=job["preprocess"],
            verify="numeric" if method == "verified" else "structure",
            measure=method == "verified",
            strict=method != "verified",
        ).report
        return {
            "passes": {record.text: f"{record.status}: {record.summary}" for record in report.passes},
            "pass_seconds": {record.text: round(record.seconds, 3) for record in report.passes},
            "notes": [str(note) for note in report.notes],
        }

    return run


def ort() -> Run:
    """quantize_static: uint8 activations, int8 weights per channel, min-max, with its pre-processing."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped
        def __init__(self, job: Job) -> None:
            self.feeds = iter(Feeds(job))

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    def run(job: Job) -> dict[str, Any]:
        told = {}
        with tempfile.TemporaryDirectory() as folder:
            source = job["source"]
            if job.get("convert"):
                source = f"{folder}/converted.onnx"
                onnx.save(_model(job), source)
            prepared = f"{folder}/prepared.onnx"
            try:
                quant_pre_process(source, prepared)
            except Exception as err:  # what it raises has no base of its own
                told["prepared"] = f"without symbolic shapes: {type(err).__name__}"
                quant_pre_process(source, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                job["output"],
                Reader(job),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        return told

    return run


def nncf(preset: str) -> Run:
    """simplify, then nncf.quantize: as it comes, or with uint8 activations (``mixed``).

    It folds no BatchNormalization into a Conv, and then the runtime finds no integer kernels: twice as slow as float.
    """
    import nncf as package
    import onnx
    import onnxsim as simplifier

    package.set_log_level(logging.ERROR)

    def run(job: Job) -> dict[str, Any]:
        options: dict[str, Any] = {"subset_size": job["samples"]}
        if job["transformer"]:
            options["model_type"] = package.ModelType.TRANSFORMER
        if preset:
            options["preset"] = package.QuantizationPreset(preset)
        model, _ = simplifier.simplify(_model(job))
        onnx.save(package.quantize(model, package.Dataset(Feeds(job)), **options), job["output"])
        return {}

    return run


def onnxsim() -> Run:
    """simplify, then quantize_static(full_graph=True): min-max, per channel."""
    import onnx
    import onnxsim as package

    def run(job: Job) -> dict[str, Any]:
        model, _ = package.simplify(_model(job))
        onnx.save(package.quantize_static(model, Feeds(job), full_graph=True), job["output"])
        return {}

    return run


def _model(job: Job) -> Any:
    """Load the model; convert it where it was refused before."""
    import onnx

    model = onnx.load(job["source"])
    return onnx.version_converter.convert_version(model, LATER_OPSET) if job.get("convert") else model


TOOLS: dict[str, Callable[[], Run]] = {
    "onnxedge": lambda: onnxedge(""),
    "onnxedge-minmax": lambda: onnxedge("minmax"),
    "onnxedge-verified": lambda: onnxedge("verified"),
    "ort": ort,
    "nncf": lambda: nncf("mixed"),
    "nncf-default": lambda: nncf(""),
    "onnxsim": onnxsim,
}


def one_thread() -> None:
    """Let sessions have one thread where their maker did not say how many."""
    import onnxruntime as runtime

    make = runtime.InferenceSession.__init__

    def init(self: Any, model: Any, sess_options: Any = None, *arguments: Any, **options: Any) -> None:
        sess_options = sess_options or runtime.SessionOptions()
        sess_options.intra_op_num_threads = sess_options.intra_op_num_threads or 1
        make(self, model, sess_options, *arguments, **options)

    runtime.InferenceSession.__init__ = init


def _check(file: str) -> None:
    """Load what was made: quantize_static writes files of opset 11 that the runtime refuses."""
    from onnxedge.api import Session

    Session(Path(file))


def main() -> None:
    """Run one tool and print what it took."""
    job: Job = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CPU, (job["limit"], job["limit"] + 5))
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    facts: dict[str, Any] = {}
    with redirect_stdout(sys.stderr):
        start = time.perf_counter()
        one_thread()
        run = TOOLS[job["tool"]]()
        facts["import_seconds"], facts["import_bytes"] = time.perf_counter() - start, peak_bytes()
        start, busy = time.perf_counter(), cpu_seconds()
        facts |= run(job)
        facts["seconds"], facts["cpu_seconds"] = time.perf_counter() - start, cpu_seconds() - busy
        facts["peak_bytes"] = peak_bytes()
        _check(job["output"])
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
