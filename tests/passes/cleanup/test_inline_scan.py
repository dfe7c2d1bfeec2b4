"""inline-scan: a Scan over one element."""

from __future__ import annotations

import pytest
from onnxedge_passes.cleanup.control.inline_scan import InlineScan

HEAD = "g (float[2] v, float[1, 2] x) => (float[2] y, float[1, 2] s)"
BODY = "body = b (float[2] a, float[2] e) => (float[2] w, float[2] o) { r = Relu(a) w = Add(r, e) o = Exp(w) }"


@pytest.mark.parametrize("opset", [9, 11, 17])
def test_once(check, opset: int) -> None:
    views = ("Squeeze(x, a)", "Unsqueeze(o, a)") if opset >= 13 else ("Squeeze<axes=[0]>(x)", "Unsqueeze<axes=[0]>(o)")
    check(
        InlineScan(),
        f"{HEAD} {{ y, s = Scan <num_scan_inputs = 1, {BODY}> (v, x) }}",
        f"{HEAD} {'<int64[1] a = {0}>' if opset >= 13 else ''}"
        f" {{ e = {views[0]} r = Relu(v) y = Add(r, e) o = Exp(y) s = {views[1]} }}",
        opset=opset,
    )


@pytest.mark.parametrize("directions", ["", "scan_input_directions = [1], scan_output_directions = [1], "])
def test_axes_and_directions(check, directions: str) -> None:
    head = "g (float[2] v, float[2, 1] x) => (float[2] y, float[2, 1] s)"
    check(
        InlineScan(),
        f"{head} {{ y, s = Scan <num_scan_inputs = 1, {directions}scan_input_axes = [1], scan_output_axes = [-1],"
        f" {BODY}> (v, x) }}",
        f"{head} <int64[1] a = {{1}}, int64[1] z = {{-1}}>"
        " { e = Squeeze(x, a) r = Relu(v) y = Add(r, e) o = Exp(y) s = Unsqueeze(o, z) }",
    )


def test_states_that_go_through_and_one_known_length(check) -> None:
    """Where one of two scanned values has one element, the other one has, too."""
    check(
        InlineScan(),
        "g (float[2] v, float[N, 2] x, float[1, 2] z) => (float[2] y, float[2] q) { e = Exp(v) f = Neg(v)"
        " p, y, q = Scan <num_scan_inputs = 2, body = b (float[2] c, float[2] d, float[2] i, float[2] j)"
        " => (float[2] d, float[2] w, float[2] o) { w = Add(c, i) o = Mul(d, j) }> (e, f, x, z) }".replace(
            "=> (float[2] y, float[2] q)", "=> (float[2] y, float[1, 2] q)"
        ),
        "g (float[2] v, float[N, 2] x, float[1, 2] z) => (float[2] y, float[1, 2] q) <int64[1] a = {0}>"
        " { e = Exp(v) f = Neg(v) i = Squeeze(x, a) j = Squeeze(z, a) y = Add(e, i) o = Mul(f, j)"
        " q = Unsqueeze(o, a) }",
        runs=False,
    )


def test_captured_values_and_an_unused_scan_output(check) -> None:
    check(
        InlineScan(),
        "g (float[2] v, float[1, 2] x) => (float[2] y) { k = Sin(v)"
        f" y, s = Scan <num_scan_inputs = 1, {BODY.replace('Relu(a)', 'Mul(a, k)')}> (v, x) }}",
        "g (float[2] v, float[1, 2] x) => (float[2] y) <int64[1] a = {0}>"
        " { k = Sin(v) e = Squeeze(x, a) r = Mul(v, k) y = Add(r, e) o = Exp(y) }",
    )


@pytest.mark.parametrize("size", ["3", "N"])
def test_more_than_once_and_unknown_stay(check, size: str) -> None:
    reasons = check(
        InlineScan(),
        f"{HEAD.replace('1', size)} {{ y, s = Scan <num_scan_inputs = 1, {BODY}> (v, x) }}",
    )
    assert reasons == ["not inlined: how often it runs is computed when the model runs, or it is more than once"]


def test_the_form_of_opset_8_stays(check) -> None:
    reasons = check(
        InlineScan(),
        "g (float[2, 2] v, float[2, 1, 2] x) => (float[2, 2] y, float[2, 1, 2] s)"
        f' {{ y, s = Scan <num_scan_inputs = 1, {BODY}> ("", v, x) }}',
        opset=8,
    )
    assert reasons == ["not inlined: Scan of opset 8 goes over a batch, too"]
