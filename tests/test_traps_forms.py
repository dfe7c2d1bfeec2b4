"""Traps of form: what is valid in the model's own opset and type, and what callers see of the model."""

from __future__ import annotations

import conformance
import ml_dtypes
import numpy as np
import onnx
import onnx.compose
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper
from traps import feeds_for, hold, operators, optimized, parse

CUBE = "float[N,4,6] x"
FORMS = {
    "Unsqueeze": (f"g ({CUBE}) => (float[A,B,C,D] y) {{ a = Relu(x) y = Unsqueeze<axes=[0]>(a) }}", range(7, 13)),
    "Squeeze": (f"""g ({CUBE}) => (float[A,B,C] y) {{ a = Unsqueeze<axes=[1]>(x) b = Neg(a) y = Squeeze<axes=[1]>(b)
        }}""", range(7, 13)),
    "Squeeze 13": (f"""g ({CUBE}) => (float[A,B,C] y) <int64[1] i = {{1}}> {{ a = Unsqueeze(x, i) b = Neg(a) y =
        Squeeze(b, i) }}""", range(13, 25)),
    "ReduceMean": (f"""g ({CUBE}) => (float[A,B,C] y) {{ a = ReduceMean<axes=[2]>(x) b = Sub(x, a) c = Mul(b, b) d =
        ReduceMean<axes=[2]>(c) f = Sqrt(d) y = Div(b, f) }}""", range(7, 18)),
    "ReduceSum": (f"""g ({CUBE}) => (float[A,B] y) {{ a = Transpose<perm=[0,2,1]>(x) y =
        ReduceSum<axes=[1],keepdims=0>(a) }}""", range(7, 13)),
    "Clip": (f"g ({CUBE}) => (float[A,B,C] y) {{ a = Clip<min=0.0>(x) y = Clip<max=6.0>(a) }}", range(7, 11)),
    "Clip 11": (f"""g ({CUBE}) => (float[A,B,C] y) <float l = {{0}}, float h = {{6}}> {{ a = Clip(x, l) y = Clip(a, ,
        h) }}""", range(11, 25)),
    "Gemm": ("""g (float[N,3] x) => (float[A,B] y) <float[4] c = {1, 2, 3, 4}> { a = MatMul(x, w) y = Add(a, c) }""",
        range(7, 25)),
    "Pad": ("""g (float[N,2,5,5] x) => (float[A,B,C,D] y) { a = Pad<pads=[0,0,1,1,0,0,1,1]>(x) y =
        AveragePool<kernel_shape=[3,3]>(a) }""", range(7, 11)),
    "Slice": (f"""g ({CUBE}) => (float[A,B,C] y) {{ a = Slice<axes=[1],starts=[1],ends=[9]>(x) y =
        Slice<axes=[1],starts=[0],ends=[2]>(a) }}""", range(7, 10)),
    "Dropout": (f"g ({CUBE}) => (float[A,B,C] y) {{ a = Dropout<ratio=0.3>(x) y = Neg(a) }}", range(7, 12)),
    "Softmax": (f"""g ({CUBE}) => (float[A,B,C] y) {{ a = Softmax<axis=1>(x) y = Transpose<perm=[0,2,1]>(a) }}""",
        range(7, 25)),
    "exponentials": (f"""g ({CUBE}) => (float[A,B,C] y) {{ a = Exp(x) b = ReduceSum<axes=[2]>(a) y = Div(a, b) }}""",
        range(7, 13)),
    "Upsample": ("""g (float[N,2,4,4] x) => (float[A,B,C,D] y) <float[4] s = {1, 1, 2, 2}> { a = Upsample(x, s) y =
        Relu(a) }""", range(9, 10)),
    "Constant": (f"""g ({CUBE}) => (float[A,B,C] y) {{ c = Constant<value_floats=[1.0,2.0,3.0,4.0,5.0,6.0]>() d =
        Constant<value_ints=[1]>() f = Cast<to=1>(d) a = Mul(x, c) y = Div(a, f) }}""", range(12, 25)),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_each_opset_has_its_own_form(form: str) -> None:
    """Axes as attribute or input, two inputs of a Gemm, bounds of a Clip: as the model's opset has them."""
    text, opsets = FORMS[form]
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((3, 4)).astype(np.float32)} if ", w" in text else {}
    for opset in opsets:
        hold(parse(text, opset=opset, ir_version=7 if opset < 19 else 10, **weights))


ACTIVATIONS = {
    "Gelu": "r = Constant<value_float=1.4142135>() o = Constant<value_float=1.0>() h = Constant<value_float=0.5>() "
    "q = {c}(r) p = {c}(o) u = {c}(h) a = Div(x, q) b = Erf(a) c = Add(b, p) d = Mul(x, c) y = Mul(d, u)",
    "Gelu by tanh": "r = Constant<value_float=0.7978845608>() k = Constant<value_float=0.044715>() "
    "o = Constant<value_float=1.0>() h = Constant<value_float=0.5>() q = {c}(r) s = {c}(k) p = {c}(o) u = {c}(h) "
    "e = Mul(x, x) f = Mul(e, x) g = Mul(f, s) i = Add(x, g) j = Mul(i, q) l = Tanh(j) m = Add(l, p) d = Mul(x, m) "
    "y = Mul(d, u)",
    "SiLU": "s = Sigmoid(x) y = Mul(x, s)",
    "QuickGelu": "k = Constant<value_float=1.702>() q = {c}(k) a = Mul(x, q) s = Sigmoid(a) y = Mul(x, s)",
    "Mish": "s = Softplus(x) t = Tanh(s) y = Mul(x, t)",
    "Softplus": "o = Constant<value_float=1.0>() p = {c}(o) e = Exp(x) a = Add(e, p) y = Log(a)",
    "HardSwish": "k = Constant<value_float=3.0>() l = Constant<value_float=0.0>() u = Constant<value_float=6.0>() "
    "q = {c}(k) v = {c}(l) w = {c}(u) a = Add(x, q) b = Clip(a, v, w) d = Mul(x, b) y = Div(d, w)",
    "LeakyRelu": "k = Constant<value_float=0.1>() q = {c}(k) a = Mul(x, q) y = Max(x, a)",
    "LayerNormalization": "k = Constant<value_float=1e-5>() q = {c}(k) m = {mean}(x) d = Sub(x, m) e = Mul(d, d) "
    "v = {mean}(e) w = Add(v, q) s = Sqrt(w) y = Div(d, s)",
    "RMSNormalization": "k = Constant<value_float=1e-5>() q = {c}(k) e = Mul(x, x) v = {mean}(e) w = Add(v, q) "
    "s = Sqrt(w) y = Div(x, s)",
    "InstanceNormalization": "k = Constant<value_float=1e-5>() q = {c}(k) m = GlobalAveragePool(x) d = Sub(x, m) "
    "e = Mul(d, d) v = GlobalAveragePool(e) w = Add(v, q) s = Sqrt(w) y = Div(d, s)",
    "Attention": "t = Transpose<perm=[0,2,1]>(x) a = MatMul(x, t) b = Softmax<axis=-1>(a) y = MatMul(b, x)",
}


@pytest.mark.parametrize("dtype", ["float", "float16", "double"])
@pytest.mark.parametrize("opset", [12, 17, 18, 20, 24, 26])
def test_fusions_in_each_type_and_opset(opset: int, dtype: str) -> None:
    """A kernel that the runtime has for float alone must not be emitted for double: all of ``fuse`` would be undone."""
    whole = parse("g () => () {}", opset=opset, ir_version=7 if opset < 19 else 10)
    for name, body in ACTIVATIONS.items():
        model = _activation(body, opset, dtype)
        if conformance.runs(conformance.Case("", model, feeds_for(model), [], 0.0, 0.0)):
            graph = onnx.compose.add_prefix(model, f"{name} ").graph
            for part in ("node", "input", "output", "initializer"):
                getattr(whole.graph, part).extend(getattr(graph, part))
    assert len(whole.graph.output) > 5
    hold(whole)


def _activation(body: str, opset: int, dtype: str) -> onnx.ModelProto:
    number = {"float": 1, "float16": 10, "double": 11}[dtype]
    for value in "xe":  # axes became an input in opset 18
        mean = f"ReduceMean({value}, ax)" if opset >= 18 else f"ReduceMean<axes=[-1]>({value})"
        body = body.replace(f"{{mean}}({value})", mean)
    weights = "<int64[1] ax = {-1}>" if "ax)" in body else ""
    text = f"g ({dtype}[N,4,6] x) => ({dtype}[A,B,C] y) {weights} {{ {body.replace('{c}', f'Cast<to={number}>')} }}"
    return parse(text, opset=opset, ir_version=7 if opset < 19 else 10)


INTERFACES = {
    "an input that is an output": "g (float[N,4] x) => (float[N,4] x, float[N,4] y) { a = Identity(x) y = Relu(a) }",
    "an output that is used": """g (float[N,4] x) => (float[N,4] a, float[N,4] y) { a = Relu(x) b = Identity(a) y =
        Neg(b) }""",
    "two outputs of one value": "g (float[N,4] x) => (float[N,4] a, float[N,4] y) { a = Relu(x) y = Identity(a) }",
    "an input as output by way of nothing": "g (float[N,4] x) => (float[N,4] y) { y = Identity(x) }",
    "two outputs of one input": "g (float[N,4] x) => (float[N,4] y, float[N,4] z) { y = Identity(x) z = Identity(x) }",
    "equal nodes, both exported": "g (float[N,4] x) => (float[N,4] y, float[N,4] z) { y = Relu(x) z = Relu(x) }",
    "an unused input": "g (float[N,4] x, float[M] z, int64 k) => (float[N,4] y) { a = Mul(x, x) y = Identity(a) }",
    "an output that is constant": """g (float[N,4] x) => (float[2] y, float[N,4] z) <float[2] c = {1, 2}> { y =
        Neg(c) z = Relu(x) }""",
    "an initializer that is an output": """g (float[N,4] x) => (float[2] c, float[N,4] z) <float[2] c = {1, 2}> { z =
        Relu(x) }""",
    "an initializer that is an input": """g (float[N,4] x, float[1] w = {1}) => (float[N,4] y) { a = Mul(x, w) y =
        Add(a, w) }""",
    "an initializer that is an input and an output": """g (float[N,4] x, float[1] w = {1}) => (float[1] w, float[N,4]
        y) { y = Mul(x, w) }""",
    "equal initializers, one an input": """g (float[N,4] x, float[1] w = {1}) => (float[N,4] y) <float[1] v = {1}>
        { a = Mul(x, w) y = Div(a, v) }""",
    "sizes that are declared wrong": """g (float[N,4] x) => (float[N,7] y) <int64[2] s = {-1, 2}> { a = Reshape(x, s)
        y = Relu(a) }""",
    "ranks that are declared wrong": "g (float[N,4] x) => (float[A] y) { a = Flatten<axis=0>(x) y = Relu(a) }",
    "inner sizes that are declared wrong": """g (float[N,4] x) => (float[A,B] y) <float[7,9] a> { a = Relu(x) y =
        Flatten(a) }""",
    "an output that nobody names": "g (float[N,4] x) => (float[A,B] y) <int64[1] k = {2}> { y, i = TopK(x, k) }",
    "a free dimension of two names": """g (float[N,4] x, float[M,4] z) => (float[A,B] y) { a = Concat<axis=0>(x, z) s
        = Size(x) b = Relu(a) c = Size(b) d = Sub(c, s) f = Cast<to=1>(d) y = Add(b, f) }""",
}  # fmt: skip


@pytest.mark.parametrize("interface", INTERFACES)
def test_interfaces(interface: str) -> None:
    """Inputs and outputs stay as they were declared, and what they hold."""
    text = INTERFACES[interface]
    model = parse(text.replace(", int64 k", "")) if "unused" in interface else parse(text)
    if "declared wrong" not in interface and "two names" not in interface:
        hold(model)
        return
    hold(model, [{value.name: np.ones((2, 4), np.float32) for value in model.graph.input}])


def test_an_overridable_initializer_is_no_constant() -> None:
    text = "g (float[N,4] x, float[1] w = {1}) => (float[N,4] y) { a = Mul(x, w) y = Relu(a) }"
    model, feed = parse(text), {"x": np.ones((2, 4), np.float32), "w": np.array([3.0], np.float32)}
    hold(model, [feed])
    assert operators(optimized(model)) == ["Mul", "Relu"]


def test_models_of_ir_3_do_not_get_required_inputs() -> None:
    """There each initializer is an input too; what a pass makes must be neither required nor missing."""
    text = "g (float[N,4] x, float[1] w = {1}) => (float[A,B] y) { a = Mul(x, w) b = Flatten(a) y = Relu(b) }"
    hold(parse(text, opset=9, ir_version=3))


TENSORS = {
    "int4": (TensorProto.INT4, ml_dtypes.int4),
    "uint4": (TensorProto.UINT4, ml_dtypes.uint4),
    "float8e4m3fn": (TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
    "float8e5m2": (TensorProto.FLOAT8E5M2, ml_dtypes.float8_e5m2),
    "bfloat16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_of_odd_length(kind: str) -> None:
    """Five elements of half a byte are three bytes; equal ones are merged, unequal ones are not."""
    number, dtype = TENSORS[kind]
    text = """g (float[5] x) => (float[5] y) { a = Cast<to=1>(t) b = Cast<to=1>(u) c = Cast<to=1>(v) d = Sub(a, b) e
        = Mul(d, c) y = Add(x, e) }"""
    model = parse(text, opset=21, ir_version=10)
    for name, items in {"t": [1, 2, 3, 0, 1], "u": [1, 2, 3, 0, 2], "v": [1, 2, 3, 0, 1]}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(items).astype(dtype), name))
    assert {tensor.data_type for tensor in model.graph.initializer} == {number}
    hold(model)


def test_sparse_initializers() -> None:
    values = numpy_helper.from_array(np.array([1.0, 2.0], np.float32), "w")
    indices = numpy_helper.from_array(np.array([1, 3]), "w_indices")
    model = parse("g (float[N,4] x) => (float[N,4] y) { a = Mul(x, w) y = Identity(a) }")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    hold(model)


SEQUENCES = {
    "a sequence": """g (float[N,4] x) => (float[A,B] y) <int64 i = {1}> { a = Identity(x) b = Relu(x) s =
        SequenceConstruct(a, b) t = Identity(s) y = SequenceAt(t, i) }""",
    "a sequence as output": """g (float[N,4] x) => (seq(float[A,B]) y) { a = Identity(x) s = SequenceConstruct(a, a)
        y = Identity(s) }""",
    "an empty sequence": """g (float[N,4] x) => (seq(float[A,B]) y) { s = SequenceEmpty<dtype=1>() y =
        SequenceInsert(s, x) }""",
    "equal empty sequences": """g (float[N,4] x) => (int64 y) { s = SequenceEmpty<dtype=1>() t =
        SequenceEmpty<dtype=1>() a = SequenceInsert(s, x) b = SequenceLength(a) c = SequenceLength(t) y = Sub(b, c)
        }""",
    "an optional": """g (float[N,4] x) => (float[A,B] y, bool h) { o = Optional(x) h = OptionalHasElement(o) y =
        OptionalGetElement(o) }""",
    "a split sequence": """g (float[4,4] x) => (float[A,B] y) <int64 i = {2}> { s = SplitToSequence<axis=1>(x, i) y =
        ConcatFromSequence<axis=0>(s) }""",
    "strings": "g (string[N] x) => (string[N] y) { a = Identity(x) y = Identity(a) }",
}  # fmt: skip


@pytest.mark.parametrize("trap", SEQUENCES)
def test_values_that_are_no_tensors(trap: str) -> None:
    feeds = [{"x": np.array(["a", "", "ü"], object)}] if trap == "strings" else None
    hold(parse(SEQUENCES[trap], opset=18), feeds)


def test_equal_strings_are_kept_apart_or_merged_alike() -> None:
    body = "a = Gather(t, i) y = Identity(a) b = Gather(u, i) z = Equal(a, b)"
    model = parse(f"g (int64 i) => (string y, bool z) {{ {body} }}", opset=19, ir_version=9)
    for name in "tu":
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.STRING, [2], [b"x", b"y"]))
    hold(model, [{"i": np.array(1)}])


def test_names_that_contrib_operators_look_up() -> None:
    """BeamSearch finds the inputs, outputs and weights of its decoder by their names."""
    body = "d (int32[1,1] ids, float[2] past) => (float[2] logits, float[2] present)"
    inside = "a = Identity(past) present = Identity(a) b = Add(a, w) logits = Identity(b)"
    decoder = onnx.parser.parse_graph(f"{body} <float[2] w = {{1, 2}}> {{ {inside} }}")
    model = parse("g (int32[1,4] x) => (int32[1,8] y) { }")
    node = helper.make_node("BeamSearch", ["x"], ["y"], domain="com.microsoft", decoder=decoder)
    model.graph.node.append(node)
    done = optimized(model, verify="structure")
    after = next(attribute.g for attribute in done.graph.node[0].attribute if attribute.name == "decoder")
    for part in ("input", "output"):
        assert [v.name for v in getattr(after, part)] == [v.name for v in getattr(decoder, part)]
    assert [tensor.name for tensor in after.initializer] == ["w"]
