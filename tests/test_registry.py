"""Passes and targets come in by entry points, a vendor's like the built-in ones; a broken one harms nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxedge.errors import UserError
from onnxedge.registry import find_pass, find_target, list_passes, list_targets


def test_built_ins_are_listed_and_load() -> None:
    listed = {entry.name: (entry, cls) for entry, cls in list_passes()}
    for name in ("fold", "fuse", "simplify", "prune", "int8"):
        entry, cls = listed[name]
        assert cls is not None, entry.error
        assert entry.distribution.startswith("onnxedge ")
        assert (cls.__doc__ or "").splitlines()[0].endswith(".")
    assert {"generic", "ort-cpu", "tensorrt"} <= {entry.name for entry, target in list_targets() if target is not None}


def test_a_vendor_stands_beside_the_built_ins() -> None:
    listed = {entry.name: entry for entry, _ in list_passes()}
    assert listed["acme-name-nodes"].distribution == "acme-edge 2.3.0"
    assert find_pass("acme-name-nodes").name == "acme-name-nodes"
    target = find_target("acme-npu")
    assert target.channel_multiple == 64
    assert target.quantization is not None
    assert target.quantization.activation_symmetric


def test_a_broken_plugin_is_listed_with_its_error() -> None:
    entry = next(entry for entry, cls in list_passes() if entry.name == "broken-pass")
    assert "PassBaseThatNeverWas" in entry.error
    assert "broken-edge 0.0.1" in entry.error
    entry = next(entry for entry, target in list_targets() if entry.name == "broken-chip")
    assert "unknown key 'chanel_multiple'; did you mean 'channel_multiple'?" in entry.error
    with pytest.raises(UserError, match="does not load: ImportError"):
        find_pass("broken-pass")


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(UserError, match="no pass is called 'fusee'; did you mean 'fuse'"):
        find_pass("fusee")
    with pytest.raises(UserError, match="no target is called 'ort_cpu'; did you mean 'ort-cpu'"):
        find_target("ort_cpu")


def test_a_target_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "chip.toml"
    file.write_text('name = "chip"\nruntime = "any"\nchannel_multiple = 8\n')
    assert find_target(str(file)).channel_multiple == 8
    file.write_text("name = ")
    with pytest.raises(UserError, match="not valid TOML"):
        find_target(str(file))
    with pytest.raises(UserError, match="cannot be read"):
        find_target(str(tmp_path / "absent.toml"))
