"""smooth: large channels behind a normalization are moved into the weights that read them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnxedge_passes.quantize import Int8
from precision import apply, outputs, sqnr
from test_equalize_slots import parsed

from onnxedge.api import Array, constant, set_constant

NORMS = {
    "layer": "n{i} = LayerNormalization <axis=-1> (x{i}, w{i}0, w{i}1)",
    "simple": "q{i} = Mul(x{i}, x{i}) m{i} = ReduceMean(q{i}, last) e{i} = Add(m{i}, tiny) r{i} = Sqrt(e{i}) "
    "d{i} = Div(x{i}, r{i}) n{i} = Mul(d{i}, w{i}0)",
}
WIDTH, INNER, LAYERS = 64, 96, 2


def network(norm: str, spread: float) -> ir.Model:
    """Return pre-norm blocks with a gate; one channel in 16 behind each normalization is made larger."""
    body, sizes = "", []
    for i in range(LAYERS):
        body += NORMS[norm].format(i=i)
        body += f" a{i} = MatMul(n{i}, w{i}2) b{i} = Add(a{i}, w{i}3) g{i} = Gelu(b{i}) u{i} = MatMul(n{i}, w{i}4)"
        body += f" h{i} = Mul(g{i}, u{i}) o{i} = MatMul(h{i}, w{i}5) x{i + 1} = Add(o{i}, x{i}) "
        shapes = [(WIDTH,), (WIDTH,), (WIDTH, INNER), (INNER,), (WIDTH, INNER), (INNER, WIDTH)]
        sizes += [f"float[{','.join(map(str, shape))}] w{i}{n}" for n, shape in enumerate(shapes)]
    text = f"g (float[N,8,{WIDTH}] x, {', '.join(sizes)}, float[{WIDTH},12] w9) => (float[N,8,12] y)"
    body = f"x0 = Identity(x) {body} y = MatMul(x{LAYERS}, w9)"
    model = parsed(f"{text} <float tiny = {{1e-5}}, int64[1] last = {{-1}}> {{ {body} }}", 20)
    rng = np.random.default_rng(5)
    for node in model.graph:
        weight = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if node.op_type == "MatMul" and weight is not None:
            set_constant(node, 1, weight / np.float32(np.sqrt(weight.shape[0])))
    for i in range(LAYERS):
        factor = np.where(rng.permutation(WIDTH) % 16 == 0, spread, 1.0).astype(np.float32)
        for name, by in (
            (f"w{i}0", factor),
            (f"w{i}1", factor),
            (f"w{i}2", 1 / factor[:, None]),
            (f"w{i}4", 1 / factor[:, None]),
        ):
            value = next(v for v in model.graph.initializers.values() if (v.name or "").split("_")[0] == name)
            array = constant(value)
            assert array is not None
            value.const_value = ir.tensor((array * by).astype(np.float32), name=value.name)
    return model


def rows(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=(count, 8, WIDTH)).astype(np.float32)


def quantized(model: ir.Model, **options: Any) -> tuple[float, dict[str, Any]]:
    """Return SQNR on samples not seen, and figures."""
    before = model.clone()
    result, _ = apply(
        Int8(min_sqnr=-99, method="minmax", rounding="nearest", **options), model, {"x": rows(32, 1)}, "generic"
    )
    held = {"x": rows(16, 2)}
    return sqnr(outputs(before, held)[0], outputs(model, held)[0]), dict(result.figures)


@pytest.mark.parametrize("norm", list(NORMS))
def test_large_channels_are_smoothed(norm: str) -> None:
    even, _ = quantized(network(norm, 1.0))
    plain, figures = quantized(network(norm, 50.0), equalize="off", smooth="off")
    smoothed, found = quantized(network(norm, 50.0), equalize="off")
    assert "scaled_parts" not in figures
    assert found["scaled_parts"] == LAYERS
    assert plain < even - 8
    assert smoothed > even - 3


def test_each_kind_by_itself() -> None:
    """The gated products can be scaled, too: the factor runs through the gate to the next weight."""
    _, both = quantized(network("layer", 50.0))
    assert both["scaled_parts"] > LAYERS
    _, figures = quantized(network("layer", 50.0), smooth="off")
    assert figures.get("scaled_parts", 0) <= LAYERS


def test_what_is_skipped_is_left_alone() -> None:
    """Where all that reads a normalization stays float, nothing is moved."""
    model = network("layer", 50.0)
    for node in model.graph:
        node.name = f"n_{node.outputs[0].name}"
    before = {value.name: constant(value) for value in model.graph.initializers.values()}
    apply(
        Int8(mode="static", min_sqnr=-99, method="minmax", rounding="nearest", skip="n_a? n_u?"),
        model,
        {"x": rows(32, 1)},
        "generic",
    )
    norms = [node for node in model.graph if node.op_type == "LayerNormalization"]
    assert len(norms) == LAYERS
    for node in norms:
        kept = [array for array in before.values() if array is not None and array.shape == (WIDTH,)]
        scale = constant(node.inputs[1])
        assert scale is not None
        assert any(np.array_equal(scale, array) for array in kept)
