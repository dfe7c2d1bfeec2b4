"""Targets that are based on others."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from onnxedge.errors import UserError
from onnxedge.target import load_packaged_target, load_target

ACME = 'name = "acme"\nbase = "ort-cpu"\n'


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder of a vendor's package of targets."""
    folder = tmp_path / "acme_targets"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    sys.modules.pop("acme_targets", None)


def test_what_is_not_said_is_the_base_s() -> None:
    base = load_packaged_target("onnxedge.targets", "ort-cpu")
    target = load_target("acme", ACME + "channel_multiple = 4")
    assert target.name == "acme"
    assert target.channel_multiple == 4
    assert target.operators == base.operators
    assert target.quantization == base.quantization


def test_tables_are_merged_key_by_key() -> None:
    base = load_packaged_target("onnxedge.targets", "ort-cpu").quantization
    rules = load_target(
        "acme",
        ACME + "[quantization]\nweight_limit = { Conv = 63 }\n[quantization.costs]\nConv = { integer_call_ns = 5 }\n"
        "Tanh = { float_ns = [1], integer_ns = [2] }\n",
    ).quantization
    assert rules is not None
    assert base is not None
    assert rules.weight_limit == {"Conv": 63}
    assert rules.costs["Conv"].integer_call_ns == 5
    assert rules.costs["Conv"].float_ns == base.costs["Conv"].float_ns
    assert rules.costs["Tanh"].integer_ns == (2.0,)
    assert rules.integer == base.integer


def test_a_vendor_s_base_comes_before_a_built_in_one(package: Path) -> None:
    (package / "generic.toml").write_text('name = "generic"\nchannel_multiple = 24')
    (package / "chip.toml").write_text('name = "chip"\nbase = "generic"')
    (package / "other.toml").write_text('name = "other"\nbase = "tensorrt"')
    assert load_packaged_target("acme_targets", "chip").channel_multiple == 24
    assert load_packaged_target("acme_targets", "other").channel_multiple == 32


def test_a_circle_is_refused(package: Path) -> None:
    (package / "a.toml").write_text('name = "a"\nbase = "b"')
    (package / "b.toml").write_text('name = "b"\nbase = "a"')
    with pytest.raises(UserError, match="base: b -> a -> b goes round in a circle"):
        load_packaged_target("acme_targets", "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "a"\nbase = "ort-cpuu"', "there is no target file 'ort-cpuu'; did you mean 'ort-cpu'?"),
        ('name = "a"\nbase = 3', "base: 3 is not of type str"),
        (ACME + "[quantization]\nweight_limit = { Conv = 0 }", "weight_limit.Conv: 0; needs 1..127"),
        (ACME + "[quantization]\nweight_limit = { Conv = 128 }", "weight_limit.Conv: 128; needs 1..127"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(UserError, match="target a") as caught:
        load_target("a.toml", text)
    assert message in str(caught.value)
