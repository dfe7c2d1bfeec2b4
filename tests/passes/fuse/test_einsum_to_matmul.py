"""einsum-to-matmul: equations of attention and others, against numpy's einsum and ONNX Runtime's."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from conftest import assert_same_outputs, parse
from onnxedge_passes.fuse.linear.einsum_to_matmul import EinsumToMatmul

SIZES = {"b": 2, "h": 3, "t": 4, "s": 5, "d": 6, "k": 3, "i": 4, "j": 5, "c": 2}
EQUATIONS = {
    "bhtd,bhsd->bhts": ["Transpose", "MatMul"],
    "bthd,bshd->bhts": ["Transpose", "Transpose", "MatMul"],
    "bhts,bhsd->bhtd": ["MatMul"],
    "bhts,bshd->bthd": ["Transpose", "MatMul", "Transpose"],
    "btd,dk->btk": ["MatMul"],
    "btd,kd->btk": ["Transpose", "MatMul"],
    "btd,dhk->bthk": ["Reshape", "MatMul", "Reshape"],
    "bthk,hkd->btd": ["Reshape", "Reshape", "MatMul"],
    "bhtd,tsd->bhts": None,
    "ij,j->i": ["MatMul"],
    "j,ji->i": ["MatMul"],
    "bij,bj->bi": ["Reshape", "MatMul", "Reshape"],
    "bj,bij->bi": None,
    "i,j->ij": ["Unsqueeze", "Mul"],
    "bij,bij->bij": ["Mul"],
    "bij,bji->bij": ["Transpose", "Mul"],
    "bij,i->bij": ["Unsqueeze", "Mul"],
    "bd,bd->b": ["Mul", "ReduceSum"],
    "ij,ij->": ["Mul", "ReduceSum"],
    "ij,jk": ["MatMul"],
    "bij->bji": ["Transpose"],
    "bij->b": ["ReduceSum"],
    "bij->jb": ["ReduceSum", "Transpose"],
    "bij,jk->ik": ["ReduceSum", "MatMul"],
    "bhij,bkij->bhk": None,
    "bchd,kchd->bk": None,
    "...td,...sd->...ts": ["Transpose", "MatMul"],
    "...ij,jk->...ik": ["MatMul"],
    "...i->...": ["ReduceSum"],
}


def shape(term: str) -> str:
    return ", ".join(str(n) for n in ([2, 3] if "..." in term else []) + [SIZES[x] for x in term.replace("...", "")])


def graph(equation: str) -> str:
    terms = equation.split("->")[0].split(",")
    inputs = ", ".join(f"float[{shape(term)}] x{i}" for i, term in enumerate(terms))
    names = ", ".join(f"x{i}" for i in range(len(terms)))
    rank = len(equation.split("->")[1].replace("...", "ab")) if "->" in equation else 2
    dims = ", ".join(f"D{i}" for i in range(rank))
    return f'g ({inputs}) => (float[{dims}] y) {{ y = Einsum<equation="{equation}">({names}) }}'


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("opset", [12, 17])
@pytest.mark.parametrize(("equation", "expected"), EQUATIONS.items(), ids=EQUATIONS)
def test_computes_the_same(rewritten, equation: str, expected: list[str] | None, opset: int) -> None:
    text = graph(equation)
    model, reasons = rewritten(EinsumToMatmul(), text, opset=opset)
    assert reasons == []
    assert "Einsum" not in operators(model)
    if expected is not None:
        assert operators(model) == expected
    assert_same_outputs(parse(text, opset=opset), model, exact=False)


def test_a_constant_weight_is_rearranged_at_once(check) -> None:
    head = "g (float[N, T, 2] x) => (float[N, T, 2, 2] y)"
    check(
        EinsumToMatmul(),
        f'{head} <float[2, 2, 2] w = {{1, 2, 3, 4, 5, 6, 7, 8}}> {{ y = Einsum<equation="btd,hkd->bthk">(x, w) }}',
        f"{head} <float[2, 4] w = {{1, 3, 5, 7, 2, 4, 6, 8}}, int64[4] s = {{0, 0, 2, 2}}>"
        " { m = MatMul(x, w) y = Reshape(m, s) }",
    )


def test_dynamic_dimensions(check) -> None:
    head = "g (float[N, H, T, D] q, float[N, H, S, D] k) => (float[N, H, T, S] y)"
    check(
        EinsumToMatmul(),
        f'{head} {{ y = Einsum<equation="bhtd,bhsd->bhts">(q, k) }}',
        f"{head} {{ t = Transpose<perm=[0, 1, 3, 2]>(k) y = MatMul(q, t) }}",
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            'g (float[2, 3] x, float[1, 4] z) => (float[2, 4] y) { y = Einsum<equation="ij,jk->ik">(x, z) }',
            "a summed dimension may be broadcast",
        ),
        (
            'g (float[2, A] x, float[B, 4] z) => (float[2, 4] y) { y = Einsum<equation="ij,jk->ik">(x, z) }',
            "a summed dimension may be broadcast",
        ),
        (
            'g (float[3, 3] x) => (float[3] y) { y = Einsum<equation="ii->i">(x) }',
            "an index is repeated in one term",
        ),
        (
            'g (float[2, T, H, K] x, float[H, K, 4] z) => (float[2, T, 4] y)'
            ' { y = Einsum<equation="bthk,hkd->btd">(x, z) }',
            "the sizes of merged dimensions are not known",
        ),
    ],
)  # fmt: skip
def test_stays_and_is_said(check, text: str, reason: str) -> None:
    assert check(EinsumToMatmul(), text, runs=False, infer=False) == [f"Einsum left as it is: {reason}"]


def test_a_batch_of_one_is_broadcast(rewritten) -> None:
    text = (
        "g (float[1, 3, 4, 6] q, float[2, 3, 5, 6] k) => (float[2, 3, 4, 5] y)"
        ' { y = Einsum<equation="bhtd,bhsd->bhts">(q, k) }'
    )
    model, _ = rewritten(EinsumToMatmul(), text)
    assert operators(model) == ["Transpose", "MatMul"]
    assert_same_outputs(parse(text), model, exact=False)
