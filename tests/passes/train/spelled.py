"""Graphs with operators that have no gradient, by name: opset, and the text."""

from __future__ import annotations


def _of(node: str, shape: str = "N, 4, 5", out: str = "", weights: str = "") -> str:
    """Return a graph of one node on ``x`` whose result goes on and out."""
    made = f"<{weights}>" if weights else ""
    return f"g (float[{shape}] x) => (float[{out or shape}] y) {made} {{ v = {node} y = Neg(v) }}"


def _named(*graphs: tuple[str, int, str]) -> dict[str, tuple[int, str]]:
    return {name: (opset, text) for name, opset, text in graphs}


_ACTIVATIONS = ("HardSigmoid", "HardSwish", "Elu", "Selu", "Celu", "Softplus", "Softsign", "ThresholdedRelu")
_SETTINGS = (
    "HardSigmoid<alpha=0.4,beta=0.3>", "Elu<alpha=1.5>", "Selu<alpha=1.1,gamma=1.3>", "Celu<alpha=0.7>",
    "ThresholdedRelu<alpha=0.3>",
)  # fmt: skip
_PLAIN = [(name, 17, _of(f"{name}(x)")) for name in (*_ACTIVATIONS, *_SETTINGS)]
_REDUCTIONS = ("ReduceMax", "ReduceMin", "ReduceL1", "ReduceSumSquare")
_AXES = [
    *((f"{name} 17", 17, _of(f"{name}<axes=[1]>(x)", out="?, ?, ?")) for name in _REDUCTIONS),
    *((f"{name} 18", 18, _of(f"{name}(x, a)", out="?, ?, ?", weights="int64[1] a = {-2}")) for name in _REDUCTIONS),
]
_SPATIAL = "N, 3, 5, 4"


def _resize(options: str, scales: str = "{1.0, 1.0, 2.0, 1.5}", opset: int = 17) -> tuple[str, int, str]:
    node = f"Resize<{options}>(x, , s)"
    return f"Resize {options} {scales} {opset}", opset, _of(node, _SPATIAL, "?, ?, ?, ?", f"float[4] s = {scales}")


def _transposed(options: str, weight: str = "3, 2, 3, 3", shape: str = _SPATIAL) -> tuple[str, int, str]:
    out = ", ".join("?" * len(shape.split(",")))
    options = f"<{options}>" if options else ""
    text = f"g (float[{shape}] x) => (float[{out}] y) <float[{weight}] w> {{ y = ConvTranspose{options}(x, w) }}"
    return f"ConvTranspose{options} {weight}", 17, text


GRAPHS = _named(
    *_PLAIN,
    *_AXES,
    ("Mish", 18, _of("Mish(x)")),
    ("PRelu", 17, _of("PRelu(x, s)", weights="float[4, 1] s = {0.5, -0.5, 0.0, 2.0}")),
    ("ReduceLogSum", 17, "g (float[N, 4] x) => (float[?] y) { e = Exp(x) y = ReduceLogSum<axes=[1],keepdims=0>(e) }"),
    ("ReduceMax of all", 17, "g (float[N, 4] x) => (float y) { y = ReduceMax<keepdims=0>(x) }"),
    ("ReduceMax, two axes", 17, "g (float[N, 4, 5] x) => (float[?] y) { y = ReduceMax<axes=[-1, 1],keepdims=0>(x) }"),
    ("Sum", 17, _of("Sum(x, x, c)", weights="float[5] c = {1, 2, 3, 4, 5}")),
    ("Sum of one", 17, _of("Sum(x)")),
    ("Mean", 17, _of("Mean(x, c, x)", weights="float[5] c = {1, 2, 3, 4, 5}")),
    ("Max of three", 17, _of("Max(x, c, d)", weights="float[5] c = {1, 2, 3, 4, 5}, float d = {0.5}")),
    ("Min of one", 17, _of("Min(x)")),
    ("InstanceNormalization", 17, _of("InstanceNormalization(x, s, b)", weights="float[4] s, float[4] b")),
    ("InstanceNormalization18", 18, _of("InstanceNormalization<epsilon=0.1>(x, s, b)", _SPATIAL,
     weights="float[3] s, float[3] b")),
    ("GroupNormalization18", 18, _of("GroupNormalization<num_groups=2>(x, s, b)", weights="float[2] s, float[2] b")),
    ("GroupNormalization21", 21, _of("GroupNormalization<num_groups=2>(x, s, b)", "N, 4, H, W",
     weights="float[4] s, float[4] b")),
    ("LayerNormalization", 17, _of("LayerNormalization<axis=1>(x, s)", weights="float[4, 5] s")),
    ("GlobalMaxPool", 17, _of("GlobalMaxPool(x)", _SPATIAL, "?, ?, ?, ?")),
    ("GlobalMaxPool of any size", 17, _of("GlobalMaxPool(x)", "N, 3, H, W", "?, ?, ?, ?")),
    ("DepthToSpace", 17, _of("DepthToSpace<blocksize=2>(x)", "N, 8, 3, 2", "?, ?, ?, ?")),
    ("DepthToSpace CRD", 17, _of('DepthToSpace<blocksize=2,mode="CRD">(x)', "N, 8, 3, 2", "?, ?, ?, ?")),
    ("SpaceToDepth", 17, _of("SpaceToDepth<blocksize=2>(x)", "N, 3, 4, 6", "?, ?, ?, ?")),
    *(
        (f"Slice {bounds}", 17, _of("Slice(x, s, e, a, t)", out="?, ?, ?",
         weights="int64[2] s = {{{}, {}}}, int64[2] e = {{{}, {}}}, int64[2] a = {{-1, 1}}, int64[2] t = {{{}, {}}}"
         .format(*bounds)))
        for bounds in ((-1, 0, -99, 99, -1, 1), (9, 3, 0, -9, -2, -1), (3, 1, 0, 3, -1, 2), (1, 2, 0, 0, -1, -2))
    ),
    ("Transpose", 17, _of("Transpose(x)", out="?, ?, ?")),
    _resize('mode="nearest"'),
    _resize('mode="nearest"', "{1.0, 1.0, 2.0, 2.0}"),
    _resize('mode="nearest",nearest_mode="floor",coordinate_transformation_mode="asymmetric"', "{1.0, 1.0, 2.0, 0.5}"),
    _resize('mode="linear"'),
    _resize('mode="linear",coordinate_transformation_mode="align_corners"'),
    _resize('mode="linear",coordinate_transformation_mode="asymmetric"', "{1.0, 1.0, 0.6, 2.0}"),
    _resize('mode="cubic",cubic_coeff_a=-0.5', "{1.0, 1.0, 2.0, 2.0}"),
    _resize('mode="linear",antialias=1', "{1.0, 1.0, 0.5, 0.5}", 18),
    _resize('mode="linear"', "{1.0, 1.0, 1.0, 1.0}"),
    ("Resize to sizes", 17, _of('Resize<mode="linear">(x, , , s)', "2, 3, 5, 4", "?, ?, ?, ?",
     "int64[4] s = {2, 3, 7, 8}")),
    ("Resize some axes", 18, _of('Resize<mode="nearest",axes=[2, 3]>(x, , , s)', _SPATIAL, "?, ?, ?, ?",
     "int64[2] s = {7, 8}")),
    _transposed(""),
    _transposed("strides=[2, 2]"),
    _transposed("strides=[2, 2],pads=[1, 1, 1, 1],output_padding=[1, 1]"),
    _transposed("strides=[3, 1],pads=[1, 0, 0, 2]", "3, 2, 2, 3"),
    _transposed("dilations=[2, 1],pads=[3, 1, 3, 1]"),
    _transposed("strides=[4, 4]", "3, 2, 2, 2"),
    _transposed("group=2,strides=[2, 2]", "4, 3, 3, 2", "N, 4, 5, 4"),
    _transposed('auto_pad="SAME_UPPER",strides=[2, 2]'),
    _transposed('auto_pad="VALID"'),
    _transposed("strides=[2]", "3, 2, 4", "N, 3, 5"),
    _transposed("pads=[1, 1, 1, 1]", shape="N, 3, H, W"),
    *(
        (f"{op} {pad} {stride}", 17, _of(
            f'{op}<kernel_shape=[3, 2],auto_pad="{pad}",strides=[{stride}, 2]>(x{", w" if op == "Conv" else ""})',
            "N, 2, 6, 7", "?, ?, ?, ?", "float[3, 2, 3, 2] w" if op == "Conv" else ""))
        for op in ("Conv", "MaxPool", "AveragePool")
        for pad in ("SAME_UPPER", "SAME_LOWER", "VALID")
        for stride in (1, 3)
    ),
    *(
        (f"AveragePool {options}", 19, _of(f"AveragePool<{options}>(x)", "N, 2, 9, 12", "?, ?, ?, ?"))
        for options in (
            "kernel_shape=[9, 12]", "kernel_shape=[3, 4],strides=[3, 4]", "kernel_shape=[3, 2],strides=[2, 1]",
            "kernel_shape=[3, 3],pads=[1, 1, 1, 1]", "kernel_shape=[3, 3],pads=[1, 0, 1, 2],count_include_pad=1",
            "kernel_shape=[3, 3],strides=[2, 2],ceil_mode=1",
            "kernel_shape=[3, 3],strides=[2, 4],ceil_mode=1,pads=[1, 1, 1, 1]",
            "kernel_shape=[3, 3],strides=[2, 4],ceil_mode=1,pads=[1, 1, 1, 1],count_include_pad=1",
            "kernel_shape=[2, 3],dilations=[2, 1]",
        )
    ),
    ("AveragePool of any size", 17, _of("AveragePool<kernel_shape=[2, 2]>(x)", "N, 2, H, W", "?, ?, ?, ?")),
    ("AveragePool1d", 17, _of("AveragePool<kernel_shape=[2],pads=[1, 0]>(x)", "N, 2, 7", "?, ?, ?")),
    ("Conv of any size", 17, _of('Conv<auto_pad="SAME_UPPER">(x, w)', "N, 2, H, W", "?, ?, ?, ?",
     "float[3, 2, 4, 3] w")),
)  # fmt: skip
