"""Zeros and refits as linear algebra, and the patterns that zeros make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from onnxedge_passes.sparsify import Sparsify
from onnxedge_passes.sparsify.obs import Quadratic, brain_surgeon, refit
from onnxedge_passes.sparsify.pattern import Pattern, largest

from onnxedge.api import Array, UserError
from onnxedge.pipeline import PipelineError, build_pass, format_pipeline, parse_pipeline
from onnxedge.registry import find_pass

ROWS, OUTPUTS, KERNEL = 144, 6, 9


def problem(seed: int = 0, correlated: float = 0.9) -> tuple[Quadratic, Array]:
    """Return the error of a layer whose neighbouring inputs are alike and of other sizes, and its weights."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4000, ROWS))
    for row in range(1, ROWS):
        x[:, row] = correlated * x[:, row - 1] + np.sqrt(1 - correlated**2) * x[:, row]
    x *= rng.uniform(0.2, 3, ROWS)
    a, w = x.T @ x / len(x) + 1e-3 * np.eye(ROWS), rng.standard_normal((ROWS, OUTPUTS))
    return Quadratic(a, a @ w, np.zeros(ROWS), np.zeros(OUTPUTS)), w


def error(of: Quadratic, w: Array) -> float:
    return float(np.einsum("ro,ro->", w, of.a @ w) - 2 * np.einsum("ro,ro->", w, of.b))


@pytest.mark.parametrize("zeros", [432, 700, Pattern(2, 4), Pattern(1, 4), Pattern(4, 8), Pattern(8, 16)])
def test_zeros_are_as_asked_and_the_rest_mended(zeros: int | Pattern) -> None:
    given, w = problem()
    made, keep = brain_surgeon(given.a, given.best(), zeros, KERNEL)
    assert np.array_equal(made != 0, keep)
    if isinstance(zeros, Pattern):
        assert zeros.holds(made, KERNEL)
        assert np.count_nonzero(made) == w.size * zeros.kept // zeros.of
        plain = np.where(zeros.largest(np.abs(w), KERNEL), w, 0.0)
    else:
        assert np.count_nonzero(made == 0) == zeros
        plain = np.where(largest(np.abs(w), zeros), w, 0.0)
    fitted = refit(given, made, keep)
    assert np.array_equal(fitted != 0, keep)
    least = error(given, given.best())
    assert error(given, fitted) - least < 0.7 * (error(given, refit(given, plain, plain != 0)) - least)
    assert error(given, refit(given, plain, plain != 0)) < error(given, plain)
    assert error(given, fitted) <= error(given, made)


def test_refit_is_the_solution_on_the_support() -> None:
    given, w = problem()
    keep = np.random.default_rng(1).random(w.shape) < 0.5
    keep[:, 2] = False
    fitted = refit(given, w, keep)
    for column in range(OUTPUTS):
        at = np.flatnonzero(keep[:, column])
        wanted = np.linalg.solve(given.a[np.ix_(at, at)], given.b[at, column])
        np.testing.assert_allclose(fitted[at, column], wanted, rtol=1e-2, atol=1e-2)
    assert not fitted[:, 2].any()


def test_inputs_that_are_independent_are_taken_by_their_size() -> None:
    """Without correlation the cost of a weight is its square times the mean square of its input."""
    rng = np.random.default_rng(0)
    energy, w = rng.uniform(0.1, 10, ROWS), rng.standard_normal((ROWS, OUTPUTS))
    _, keep = brain_surgeon(np.diag(energy), w, 400, 1)
    assert np.array_equal(keep, largest(np.square(w) * energy[:, None], 400))
    _, keep = brain_surgeon(np.diag(energy), w, Pattern(2, 4), 1)
    assert np.array_equal(keep, Pattern(2, 4).largest(np.square(w) * energy[:, None], 1))


def test_sets_run_along_the_input_channels_at_each_kernel_position() -> None:
    weight = np.zeros((1, 8, 3, 3))  # [Co, Ci, kH, kW]
    weight[0, :2, 1, 1] = weight[0, 5:7, 0, 2] = 1.0
    matrix = np.moveaxis(weight, 0, -1).reshape(72, 1)
    assert Pattern(2, 4).holds(matrix, 9)
    weight[0, 3, 1, 1] = 1.0
    assert not Pattern(2, 4).holds(np.moveaxis(weight, 0, -1).reshape(72, 1), 9)
    rows = Pattern(2, 4).order(72, 9)
    assert rows[:8].tolist() == [0, 9, 18, 27, 36, 45, 54, 63]


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("sparsify(pattern=2:4)", "sparsify(pattern=2:4)"),
        ('sparsify(pattern="1:8", method=MAGNITUDE)', "sparsify(pattern=1:8,method=magnitude)"),
        ("sparsify(ratio=70%,allocation=global)", "sparsify(ratio=0.7,allocation=global)"),
        ("sparsify(pattern=none)", "sparsify"),
    ],
)
def test_the_text_of_a_pattern_prints_back(text: str, canonical: str) -> None:
    passes = parse_pipeline(text, find_pass)
    assert format_pipeline(passes) == canonical
    assert parse_pipeline(canonical, find_pass) == passes


@pytest.mark.parametrize("text", ["2", "2-4", "4:2", "0:4", "2:2", "a:b", "2:400", "-1:4"])
def test_a_wrong_pattern_is_pointed_at(text: str) -> None:
    with pytest.raises(PipelineError, match=r"sparsify: pattern: .*N") as caught:
        parse_pipeline(f"fuse,sparsify(pattern={text})", find_pass)
    assert caught.value.column == 14
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": 124}, "'124' is not N:M.*in YAML with quotes"),  # what YAML makes of a bare 2:4
        ({"pattern": {"a": 1}}, "does not fit; needs N:M"),
        ({"pattern": ["2:4"]}, "a list does not fit"),
    ],
)
def test_a_recipe_that_holds_something_else(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_pass(Sparsify, options)
    assert build_pass(Sparsify, {"pattern": "2:4"}) == Sparsify(pattern=Pattern(2, 4))
