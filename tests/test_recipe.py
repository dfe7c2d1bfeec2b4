"""Recipe files that are wrong are refused with the file, the key and what would do."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxedge.errors import UserError
from onnxedge.recipe import read_recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pases: fuse", "unknown key 'pases'; did you mean 'passes'?"),
        ("zzz: 1", "unknown key 'zzz'; known are passes, target"),
        ("passes: 3", "passes: 3 is no text"),
        ("passes: []", "passes: [] is no text"),
        ("seed: -1", "seed: -1 is no whole number of at least 0"),
        ("threads: true", "threads: True is no whole number"),
        ("strict: 1", "strict: 1 is neither true nor false"),
        ("verify: some", "verify: 'some' is none of off, structure, numeric"),
        ("options: {int8: 3}", "options: needs one table a pass"),
        ("input_shapes: [1]", "input_shapes: needs a table of shapes"),
        ("max_drop: [1]", "max_drop: [1] is no share"),
        ("- a\n- b", "needs keys with values"),
        ("a: b: c", "not valid YAML"),
        ("a: 2020-99-99", "not valid YAML"),
        ("a: \x00", "not valid YAML"),
    ],
)
def test_a_recipe_that_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_recipe(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_recipe_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_recipe(tmp_path / "absent.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        read_recipe(tmp_path / "folder.toml")
    (tmp_path / "large.yaml").write_text("a: 1\n" * 300_000)
    with pytest.raises(UserError, match="has 1500000 bytes"):
        read_recipe(tmp_path / "large.yaml")
    (tmp_path / "bad.toml").write_text("a = ")
    with pytest.raises(UserError, match="not valid TOML"):
        read_recipe(tmp_path / "bad.toml")
    (tmp_path / "latin.toml").write_bytes(b"a = '\xff'")
    with pytest.raises(UserError, match="cannot be read"):
        read_recipe(tmp_path / "latin.toml")
