"""Inspection: counts, shapes, memory and the target's integer rules on small graphs whose figures are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from onnxedge.errors import UserError
from onnxedge.inspection import Port, activation_peak, inspect_model
from onnxedge.model.io import from_proto, load
from onnxedge.target import Quantization, Target

CHAIN = """
<ir_version: 8, opset_import: ["" : 17], producer_name: "test">
chain (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
<float[4, 3, 1, 1] w, float[4] b>
{ c = Conv(x, w, b)  r = Relu(c)  s = Sigmoid(r)  y = Add(r, s) }
"""

CHIP = Target(
    name="chip",
    quantization=Quantization(
        integer=("Conv", "Add"), float_before_output=("Relu",), absorbing=("Conv",), min_macs={"Conv": 100}
    ),
)


def chain() -> ir.Model:
    proto = onnx.parser.parse_model(CHAIN)
    del proto.graph.initializer[:]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "w"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4, np.float32), "b"))
    return from_proto(proto)


def test_figures_of_a_chain() -> None:
    found = inspect_model(chain())
    assert (found.name, found.producer, found.opsets, found.ir_version) == ("chain", "test", {"ai.onnx": 17}, 8)
    assert found.inputs == (Port("x", "float32", ("N", 3, 8, 8)),)
    assert found.outputs == (Port("y", "float32", ("N", 4, 8, 8)),)
    assert (found.size.nodes, found.size.parameters, found.size.weight_bytes) == (4, 16, 64)
    assert found.size.macs == 8 * 8 * 4 * 3
    assert found.weight_dtypes == {"float32": 64}
    assert [(row.operator, row.nodes, row.parameters, row.macs) for row in found.operators] == [
        ("Conv", 1, 16, 768),
        ("Add", 1, 0, 0),
        ("Relu", 1, 0, 0),
        ("Sigmoid", 1, 0, 0),
    ]
    assert found.assumed == "batch 1"
    assert found.integer_macs is None
    assert not any(row.roles for row in found.operators)


def test_a_given_batch_multiplies_macs_and_memory() -> None:
    one, five = inspect_model(chain()), inspect_model(chain(), input_shapes={"x": (5, 3, 8, 8)})
    assert five.assumed == ""
    assert one.size.macs is not None
    assert five.size.macs == 5 * one.size.macs
    assert five.activations.peak_bytes == 5 * one.activations.peak_bytes


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"z": (1, 3, 8, 8)}, "no input is called 'z'; the model has x"),
        ({"x": (1, 3, 8)}, "input 'x' is Nx3x8x8, 1x3x8 came"),
        ({"x": (1, 4, 8, 8)}, "input 'x' is Nx3x8x8, 1x4x8x8 came"),
    ],
)
def test_an_input_shape_that_does_not_fit(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        inspect_model(chain(), input_shapes=shapes)


def test_the_model_is_not_changed() -> None:
    model = chain()
    before = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    inspect_model(model, target=CHIP, input_shapes={"x": (2, 3, 8, 8)})
    assert ir.serde.serialize_model(model).SerializeToString(deterministic=True) == before


def test_what_a_target_runs_in_integers() -> None:
    found = inspect_model(chain(), target=CHIP)
    roles = {row.operator: dict(row.roles) for row in found.operators}
    assert roles == {"Conv": {"integer": 1}, "Add": {"integer": 1}, "Relu": {"absorbed": 1}, "Sigmoid": {"float": 1}}
    assert (found.target, found.integer_macs) == ("chip", 1.0)
    assert found.float_reasons == {"Sigmoid: no integer kernel on chip": 1}


def test_a_layer_that_does_not_pay_stays_float() -> None:
    chip = Target(name="chip", quantization=Quantization(integer=("Conv",), min_macs={"Conv": 1000}))
    found = inspect_model(chain(), target=chip)
    assert found.operators[0].roles == {"float": 1}
    assert found.integer_macs == 0.0


def test_the_peak_frees_a_value_behind_its_last_reader() -> None:
    """x 768 bytes, the others 1024 each: at Conv x + c, at Relu c + r, at Sigmoid r + s, at Add r + s + y."""
    model = chain()
    found = inspect_model(model).activations
    assert (found.peak_bytes, found.unknown) == (3 * 1024, 0)
    assert found.at == "Add"


def test_a_value_read_inside_a_subgraph_lives_that_long() -> None:
    model = from_proto(
        onnx.parser.parse_model(
            """
            <ir_version: 8, opset_import: ["" : 17]>
            outer (float[256] x, bool c) => (float[256] y)
            {
                a = Relu(x)
                b = Neg(x)
                z = If (c) <
                    then_branch = t () => (float[256] p) { p = Add(a, b) },
                    else_branch = e () => (float[256] q) { i = Neg(a)  j = Neg(i)  q = Neg(j) }
                >
                y = Neg(z)
            }
            """
        )
    )
    found = inspect_model(model)
    # x 1 kB lives to Neg; at If: c, a, b, z and two values of the else branch at once
    assert found.activations.peak_bytes == 5 * 1024 + 1
    assert found.activations.at.startswith("If")
    assert found.subgraph_count == 2
    assert {row.operator: row.nodes for row in found.operators} == {"Neg": 5, "Add": 1, "If": 1, "Relu": 1}


def test_unknown_shapes_are_counted_not_guessed() -> None:
    model = from_proto(
        onnx.parser.parse_model(
            """
            <ir_version: 8, opset_import: ["" : 17, "custom" : 1]>
            walls (float[4] x) => (float[M, 4] y)
            <float[4, 4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}>
            { a = custom.Strange(x)  b = MatMul(a, w)  y = custom.Strange(b) }
            """
        )
    )
    found = inspect_model(model)
    rows = {row.operator: row for row in found.operators}
    assert rows["MatMul"].unknown == 1
    assert rows["custom::Strange"].nodes == 2
    assert found.activations.unknown == 3


def test_overridable_initializers_are_no_inputs() -> None:
    proto = onnx.parser.parse_model(CHAIN)
    proto.ir_version = 3
    del proto.graph.initializer[:]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "w"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4, np.float32), "b"))
    for tensor in proto.graph.initializer:
        proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    found = inspect_model(from_proto(proto))
    assert [port.name for port in found.inputs] == ["x"]
    assert found.overridable == 2


@pytest.mark.parametrize("name", ["digits_resnet", "sequence_transformer", "detector", "branch_if", "local_function"])
def test_fixtures(fixtures: Path, name: str) -> None:
    path = fixtures / f"{name}.onnx"
    found = inspect_model(load(path), path=path, target=CHIP)
    assert found.name == path.name
    assert found.size.file_bytes == path.stat().st_size
    assert sum(row.nodes for row in found.operators) == found.size.nodes
    assert found.activations.peak_bytes > 0
    assert json.loads(found.to_json())["size"]["nodes"] == found.size.nodes


def test_a_deep_chain_takes_no_recursion() -> None:
    nodes = " ".join(f"v{i + 1} = Neg(v{i})" for i in range(3000))
    text = f'<ir_version: 8, opset_import: ["" : 17]> deep (float[2] v0) => (float[2] v3000) {{ {nodes} }}'
    assert activation_peak(from_proto(onnx.parser.parse_model(text))).unknown == 2999  # nothing was inferred here
    assert inspect_model(from_proto(onnx.parser.parse_model(text))).activations.peak_bytes == 16
