"""Engine ``ort-training`` in the worker's process: ``onnxruntime-training`` differentiates, NumPy makes the steps."""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

Engine: Any = importlib.import_module("run").Engine
Arrays = Mapping[str, "np.ndarray[Any, Any]"]


class Package(Engine):  # type: ignore[misc]
    """Differentiate the graph of a folder, see :mod:`worker`."""

    def __init__(self, folder: str, job: Mapping[str, Any], optimizer: Any) -> None:
        super().__init__(optimizer)
        self._trained, self._parts = job["trained"], job["accumulate"]
        self._kept = [*job["trained"], *job["statistics"]]
        self._module, self._parameters = _module(folder, job)
        self._names = self._module.input_names()
        self._module.train()

    def batch(self, feed: Arrays) -> float:
        """Run forwards and backwards."""
        outputs = self._module(*[feed[name] for name in self._names])
        return float(np.asarray(outputs[0] if isinstance(outputs, (tuple, list)) else outputs))

    def update(self) -> None:
        """Make the optimizer's step."""
        values = {name: self._parameters[name].data for name in self._trained}
        gradients = {name: self._parameters[name].grad / np.float32(self._parts) for name in self._trained}
        for name, value in self.optimizer.step(values, gradients).items():
            self._parameters[name].data = value
        self._module.lazy_reset_grad()

    def values(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return parameters and running statistics."""
        return {name: self._parameters[name].data for name in self._kept}

    def moments(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the optimizer's state."""
        return dict(self.optimizer.state)

    def put(self, values: Arrays, moments: Arrays) -> None:
        """Go on from a checkpoint."""
        for name, value in values.items():
            self._parameters[name].data = value
        self.optimizer.state.update(moments)


def _module(folder: str, job: Mapping[str, Any]) -> tuple[Any, Any]:
    """Differentiate the graph, and return what runs it and its parameters."""
    for name in ("optim", "amp"):  # both import PyTorch, and nothing here needs them
        sys.modules[f"onnxruntime.training.{name}"] = types.ModuleType(f"onnxruntime.training.{name}")
    import onnx
    import onnxruntime
    from onnxruntime.training import artifacts
    from onnxruntime.training.api import CheckpointState, Module

    vars(onnx)["IR_VERSION"] = min(onnx.IR_VERSION, 8)  # the runtime is older than the onnx beside it
    onnxruntime.set_default_logger_severity(4)
    register_gradients()
    made = os.path.join(folder, "artifacts")
    os.makedirs(made, exist_ok=True)
    artifacts.generate_artifacts(
        onnx.load(os.path.join(folder, "model.onnx")),
        requires_grad=job["trained"],
        frozen_params=job["statistics"],
        loss=None,
        optimizer=None,
        artifact_directory=made,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = job["threads"], 1
    state = CheckpointState.load_checkpoint(os.path.join(made, "checkpoint"))
    files = [os.path.join(made, f"{name}_model.onnx") for name in ("training", "eval")]
    return Module(files[0], state, files[1], session_options=options), state.parameters


def register_gradients() -> None:
    """Say what the gradients of Round and of Relu are.

    Round passes them as if nothing had been rounded: Bengio et al. 2013, arXiv:1308.3432, section 4. Relu has one in
    the package, of branches; a product with what came out, cast to bool and back, takes a third of its time.
    """
    from onnxruntime.capi import _pybind_state as runtime

    def node(op_type: str, inputs: list[str], output: str, to: int = 0) -> Any:
        made = runtime.GradientNodeDefinition()
        made.op_type, made.domain, made.inputs, made.outputs, made.attributes = op_type, "", inputs, [output], []
        if to:
            attribute = runtime.GradientNodeAttributeDefinition()
            attribute.name, attribute.value_json, attribute.dtype, attribute.is_tensor = "to", str(to), "int", False
            made.attributes = [attribute]
        return made

    floats, bools = 1, 9  # of onnx.TensorProto
    runtime.register_gradient_definition("::Round", [node("Identity", ["GO(0)"], "GI(0)")])
    passes = [node("Cast", ["O(0)"], "passes", bools), node("Cast", ["passes"], "factor", floats)]
    runtime.register_gradient_definition("::Relu", [*passes, node("Mul", ["GO(0)", "factor"], "GI(0)")])
