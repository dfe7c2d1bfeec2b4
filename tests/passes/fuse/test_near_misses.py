"""Every fusion that users ask after says why it did not happen: one near miss of each, with rule, reason and node."""

from __future__ import annotations

import onnx
import pytest
from traps import parse

import onnxedge

IMAGE, ROWS, TOKENS, OTHER = "float[N, 2, 4, 4] x", "float[N, 2] x", "float[N, 5, 4] x", "float[N, 5, 4] u"
W, M, OTHER_M = "float[2, 2, 1, 1] w={1,2,3,4}", "float[2, 2] w={1,2,3,4}", "float[2, 2] z={4,3,2,1}"
K, S, G = "float[2, 1, 1] k={1,2}", "float[2] s={1,2}", "float[4] s={1,2,3,4}, float[4] b={1,2,3,4}"
ZERO, ONE, TWO, E, SLOPE = "float z={0}", "float o={1}", "float q={2}", "float e={1e-5}", "float k={1.702}"
CUBE, WRONG = "float q={3}, float k={0.044715}, float s={0.7978845}, float h={0.5}", "float r={1.7}, float h={0.5}"
GROUPS = "int64[3] s={0,2,-1}, float[2] o={1,1}, float[2] z={0,0}, int64[4] t={0,4,6,6}"
PADS, TABLE = "int64[8] p={0,0,1,1,0,0,1,1}", "float[2, 4] w={1,2,3,4,5,6,7,8}"
SQUARE = "float[4, 4] w={1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}"
SIZES, CAUSAL = "int64[4] n={0,0,2,2}, int64[3] l={0,0,4}, float h={0.5}", "float[2, 2] k={0,-3.4e38,0,0}"

BN = "y=BatchNormalization(c, s, s, s, s) t=Relu(c)"
NORM = "m=ReduceMean<axes=[{0}]>(x) d=Sub(x, m) p=Pow(d, q) v=ReduceMean<axes=[{0}]>(p) a=Add(v, e) r=Sqrt(a)"
ERF = "a=Div(x, r) b=Erf(a) c=Add(b, o) d=Mul(x, c) y=Mul(d, h)"
TANH = "p=Pow(x, q) a=Mul(p, k) b=Add(x, a) c=Mul(b, s) d=Tanh(c) e=Add(d, o) f=Mul(x, e) y=Mul(f, h) t=Relu(e)"
ROTATION = "a, b=Split<axis=3, num_outputs=2>(x) n=Neg(b) r=Concat<axis=3>(n, a) p=Mul(x, c) q=Mul(r, s) y=Add(p, q)"
HEADS = (
    "u=Reshape(x, n) f=Transpose<perm=[0, 2, 1, 3]>(u) g=Transpose<perm=[0, 2, 3, 1]>(u) a=MatMul(f, g) c=Mul(a, h)"
    "{} i=MatMul(p, f) j=Transpose<perm=[0, 2, 1, 3]>(i) y=Reshape(j, l)"
)
MULTI = "b=com.microsoft.MultiHeadAttention<num_heads=2>(a, u, x)"
SHARED, READ = "input has other readers", "a value inside it has other readers"

#: what is looked for -> "inputs | initializers | nodes"; rule, part of its reason, node; if they matter target, opset
MISSES: dict[str, tuple[str, ...]] = {
    "Conv, BatchNormalization": (
        f"{IMAGE} | {W}, {S} | c=Conv(x, w) {BN}",
        "fold-batchnorm", SHARED, "BatchNormalization y"),
    "ConvTranspose, BatchNormalization": (
        f"{IMAGE} | {W}, {S} | c=ConvTranspose(x, w) {BN}",
        "fold-batchnorm", SHARED, "BatchNormalization y"),
    "Gemm, BatchNormalization": (
        f"{ROWS} | {M}, {S} | c=Gemm(x, w, s) {BN}",
        "fold-batchnorm", SHARED, "BatchNormalization y"),
    "MatMul, BatchNormalization": (
        f"{ROWS} | {M}, {S} | c=MatMul(x, w) {BN}",
        "fold-batchnorm", SHARED, "BatchNormalization y"),
    "Conv, Mul": (
        f"{IMAGE} | {W}, {K} | c=Conv(x, w) y=Mul(c, k) t=Relu(c)",
        "fold-affine", SHARED, "Mul y"),
    "ConvTranspose, Add": (
        f"{IMAGE} | {W}, {K} | c=ConvTranspose(x, w) y=Add(c, k) t=Relu(c)",
        "fold-affine", SHARED, "Add y"),
    "Gemm, Mul": (
        f"{ROWS} | {M}, {S} | c=Gemm(x, w, s) y=Mul(c, s) t=Relu(c)",
        "fold-affine", SHARED, "Mul y"),
    "MatMul, Mul": (
        f"{ROWS} | {M}, {S} | c=MatMul(x, w) y=Mul(c, s) t=Relu(c)",
        "fold-affine", SHARED, "Mul y"),
    "Add, Conv": (
        f"{IMAGE} | {W}, {K} | c=Add(x, k) y=Conv<pads=[1,1,1,1]>(c, w)",
        "fold-affine-before", "padding", "Conv y"),
    "Mul, ConvTranspose": (
        f"{IMAGE} | {W}, {K} | c=Mul(x, k) y=ConvTranspose(c, w) t=Relu(c)",
        "fold-affine-before", "others read it", "ConvTranspose y"),
    "Mul, Gemm": (
        f"{ROWS} | {M}, {S} | c=Mul(x, s) y=Gemm(c, w) t=Relu(c)",
        "fold-affine-before", "others read it", "Gemm y"),
    "Add, MatMul": (
        f"{ROWS} | {M}, {S} | c=Add(x, s) y=MatMul(c, w)",
        "fold-affine-before", "no bias", "MatMul y"),
    "Pad, Conv": (
        f'{IMAGE} | {W}, {PADS} | c=Pad<mode="reflect">(x, p) y=Conv(c, w)',
        "fold-pad", "zeros", "Conv y"),
    "Pad, pooling": (
        f"{IMAGE} | {PADS} | c=Pad(x, p) y=MaxPool<kernel_shape=[2,2]>(c)",
        "fold-pad", "may be", "MaxPool y"),
    "MatMul, Add": (
        f"{ROWS} | {M}, {S} | c=MatMul(x, w) y=Add(c, s) t=Relu(c)",
        "matmul-to-gemm", "other readers", "Add y"),
    "QKV": (
        f"{ROWS}, float[2, 2] z | {M} | y=MatMul(x, w) t=MatMul(x, z)",
        "merge-projections", "a weight is computed at run time", "MatMul t", "ort-cuda"),
    "QKV on the CPU": (
        f"{ROWS} | {M}, {OTHER_M} | y=MatMul(x, w) t=MatMul(x, z)",
        "merge-projections", "does not gain", "MatMul y"),
    "Einsum": (
        'float[N, 3, 3] x | | y=Einsum<equation="nii->ni">(x)',
        "einsum-to-matmul", "repeated", "Einsum y"),
    "GELU": (
        f"{TOKENS} | {ONE}, {WRONG} | {ERF}",
        "fuse-gelu", "another function", "Erf b"),
    "FastGelu": (
        f"{TOKENS} | {ONE}, {CUBE} | {TANH}",
        "fuse-gelu", READ, "Tanh d"),
    "QuickGelu": (
        f"{TOKENS} | {SLOPE} | a=Mul(x, k) b=Sigmoid(a) y=Mul(x, b)",
        "fuse-quick-gelu", "no kernel", "Sigmoid b", "generic"),
    "SiLU": (
        f"{TOKENS} | | b=Sigmoid(x) y=Mul(x, b)",
        "fuse-silu", "no kernel", "Sigmoid b", "generic"),
    "HardSwish": (
        f"{TOKENS} | | b=HardSigmoid<alpha=0.1666667>(x) y=Mul(x, b)",
        "fuse-hard-swish", "no kernel", "HardSigmoid b", "ort-cpu", "13"),
    "Mish": (
        f"{TOKENS} | | a=Softplus(x) b=Tanh(a) y=Mul(x, b)",
        "fuse-mish", "no kernel", "Tanh b", "generic"),
    "Softplus": (
        f"{TOKENS} | {ONE} | a=Exp(x) b=Add(a, o) y=Log(b)",
        "fuse-softplus", "overflow", "Log y"),
    "LayerNormalization": (
        f"{TOKENS} | {E}, {TWO} | {NORM.format(0)} y=Div(d, r)",
        "fuse-layer-norm", "axes of unknown size", "Sqrt r"),
    "RMSNormalization": (
        f"{TOKENS} | {E}, {TWO} | p=Pow(x, q) v=ReduceMean<axes=[-1]>(p) a=Add(v, e) r=Sqrt(a) y=Div(x, r)",
        "fuse-rms-norm", "opset 23", "Sqrt r", "generic"),
    "GroupNormalization": (
        f"float[N, 4, 6, 6] x | {GROUPS} | a=Reshape(x, s) n=InstanceNormalization(a, o, z) y=Reshape(n, t)",
        "fuse-group-norm", "opset 21", "InstanceNormalization n"),
    "InstanceNormalization": (
        f"{IMAGE} | {E}, {TWO} | {NORM.format('2, 3')} y=Div(d, r) t=Relu(a)",
        "fuse-instance-norm", READ, "Sqrt r", "generic", "13"),
    "SkipLayerNormalization": (
        f"{TOKENS}, float[1, 5, 1] u | {G} | a=Add(x, u) y=LayerNormalization(a, s, b)",
        "fuse-skip-layer-norm", "not known to be equal", "LayerNormalization y", "ort-cuda"),
    "SkipLayerNormalization on the CPU": (
        f"{TOKENS}, {OTHER} | {G} | a=Add(x, u) y=LayerNormalization(a, s, b)",
        "fuse-skip-layer-norm", "lists no kernel", "LayerNormalization y"),
    "BiasGelu": (
        f"{TOKENS}, {OTHER} | | a=Add(x, u) y=Gelu(a)",
        "fuse-bias-gelu", "no constant vector", "Add a", "ort-cuda", "20"),
    "EmbedLayerNormalization": (
        f"int64[N, 5] i, {TOKENS} | {G}, {TABLE} | c=Gather(w, i) a=Add(c, x) y=LayerNormalization(a, s, b)",
        "fuse-embed-layer-norm", "something else is added", "Gather c", "ort-cuda"),
    "rotary": (
        f"float[N, 2, 5, 4] x, float[1, 1, 5, 4] c, float[1, 1, 5, 4] s | | {ROTATION}",
        "fuse-rotary-embedding", "cos and sin are not known to be equal", "Add y", "ort-cuda", "18"),
    "Attention": (
        f"{TOKENS} | {SIZES} | {HEADS.format(' p=Softmax<axis=2>(c)')}",
        "fuse-attention", "not over the keys", "MatMul i", "generic", "23"),
    "MultiHeadAttention": (
        f"{TOKENS}, float[N, 1, 5, 5] k | {SIZES} | {HEADS.format(' b=Add(c, k) p=Softmax(b)')}",
        "fuse-attention", "MultiHeadAttention with a mask", "MatMul i"),
    "GroupQueryAttention": (
        f"float[N, 2, 4] x | {SIZES}, {CAUSAL} | {HEADS.format(' b=Add(c, k) p=Softmax(b)')}",
        "fuse-attention", "GroupQueryAttention needs", "MatMul i"),
    "packed attention": (
        f"{TOKENS}, {OTHER} | {SQUARE} | a=MatMul(x, w) {MULTI} y=Shape(b)",
        "pack-attention", "not all products of one value", "MatMul a", "ort-cuda"),
    "Transposes": (
        "float[N, 4, 6] x | | a=Transpose<perm=[0, 2, 1]>(x) b=Flatten<axis=2>(a) y=Relu(b)",
        "push-transposes", "Transpose not moved past it", "Flatten b"),
    "Transposes around an unknown operator": (
        "float[N, 4, 6] x | | a=Transpose<perm=[0, 2, 1]>(x) b=com.microsoft.Unheard(a) y=Shape(b)",
        "push-transposes", "what it does with its axes is not known", "com.microsoft::Unheard b"),
    "Clips": (
        f"{TOKENS}, float l | {ZERO} | c=Clip(x, z) y=Clip(c, l)",
        "merge-clips", "not constant", "Clip y"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISSES.values(), ids=MISSES)
def test_says_why_not(case: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    text, rule, reason, node, target, opset = (*case, *("ort-cpu", "17")[len(case) - 4 :])
    inputs, initializers, nodes = text.split("|")
    outputs = "y, t" if " t=" in nodes else "y"
    model = parse(f"g ({inputs}) => ({outputs}) <{initializers}> {{ {nodes} }}", int(opset), 8 if opset < "21" else 11)
    monkeypatch.setattr("onnxedge.measure.Judge.speed", lambda *_: None)
    notes = onnxedge.optimize(onnx.shape_inference.infer_shapes(model), "fuse", target=target).report.notes
    found = [note.where for note in notes if note.rule == rule and reason in note.reason]
    assert found == [node.replace(" ", " '-> ") + "'"], notes
