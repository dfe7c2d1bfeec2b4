"""The state of a long measurement: a line for each point in a file, so that a killed run goes on where it was."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from pathlib import Path

from onnxedge.errors import UserError, first_line
from onnxedge.model.files import cache_folder, remove, write_whole
from onnxedge.report.sensitivity import Point

_KIND = "onnxedge sensitivity"


class State:
    """The points that are measured, in memory and in a file.

    Attributes:
        path: the file, None where none can be written.
        points: by key.
        resumed: number of points that an earlier run had measured.
    """

    def __init__(self, path: Path | None, owner: str, points: dict[str, Point], *, keep: bool) -> None:
        self.path, self.points, self.resumed = path, points, len(points)
        self._owner, self._keep = owner, keep

    @classmethod
    def open(cls, path: str | Path | None, owner: str) -> State:
        """Read a state file, or begin one when the first point comes.

        Args:
            path: the file, which stays; None for one in the user's cache, which goes when all is measured.
            owner: digest of all that decides the points.

        Raises:
            UserError: it is no state file, or one of another model, other samples or options.
        """
        if path is not None:
            return cls(Path(path), owner, _read(Path(path), owner), keep=True)
        folder = cache_folder() / "sensitivity"
        file = folder / f"{owner}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return cls(file, owner, _read(file, owner), keep=False)
        except OSError:  # nothing can be kept there; the run is as good without
            return cls(None, owner, {}, keep=False)
        except UserError:
            remove(file)
            return cls(file, owner, {}, keep=False)

    def add(self, key: str, point: Point) -> None:
        """Keep a point.

        Raises:
            UserError: the file that the user named cannot be written.
        """
        self.points[key] = point
        if self.path is None:
            return
        try:
            if not self.path.exists():
                write_whole(self.path, json.dumps({"state": _KIND, "of": self._owner}).encode())
            with self.path.open("a", encoding="utf-8") as file:  # a line begins anew: a kill may have cut the last one
                file.write("\n" + json.dumps({"key": key, "point": dataclasses.asdict(point)}))
                file.flush()
                os.fsync(file.fileno())
        except (OSError, UserError) as err:
            if self._keep:
                raise UserError(f"{self.path}: cannot be written: {first_line(err)}") from err
            self.path = None

    def close(self) -> None:
        """Remove the file when all is measured, where it is not the user's."""
        if not self._keep and self.path is not None:
            remove(self.path)


def _read(path: Path, owner: str) -> dict[str, Point]:
    try:
        if not path.exists():
            return {}
        lines = path.read_text("utf-8").splitlines()
        head = json.loads(lines[0])
        if head["state"] != _KIND:
            raise ValueError
    except OSError as err:
        raise UserError(f"{path}: cannot be read: {first_line(err)}") from err
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{path}: is no state of onnxedge sensitivity; name another file to --resume") from None
    if head.get("of") != owner:
        what = "is the state of another model, of other samples, options or versions"
        raise UserError(f"{path}: {what}; name another file to --resume")
    points: dict[str, Point] = {}
    for line in lines[1:]:
        with contextlib.suppress(ValueError, LookupError, TypeError):  # the line that a kill cut short
            entry = json.loads(line)
            points[str(entry["key"])] = Point(**entry["point"])
    return points
