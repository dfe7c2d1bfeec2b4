"""fuse-rotary-embedding: halves and neighbours, layouts, positions of the batch, and turns of another kind."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnxedge_passes.fuse.rotary.fuse_rotary_embedding import FuseRotaryEmbedding

from onnxedge.api import Session

HEAD = "g (float[B, 2, T, 4] x, float[{b}, T, 2] f) => (float[B, 2, T, 4] y)"
NUMBERS = (
    "int64[1] zero = {0}, int64[1] two = {2}, int64[1] end = {9223372036854775807}, int64[1] last = {-1},"
    " int64[1] one = {1}, int64[4] pairs = {0, 0, 0, 4}"
)
ANGLES = "e = Concat<axis=-1>(f, f) c = Cos(e) s = Sin(e) cos = Unsqueeze(c, one) sin = Unsqueeze(s, one)"
HALVES = "lo = Slice(x, zero, two, last) hi = Slice(x, two, end, last) n = Neg(hi) r = Concat<axis=-1>(n, lo)"
PARTS = "lo, hi = Split<axis=-1>(x) n = Neg(hi) r = Concat<axis=-1>(n, lo)"
SUM = "u = Mul(x, cos) w = Mul(r, sin) y = Add(u, w)"


def kinds(model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.fixture
def fused(applied):
    """Return a function that fuses a text, compares outputs, and returns the operators left and the reasons given."""

    def run(text: str, target: str, opset: int = 17) -> tuple[list[str], list[str]]:
        head = f'<ir_version: {8 if opset < 23 else 11}, opset_import: ["": {opset}, "com.microsoft": 1]>'
        proto = onnx.parser.parse_model(f"{head} {text}")
        model = ir.serde.deserialize_model(proto)
        before = model.clone()
        reasons = applied(FuseRotaryEmbedding(), model, target)[1]
        first, second = Session(before, level="disable"), Session(model, level="disable")
        for seed, (batch, tokens) in enumerate(((2, 3), (1, 1), (3, 5))):
            rng = np.random.default_rng(seed)
            named = {"B": batch, "T": tokens}
            feed = {
                spec.name: rng.standard_normal([d if isinstance(d, int) else named[str(d)] for d in spec.shape]).astype(
                    np.float32
                )
                for spec in first.inputs
            }
            for mine, other in zip(first.run(feed).values(), second.run(feed).values(), strict=True):
                np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5)
        assert applied(FuseRotaryEmbedding(), model, target)[0].rewrites == 0
        return kinds(model), reasons

    return run


@pytest.mark.parametrize(("target", "opset"), [("ort-cpu", 17), ("ort-cuda", 17), ("generic", 23)])
@pytest.mark.parametrize("batch", ["1", "B"])
@pytest.mark.parametrize("turn", [HALVES, PARTS], ids=["Slice", "Split"])
def test_fuses(fused, turn: str, batch: str, target: str, opset: int) -> None:
    if opset > 17:
        turn = turn.replace("Split<axis=-1>", "Split<axis=-1, num_outputs=2>")
    text = f"{HEAD.format(b=batch)} <{NUMBERS}> {{ {ANGLES} {turn} {SUM} }}"
    left, reasons = fused(text, target, opset)
    assert reasons == []
    assert left.count("RotaryEmbedding") == 1
    assert not {"Neg", "Mul", "Add"} & set(left)


def test_tokens_before_heads(fused) -> None:
    head = "g (float[B, T, 2, 4] x, float[1, T, 2] f) => (float[B, T, 2, 4] y)"
    text = f"{head} <{NUMBERS}> {{ {ANGLES.replace('one)', 'two)')} {HALVES} {SUM} }}"
    assert fused(text, "ort-cpu")[0].count("RotaryEmbedding") == 1


def test_heads_are_moved_behind_the_kernel(fused) -> None:
    head = "g (float[B, T, 8] a, float[1, T, 2] f) => (float[B, 2, T, 4] y)"
    text = (
        f"{head} <{NUMBERS}, int64[4] hs = {{0, 0, 2, 4}}>"
        f" {{ h = Reshape(a, hs) x = Transpose<perm=[0, 2, 1, 3]>(h) {ANGLES} {HALVES} {SUM} }}"
    )
    left = fused(text, "ort-cpu")[0]
    assert left[-3:] == ["RotaryEmbedding", "Reshape", "Transpose"]
    assert left.count("Transpose") == 1


NEIGHBOURS = (
    "even = Slice(x, zero, end, last, two) odd = Slice(x, one, end, last, two) n = Neg(odd)"
    " nu = Unsqueeze(n, last) eu = Unsqueeze(even, last) st = Concat<axis=-1>(nu, eu) r = Reshape(st, pairs)"
)


def test_neighbours(fused) -> None:
    head = "g (float[B, 2, 3, 4] x) => (float[B, 2, 3, 4] y)"
    tables = [
        f"float[3, 4] {name} = {{{', '.join(str(i // 2 * step) for i in range(12))}}}"
        for name, step in (("cos", 0.1), ("sin", 0.2))
    ]
    text = f"{head} <{NUMBERS}, {', '.join(tables)}> {{ {NEIGHBOURS} {SUM} }}"
    assert fused(text, "ort-cpu")[0] == ["RotaryEmbedding"]


OTHERS = {
    "another order": HALVES.replace("(n, lo)", "(lo, n)"),
    "no sign": HALVES.replace("Neg(hi)", "Identity(hi)"),
    "another value": HALVES.replace("Slice(x, two", "Slice(z, two").replace("lo = ", "z = Exp(x) lo = "),
}


@pytest.mark.parametrize("turn", OTHERS.values(), ids=OTHERS)
def test_stays(fused, turn: str) -> None:
    left, reasons = fused(f"{HEAD.format(b='1')} <{NUMBERS}> {{ {ANGLES} {turn} {SUM} }}", "ort-cpu")
    assert "RotaryEmbedding" not in left
    assert reasons == []


def test_halves_that_differ_are_said(fused) -> None:
    angles = ANGLES.replace("Concat<axis=-1>(f, f)", "Concat<axis=-1>(f, g)").replace("e =", "g = Exp(f) e =")
    reasons = fused(f"{HEAD.format(b='1')} <{NUMBERS}> {{ {angles} {HALVES} {SUM} }}", "ort-cpu")[1]
    assert reasons == ["rotary embedding not fused: cos and sin are not known to be equal for both features of a pair"]


def test_no_kernel_is_said(fused) -> None:
    reasons = fused(f"{HEAD.format(b='1')} <{NUMBERS}> {{ {ANGLES} {HALVES} {SUM} }}", "generic")[1]
    assert reasons == ["rotary embedding not fused: target generic has no kernel for it at this opset"]


PAIRS = {
    "Split": "z = Reshape(x, apart) a5, b5 = Split<axis=-1>(z, ones) a = Squeeze(a5, last) b = Squeeze(b5, last)",
    "Gather": "z = Reshape(x, apart) a = Gather<axis=-1>(z, first) b = Gather<axis=-1>(z, second)",
    "Slice": "a = Slice(x, zero, end, last, two) b = Slice(x, one, end, last, two)",
}
TURNED = "ac = Mul(a, c) bs = Mul(s, b) as = Mul(a, s) bc = Mul(b, c) p = Sub(ac, bs) q = Add(bc, as)"
STACKED = "pu = Unsqueeze(p, last) qu = Unsqueeze(q, last) st = Concat<axis=-1>(pu, qu) y = Reshape(st, whole)"
COMPLEX = (
    f"{NUMBERS}, int64[5] apart = {{0, 0, 0, -1, 2}}, int64[4] whole = {{0, 0, 3, 4}}, int64[2] ones = {{1, 1}},"
    " int64 first = {0}, int64 second = {1}"
)
POSITIONS = "g (float[B, T, 3, 4] x, float[{b}, T, 1, 2] f) => (float[B, T, 3, 4] y)"


@pytest.mark.parametrize(("target", "opset"), [("ort-cpu", 17), ("ort-cuda", 17), ("generic", 23)])
@pytest.mark.parametrize("batch", ["1", "B"])
@pytest.mark.parametrize("pick", PAIRS.values(), ids=PAIRS)
def test_complex_numbers(fused, pick: str, batch: str, target: str, opset: int) -> None:
    text = f"{POSITIONS.format(b=batch)} <{COMPLEX}> {{ c = Cos(f) s = Sin(f) {pick} {TURNED} {STACKED} }}"
    left, reasons = fused(text, target, opset)
    assert reasons == []
    assert left.count("RotaryEmbedding") == 1
    assert not {"Mul", "Sub", "Add", "Split", "Squeeze"} & set(left)


def test_complex_numbers_in_columns(fused) -> None:
    text = (
        f"{POSITIONS.format(b='1')} <{COMPLEX}> {{ u = Unsqueeze(f, last) c = Cos(u) s = Sin(u) z = Reshape(x, apart)"
        f" a = Slice(z, zero, one, last) b = Slice(z, one, two, last) {TURNED} st = Concat<axis=4>(p, q)"
        " y = Reshape(st, whole) }"
    )
    left = fused(text, "ort-cpu")[0]
    assert left.count("RotaryEmbedding") == 1
    assert not {"Mul", "Sub", "Add", "Concat"} & set(left)


def test_complex_numbers_whose_parts_are_halves(fused) -> None:
    pick = "a = Slice(x, zero, two, last) b = Slice(x, two, end, last)"
    text = (
        f"{HEAD.format(b='1')} <{NUMBERS}> {{ g = Unsqueeze(f, one) c = Cos(g) s = Sin(g) {pick} {TURNED}"
        " y = Concat<axis=3>(p, q) }"
    )
    assert fused(text, "ort-cpu")[0].count("RotaryEmbedding") == 1


def test_tables_whose_shape_is_not_known(fused) -> None:
    head = "g (float[B, T, 3, 4] x) => (float[B, T, 3, 4] y)"
    tables = [
        f"float[9, 2] {name} = {{{', '.join(str(i * step) for i in range(18))}}}"
        for name, step in (("k", 0.1), ("l", 0.2))
    ]
    count = "h = Shape(x) t = Gather(h, one) c2 = Slice(k, zero, t, zero) s2 = Slice(l, zero, t, zero)"
    heads = "c = Reshape(c2, rows) s = Reshape(s2, rows)"
    constants = f"{COMPLEX}, int64[3] rows = {{-1, 1, 2}}, {', '.join(tables)}"
    text = f"{head} <{constants}> {{ {count} {heads} {PAIRS['Split']} {TURNED} {STACKED} }}"
    assert fused(text, "ort-cpu")[0].count("RotaryEmbedding") == 1


def test_positions_of_a_known_batch_are_constant(fused) -> None:
    text = f"{POSITIONS.format(b='B')} <{COMPLEX}> {{ c = Cos(f) s = Sin(f) {PAIRS['Split']} {TURNED} {STACKED} }}"
    left = fused(text.replace("[B, T", "[3, 5"), "ort-cpu")[0]
    assert left.count("RotaryEmbedding") == 1
    assert "Range" not in left


def test_one_token(fused) -> None:
    text = f"{POSITIONS.format(b='1')} <{COMPLEX}> {{ c = Cos(f) s = Sin(f) {PAIRS['Split']} {TURNED} {STACKED} }}"
    assert fused(text.replace("T,", "1,"), "ort-cpu")[0].count("RotaryEmbedding") == 1


@pytest.mark.parametrize("repeat", ["Tile", "Expand"])
def test_tables_that_are_written_twice(fused, repeat: str) -> None:
    numbers = NUMBERS.replace("pairs = {0, 0, 0, 4}", "pairs = {0, 0, 3, 4}")
    numbers += ", int64[5] twice = {1, 1, 1, 1, 2}, int64[4] flat = {0, 0, 1, -1}"
    tables = " ".join(
        f"{name}1 = {name.title()}(f) {name}2 = Unsqueeze({name}1, last) {name}3 = {repeat}({name}2, twice)"
        f" {name} = Reshape({name}3, flat)"
        for name in ("cos", "sin")
    )
    left = fused(f"{POSITIONS.format(b='B')} <{numbers}> {{ {tables} {NEIGHBOURS} {SUM} }}", "ort-cpu")[0]
    assert left.count("RotaryEmbedding") == 1
    assert repeat not in left


UNTURNED = {
    "another sign": TURNED.replace("Sub(ac, bs)", "Sub(bs, ac)"),
    "two sums": TURNED.replace("Sub(", "Add("),
    "another angle": TURNED.replace("as = Mul(a, s)", "d = Exp(s) as = Mul(a, d)"),
    "the same part": TURNED.replace("bs = Mul(s, b)", "bs = Mul(s, a)"),
    "another order": TURNED.replace("p = ", "o = ").replace("q = ", "p = ").replace("o = ", "q = "),
}


@pytest.mark.parametrize("turn", UNTURNED.values(), ids=UNTURNED)
def test_other_products_stay(fused, turn: str) -> None:
    text = f"{POSITIONS.format(b='1')} <{COMPLEX}> {{ c = Cos(f) s = Sin(f) {PAIRS['Split']} {turn} {STACKED} }}"
    left, reasons = fused(text, "ort-cpu")
    assert "RotaryEmbedding" not in left
    assert reasons == []


def test_parts_that_others_read_stay(fused) -> None:
    head = POSITIONS.format(b="1").replace("y)", "y, float[B, T, 3, 2] p)")
    left = fused(f"{head} <{COMPLEX}> {{ c = Cos(f) s = Sin(f) {PAIRS['Split']} {TURNED} {STACKED} }}", "ort-cpu")[0]
    assert "RotaryEmbedding" not in left


def test_complex_numbers_without_a_kernel_are_said(fused) -> None:
    text = f"{POSITIONS.format(b='1')} <{COMPLEX}> {{ c = Cos(f) s = Sin(f) {PAIRS['Slice']} {TURNED} {STACKED} }}"
    assert fused(text, "generic")[1] == [
        "rotary embedding not fused: target generic has no kernel for it at this opset"
    ]


SCALED = "e = Concat<axis=-1>(f, f) c1 = Cos(e) s1 = Sin(e) c = Mul(c1, k) s = Div(k, s1)"
RAISED = "cos = Unsqueeze(c, one) sin = Unsqueeze(s, one)"


@pytest.mark.parametrize(
    ("angles", "tables"),
    [
        (ANGLES, ["Cos", "Sin"]),
        (f"{SCALED} {RAISED}", ["Cos", "Mul", "Sin", "Div"]),
        (
            f"e1 = Concat<axis=-1>(f, f) e = Identity(e1) g = Neg(e) c = Cos(g) s = Sin(g) {RAISED}",
            ["Neg", "Cos", "Sin"],
        ),
        ("c1 = Cos(f) s1 = Sin(f) c = Concat<axis=2>(c1, c1) s = Concat<axis=2>(s1, s1)" + RAISED, ["Cos", "Sin"]),
    ],
    ids=["angles", "scaled", "other operators", "behind"],
)
def test_tables_are_computed_of_one_number_for_each_pair(fused, angles: str, tables: list[str]) -> None:
    text = f"<{NUMBERS}, float k = {{0.5}}> {{ {angles} {HALVES} {SUM} }}"
    assert sorted(fused(f"{HEAD.format(b='B')} {text}", "generic", 23)[0]) == sorted([*tables, "RotaryEmbedding"])
    flat = fused(f"{HEAD.format(b='1')} {text}", "ort-cpu")[0]
    assert flat.count("Reshape") == 1
    assert sorted(kind for kind in flat if kind != "Reshape") == sorted([*tables, "RotaryEmbedding"])


def test_tables_are_written_once_for_all(fused) -> None:
    twice = f"{HALVES} {SUM}".replace("y =", "y1 =")
    again = (
        twice.replace("x,", "z,")
        .replace("lo", "lo2")
        .replace("hi", "hi2")
        .replace("Concat<axis=-1>(n", "Concat<axis=-1>(n2")
    )
    for name in ("n =", "r =", "u =", "w =", "y1 ="):
        again = again.replace(f" {name}", f" {name[:-2]}2 =")
    again = again.replace("Mul(r,", "Mul(r2,").replace("Add(u, w)", "Add(u2, w2)")
    body = f"z = Exp(x) {ANGLES} {twice} {again} y = Mul(y1, y12)"
    left = fused(f"{HEAD.format(b='1')} <{NUMBERS}> {{ {body} }}", "ort-cpu")[0]
    assert sorted(left) == ["Cos", "Exp", "Mul", "Reshape", "RotaryEmbedding", "RotaryEmbedding", "Sin"]


def test_tables_that_others_read_stay(fused) -> None:
    head = HEAD.format(b="B").replace(" y)", " y, float[B, 1, T, 4] z)")
    left = fused(f"{head} <{NUMBERS}> {{ {ANGLES} {HALVES} {SUM} z = Exp(cos) }}", "ort-cpu", 23)[0]
    assert sorted(left) == ["Concat", "Cos", "Cos", "Exp", "RotaryEmbedding", "Sin", "Unsqueeze"]


@pytest.mark.parametrize(
    "table",
    ["e = Mul(d, g)", "e2 = Unsqueeze(d, zero) e3 = Mul(e2, g) e = Squeeze(e3, zero)"],
    ids=["a factor of the graph", "views around it"],
)
def test_other_tables_are_cut(fused, table: str) -> None:
    angles = f"g = ReduceMean<axes=[2]>(f) d = Concat<axis=-1>(f, f) {table} c = Cos(e) s = Sin(e) {RAISED}"
    left = fused(f"{HEAD.format(b='1')} <{NUMBERS}> {{ {angles} {HALVES} {SUM} }}", "ort-cpu")[0]
    assert [left.count(kind) for kind in ("RotaryEmbedding", "Slice", "Reshape", "Cos", "Concat")] == [1, 1, 1, 1, 1]
