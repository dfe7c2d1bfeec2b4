"""decide-conditions: Ifs whose condition follows from another's, or from what the model demands."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest
from conftest import apply, parse
from onnxedge_passes.cleanup.control.decide_conditions import DecideConditions
from onnxedge_passes.cleanup.control.facts import Facts, cannot_run
from onnxedge_passes.cleanup.fold import Fold

from onnxedge.api import CannotRun, Session, load


def branches(condition: str, first: str, second: str) -> str:
    """Return an If whose branches give back what their last nodes make."""
    plain = (re.sub("<.*>", "", body) for body in (first, second))  # without branches inside
    then, other = (body.rsplit(" = ", 1)[0].split()[-1] for body in plain)
    taken = f"then_branch = t () => ({then}) {{ {first} }}"
    return f"If({condition}) <{taken}, else_branch = e () => ({other}) {{ {second} }}>"


def assert_same(before: ir.Model, after: ir.Model, feeds: Sequence[dict[str, np.ndarray]]) -> None:
    """Assert equal outputs; what the model before refuses must be refused still."""
    first, second = Session(before, level="disable"), Session(after, level="disable")
    for feed in feeds:
        try:
            mine = first.run(feed)
        except CannotRun:
            with pytest.raises(CannotRun):
                second.run(feed)
            continue
        other = second.run(feed)
        for name, array in mine.items():
            np.testing.assert_array_equal(array, other[name])


RANKS = "g (float[A, 1, B] x, bool c) => (float[K] y) <int64[1] a = {1}, int64 two = {2}, int64[1] flat = {-1}> {"
VIEW = f"v = {branches('c', 'q = Squeeze(x, a)', 'o = Relu(x)')}"
FEEDS = [
    {"x": np.random.default_rng(size).standard_normal((size, 1, 3)).astype(np.float32), "c": np.array(c)}
    for size in (1, 4)
    for c in (True, False)
]


@pytest.mark.parametrize(
    ("asked", "swapped"),
    [
        ("s = Shape(v) n = Size(s) d = Equal(n, two)", False),
        ("s = Shape(v) n = Size(s) e = Equal(n, two) d = Not(e)", True),
        ("s = Shape(v) n = Size(s) d = Greater(n, two)", True),
        ("d = Not(c)", True),
    ],
)
def test_a_condition_that_is_another_one(rewritten, asked: str, swapped: bool) -> None:
    last = branches("d", "p = Exp(v)", "u = Neg(v)")
    text = f"{RANKS} {VIEW} {asked} l = {last} y = Reshape(l, flat) }}"
    model, _ = rewritten(DecideConditions(), text, infer=False)
    before, _ = rewritten(DecideConditions(max_visits=0), text, infer=False)
    conditional = model.graph[-2]
    assert conditional.inputs[0] is model.graph.inputs[1]
    then = conditional.attributes["then_branch"].as_graph()
    assert [node.op_type for node in then] == ["Neg" if swapped else "Exp"]
    assert_same(before, model, FEEDS)


def test_one_if_is_left_of_two(rewritten) -> None:
    text = (
        f"{RANKS} {VIEW} s = Shape(v) n = Size(s) e = Equal(n, two) d = Not(e)"
        f" l = {branches('d', 'p = Exp(v)', 'u = Neg(v)')} y = Reshape(l, flat) }}"
    )
    model, _ = rewritten(Fold(), text, infer=False)
    before, _ = rewritten(DecideConditions(max_visits=0), text, infer=False)
    assert [node.op_type for node in model.graph] == ["If", "Reshape"]
    inside = [node.op_type for graph in model.graph.subgraphs() for node in graph]
    assert inside == ["Squeeze", "Neg", "Relu", "Exp"]
    assert_same(before, model, FEEDS)


@pytest.mark.parametrize(("inner", "kept"), [("c", "Exp"), ("d", "Neg")])
def test_inside_of_a_branch(rewritten, inner: str, kept: str) -> None:
    nested = branches(inner, "p = Exp(x)", "u = Neg(x)")
    text = (
        "g (float[A, 1, B] x, bool c) => (float[A, 1, B] y)"
        f" {{ d = Not(c) y = {branches('c', f'r = {nested}', 'o = Relu(x)')} }}"
    )
    model, _ = rewritten(Fold(), text, infer=False)
    before, _ = rewritten(DecideConditions(max_visits=0), text, infer=False)
    assert [node.op_type for node in model.graph.all_nodes()] == ["If", kept, "Relu"]
    assert_same(before, model, FEEDS)


def test_inside_of_a_branch_of_an_unknown_condition(rewritten) -> None:
    """Both cases are possible there."""
    nested = branches("c", "p = Exp(x)", "u = Neg(x)")
    text = (
        "g (float[A, 1, B] x, bool c, bool d) => (float[A, 1, B] y, float[A, 1, B] z)"
        f" {{ y = {branches('c', 'i = Abs(x)', 'j = Sin(x)')} z = {branches('d', f'r = {nested}', 'o = Relu(x)')} }}"
    )
    before, model = (rewritten(DecideConditions(max_visits=n), text, infer=False)[0] for n in (0, 99))
    assert [v.name for node in model.graph.all_nodes() for v in node.inputs if node.op_type == "If"] == ["c", "d", "c"]
    assert_same(before, model, [{**feed, "d": np.array(d)} for feed in FEEDS for d in (True, False)])


TORCH = (
    "g (float[N, 2, L] x) => (float[1, N, 2] y) <int64[1] last = {{-1}}, int64[1] one = {{1}}, int64[1] zero = {{0}},"
    " float[1, 8, 2] w = {{" + ", ".join(str(i / 8) for i in range(16)) + "}}>"
    " {{ s = Shape(x) n = Gather(s, last) c = Equal(n, one)"
    " v = {first} u = Unsqueeze(v, zero) k, y = LSTM<hidden_size=2>(u, w, w) }}"
)
SIZES = [
    {"x": np.random.default_rng(n + size).standard_normal((n, 2, size)).astype(np.float32)}
    for n in (1, 3)
    for size in (1, 2)
]


def test_what_an_operator_demands(rewritten) -> None:
    """The else branch would give the LSTM four axes, and the Squeeze fails where there is more than one element."""
    text = TORCH.format(first=branches("c", "q = Squeeze(x, last)", "o = Identity(x)"))
    before, model = (rewritten(DecideConditions(max_visits=n), text, infer=False)[0] for n in (0, 99))
    folded, _ = rewritten(Fold(), text, infer=False)
    assert not [node for node in folded.graph.all_nodes() if node.op_type == "If"]
    assert_same(before, model, SIZES)
    assert_same(before, folded, [feed for feed in SIZES if feed["x"].shape[2] == 1])


STAYS = {
    "the other branch is right": ("q = Relu(x)", "o = Squeeze(x, last)"),
    "another axis is squeezed": ("q = Squeeze(x, zero)", "o = Identity(x)"),
    "the Squeeze is not needed": ("r = Squeeze(x, last) q = Reduce(x)", "o = Identity(x)"),
}


@pytest.mark.parametrize(("first", "second"), STAYS.values(), ids=STAYS)
def test_what_would_not_fail_any_more_stays(rewritten, first: str, second: str) -> None:
    first = first.replace("Reduce", "ReduceMax<axes=[2], keepdims=0>")
    model, reasons = rewritten(DecideConditions(), TORCH.format(first=branches("c", first, second)), infer=False)
    assert model.graph[3].inputs[0].name == "c"
    case = "true" if first == "q = Relu(x)" else "false"
    label = f"LSTM {model.graph[5].name or '-> k'!r}"
    assert reasons == [f"not decided: {label} fails where its condition is {case}, nothing else would"]


def test_a_condition_from_outside_stays(rewritten) -> None:
    text = TORCH.format(first=branches("c", "q = Squeeze(x, last)", "o = Identity(x)"))
    text = text.replace("L] x)", "L] x, bool c)").replace(" c = Equal(n, one)", "")
    model, reasons = rewritten(DecideConditions(), text, infer=False)
    assert len(reasons) == 1
    assert not model.graph.initializers.keys() & {"condition"}


@pytest.mark.parametrize(
    "end",
    [
        "k, z = LSTM<hidden_size=2>(u, w, w) y = Relu(x) }",  # nobody needs it
        f"y = {branches('d', 'k, z = LSTM<hidden_size=2>(u, w, w) r = Relu(z)', 'o = Relu(x)')} }}",  # it may not run
        "k, y = acme.LSTM<hidden_size=2>(u, w, w) }",
    ],
)
def test_an_operator_that_may_not_run_demands_nothing(rewritten, end: str) -> None:
    text = TORCH.format(first=branches("c", "q = Squeeze(x, last)", "o = Identity(x)")).replace(" x)", " x, bool d)")
    text = text.replace("k, y = LSTM<hidden_size=2>(u, w, w) }", end)
    model, reasons = rewritten(DecideConditions(), text, infer=False)
    assert not reasons
    assert model.graph[3].inputs[0].name == "c"


def test_declared_shapes_are_not_believed() -> None:
    """PyTorch writes the shape of one branch for both: only what is inferred counts."""
    text = (
        "g (float[A, 1, B] x, float[M] f, int64[R] r, bool c) => (float[K] y) <int64 two = {2}, int64[1] flat = {-1}>"
        f" {{ w = Reshape(f, r) v = {branches('c', 'q = Relu(x)', 'o = Relu(w)')} s = Shape(v) n = Size(s)"
        f" d = Equal(n, two) l = {branches('d', 'p = Exp(v)', 'u = Neg(v)')} y = Reshape(l, flat) }}"
    )
    model = parse(text)
    model.graph[0].outputs[0].shape = ir.Shape([2, 3])
    before = model.clone()
    result, _ = apply(DecideConditions(), model, infer=False)
    assert result.rewrites == 0
    shapes = [np.array(shape, np.int64) for shape in ([2, 3], [1, 2, 3], [6])]
    assert_same(before, model, [{**feed, "f": np.ones(6, np.float32), "r": r} for feed in FEEDS for r in shapes])


def test_a_limit_of_nodes_that_are_looked_at(rewritten) -> None:
    last = branches("d", "p = Exp(v)", "u = Neg(v)")
    text = f"{RANKS} {VIEW} d = Not(c) l = {last} y = Reshape(l, flat) }}"
    model, reasons = rewritten(DecideConditions(max_visits=2), text, infer=False)
    assert model.graph[-2].inputs[0].name == "d"
    assert reasons == ["not followed to the end: conditions on which more than 2 nodes depend"]


DEMANDS = {
    "LSTM": "k, y = LSTM<hidden_size=2>(x, w, w)",
    "GRU": "k, y = GRU<hidden_size=2>(x, w, w)",
    "RNN": "k, y = RNN<hidden_size=2>(x, w, w)",
    "Conv": "y = Conv(x, w)",
    "ConvTranspose": "y = ConvTranspose(x, w)",
    "Gemm": "y = Gemm(x, m)",
    "Transpose": "y = Transpose<perm=[1, 0, 2]>(x)",
}


@pytest.mark.parametrize("node", DEMANDS.values(), ids=DEMANDS)
def test_what_is_said_to_fail_does(rewritten, node: str) -> None:
    """The runtime sees the number of axes only when it runs."""
    rows = {"GRU": 6, "RNN": 2}.get(node.split(" = ")[1].split("<")[0], 8)
    weights = f"float[1, {rows}, 2] w = {{{', '.join(['1'] * 2 * rows)}}}, float[4, 2] m = {{1, 1, 1, 1, 1, 1, 1, 1}}"
    axes = "int64[4] t = {1, 3, 2, 4}"
    text = "g ({x}, int64[R] r) => (float[K] y) <{weights}, {axes}> {{ {first} {node} }}"
    model, _ = rewritten(
        DecideConditions(),
        text.format(x="float[24] f", weights=weights, axes=axes, first="x = Reshape(f, r)", node=node),
        infer=False,
    )
    feed = {"f": np.ones(24, np.float32), "r": np.array([1, 3, 2, 4], np.int64)}
    with pytest.raises(CannotRun, match=r"(?s)Non-zero status code returned while running \w+ node"):
        Session(model, level="disable").run(feed)
    known, _ = rewritten(
        DecideConditions(max_visits=0),
        text.format(x="float[24] f", weights=weights, axes=axes, first="x = Reshape(f, t)", node=node),
        infer=False,
    )
    assert cannot_run(known.graph[-1], Facts(known.graph))


@pytest.mark.zoo
def test_silero(zoo) -> None:
    """The 12 Ifs that PyTorch wrote for ``squeeze`` and for the LSTM's input of two or three axes go."""
    before = load(zoo / "models" / "silero_vad_16k_op15.onnx")
    model = before.clone()
    apply(Fold(), model, infer=False)
    assert not [node for node in model.graph.all_nodes() if node.op_type == "If"]
    assert len(list(model.graph.all_nodes())) <= 60
    rng = np.random.default_rng(0)
    feeds = [
        {
            "input": rng.standard_normal((count, samples)).astype(np.float32) / 10,
            "state": rng.standard_normal((2, count, 128)).astype(np.float32) / 10,
            "sr": np.array(rate),
        }
        for rate, samples in ((16000, 512), (16000, 700), (8000, 256), (8000, 384), (16000, 1024))
        for count in (1, 3)
    ]
    assert_same(before, model, feeds)
