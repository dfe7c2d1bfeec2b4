"""Try one hostile model: run the command line on it, and compare what came out with what went in.

Each step runs in a process of its own, with a limit on its memory, so that native code may crash or hang there.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from hostile.maker import Maker

ADDRESS_SPACE_BYTES = 6 << 30  #: a process that wants more gets none, and so cannot take the machine down
HANG_SECONDS = 120.0
COMPARE_SECONDS = 40.0  #: after which an original is taken not to run
PEAK_BYTES = 1 << 30
GROWTH_BYTES = (1 << 20) + (64 << 10)  #: that folding may add, and the metadata with it


@dataclass(frozen=True)
class Ended:
    """Hold how a process ended: exit code (negative: the signal), wall and processor time, peak of resident memory."""

    code: int
    seconds: float
    busy_seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Trial:
    """Hold what became of a model.

    Attributes:
        result: optimized or refused, or what is wrong with the way it went.
        compared: whether ONNX Runtime runs the original, so that outputs were compared.
        detail: the line on standard error, or what is wrong.
    """

    result: Literal["optimized", "refused", "WRONG"]
    seconds: float
    busy_seconds: float
    peak_bytes: int
    compared: bool
    detail: str


Start = Callable[[Sequence[str], Path], Ended]  #: runs ``onnxedge`` with arguments in a folder


def attempt(maker: Maker, start: Start, compare: Callable[[Path, Path], str]) -> Trial:
    """Optimize a model in a folder of its own and judge how that went."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "work").mkdir()
        model, output = maker(folder / "work"), folder / "out.onnx"
        before = sorted(folder.rglob("*"))
        ended = start(["optimize", str(model), "--passes", "fold,fuse", "-o", str(output)], folder)
        said = (folder / "stderr").read_text("utf-8", "replace").strip()
        made = sorted(path for path in set(folder.rglob("*")) - set(before) if path.name not in ("stdout", "stderr"))
        wrong = _wrong(ended, said, made, model, output)
        told = (folder / "stdout").read_text("utf-8", "replace")
        verdict = ""
        if not wrong and ended.code == 0:
            verdict = compare(model, output)
            wrong = "" if verdict in ("equal", "the original does not run") else verdict
            if not wrong and "reproducer in" in told:
                wrong = f"a pass broke its promise: {' '.join(told.split())[-300:]}"
        result: Literal["optimized", "refused", "WRONG"] = "optimized" if ended.code == 0 else "refused"
        if wrong:
            result = "WRONG"
        detail = wrong or said or verdict
        return Trial(result, ended.seconds, ended.busy_seconds, ended.peak_bytes, verdict == "equal", detail)


def _wrong(ended: Ended, said: str, made: Sequence[Path], model: Path, output: Path) -> str:
    """Return how a run broke the contract, an empty string where it kept it."""
    if ended.code < 0:
        name = signal.Signals(-ended.code).name
        return f"killed by {name}{' (hung)' if ended.code == -signal.SIGKILL else ''} {said[-300:]}"
    if "Traceback" in said or ended.code not in (0, 2):
        return f"exit code {ended.code}: {said[-500:]}"
    if ended.peak_bytes > PEAK_BYTES:
        return f"took {ended.peak_bytes >> 20} MiB"
    if ended.code == 2:
        if len(said.splitlines()) != 1 or not said.startswith(f"error: {model}: "):
            return f"no single line of error about the model: {said[:500]!r}"
        return f"something was written: {[path.name for path in made]}" if made else ""
    if said:
        return f"exit code 0, but standard error has: {said[:500]!r}"
    if not output.is_file():
        return "exit code 0, but no model"
    if output.stat().st_size > 1.1 * model.stat().st_size + GROWTH_BYTES:
        return f"grew from {model.stat().st_size} to {output.stat().st_size} bytes"
    return ""


def start_fresh(arguments: Sequence[str], folder: Path) -> Ended:
    """Run the command line as a user does, in a new interpreter."""

    def limit() -> None:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES,) * 2)

    start = time.perf_counter()
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "onnxedge", *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            preexec_fn=limit,
        )
    return _wait(process.pid, start)


def _wait(pid: int, start: float, limit: float = HANG_SECONDS) -> Ended:
    """Wait for a process that leads a session of its own, and kill all of it if it hangs."""
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        if time.perf_counter() - start > limit:
            os.killpg(pid, signal.SIGKILL)
        time.sleep(0.005)
    busy = usage.ru_utime + usage.ru_stime
    return Ended(os.waitstatus_to_exitcode(status), time.perf_counter() - start, busy, usage.ru_maxrss * 1024)


class Server:
    """Hold a process that has everything imported and forks itself for each request: an import costs over a second."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hostile.trial"],
            cwd=Path(__file__).resolve().parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)

    def _ask(self, task: str, arguments: Sequence[str], folder: Path) -> Ended:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([task, list(arguments), str(folder)]), file=self._process.stdin, flush=True)
        return Ended(**json.loads(self._process.stdout.readline()))

    def start(self, arguments: Sequence[str], folder: Path) -> Ended:
        """Run the command line in a fork of the server."""
        return self._ask("optimize", arguments, folder)

    def compare(self, model: Path, output: Path) -> str:
        """Return ``equal``, ``the original does not run``, or how the outputs differ."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            ended = self._ask("compare", [str(model), str(output)], folder)
            said = (folder / "stdout").read_text("utf-8", "replace").split("\n")
        if "ran" not in said:
            return "the original does not run"
        return said[-1] if ended.code == 0 else f"the optimized model ends the runtime: code {ended.code}"


def _serve() -> None:
    import onnxruntime  # noqa: F401

    import onnxedge.cli.console
    import onnxedge.cli.optimize
    import onnxedge.driver
    import onnxedge.report.terminal  # noqa: F401
    from onnxedge.registry import list_passes

    list_passes()
    for line in sys.stdin:
        task, arguments, folder = json.loads(line)
        start = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            _fork(task, arguments, Path(folder))
        ended = _wait(pid, start, HANG_SECONDS if task == "optimize" else COMPARE_SECONDS)
        print(json.dumps(asdict(ended)), flush=True)  # noqa: T201


def _fork(task: str, arguments: Sequence[str], folder: Path) -> None:
    """Do one task in a forked process, and end it."""
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        for stream, name in ((0, os.devnull), (1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT, 0o600), stream)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES,) * 2)
        if task == "compare":
            _compare(Path(arguments[0]), Path(arguments[1]))
            code = 0
        else:
            from onnxedge.cli import main

            main(list(arguments))
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else 0 if done.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _compare(model: Path, output: Path) -> None:
    """Print ``ran`` once the original ran, then whether the other one gives the same."""
    from hostile.outputs import difference, feeds, session, within

    try:
        first = session(model)
        results = [(feed, within(first, feed, 3.0)) for feed in feeds(first)]
        results = [(feed, outputs) for feed, outputs in results if outputs is not None]
    except Exception:  # whatever the runtime raises, the original does not run
        return
    if not results:
        return
    print("ran", flush=True)  # noqa: T201
    del first  # both may not fit into the address space
    second = session(output)
    told = [difference(outputs, within(second, feed, 60.0)) for feed, outputs in results]
    print(next((text for text in told if text), "equal"), end="", flush=True)  # noqa: T201


if __name__ == "__main__":
    _serve()
