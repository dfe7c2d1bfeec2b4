"""Where the command line writes: tables to stdout, progress to stderr."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import click

from onnxedge.errors import one_line, shortened

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

T = TypeVar("T")

NARROWEST = 80  #: columns; tables are made for at least this many
PIPED = 100  #: columns where the output is no terminal and COLUMNS does not say


def output_console() -> Console:
    """Return the console for tables on stdout: no colours and a stated width when it is no terminal."""
    from rich.console import Console

    columns = shutil.get_terminal_size((PIPED, 24)).columns if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPED
    return Console(file=sys.stdout, width=max(NARROWEST, min(columns, 160)), markup=False, highlight=False, emoji=False)


class Steps:
    """Show how far a run has come, on stderr, once it has lasted two seconds; nothing when stderr is no terminal.

    It is the ``progress`` and the ``watch`` of :func:`onnxedge.driver.optimize`. With ``verbose``, each step is a
    line that stays.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False, delay: float = 2.0) -> None:
        self._enabled = sys.stderr.isatty() and not quiet and os.environ.get("TERM") != "dumb"
        self._verbose = verbose and not quiet
        self._delay = delay
        self._start = time.perf_counter()
        self._line = ""
        self._bars: Bars | None = None
        self._step: TaskID | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Steps:
        self._start = time.perf_counter()
        if self._enabled:
            self._timer = threading.Timer(self._delay, self._show)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            self._closed = True
            if self._bars is not None:
                self._bars.stop()
                self._bars = None

    def watch(self, line: str) -> None:
        """Name the step that begins."""
        with self._lock:
            self._line = shortened(line, 60)
            if self._bars is not None and self._step is not None:
                self._bars.update(self._step, description=self._line)
        if self._verbose:
            text = f"{time.perf_counter() - self._start:7.1f} s  {one_line(line)}"
            if self._bars is not None:
                self._bars.console.print(text)
            else:
                click.echo(text, err=True)

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Yield ``items`` one by one and show the count."""
        if not self._enabled:
            yield from items
            return
        if total is None and isinstance(items, Sized):
            total = len(items)
        task = None
        try:
            for done, item in enumerate(items):
                bars = self._bars
                if bars is not None and task is None:
                    task = bars.add_task(shortened(description, 40), total=total, completed=done, count="")
                if bars is not None and task is not None:
                    bars.update(task, completed=done, count=f"{done}/{total}" if total else f"{done}")
                yield item
        finally:
            if task is not None and self._bars is not None:
                self._bars.remove_task(task)

    def _show(self) -> None:
        """Start the bars; the timer's thread calls it."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(file=sys.stderr, markup=False, highlight=False, emoji=False)
        bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with self._lock:
            if self._closed:
                return
            self._step = bars.add_task(self._line or "working", total=None, count="")
            bars.tasks[0].start_time = bars.get_time() - (time.perf_counter() - self._start)
            bars.start()
            self._bars = bars
