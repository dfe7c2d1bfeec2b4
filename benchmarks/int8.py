"""INT8 side by side: onnxedge ``fold,fuse,int8`` and other quantizers on the same models and samples, one row a tool.

    python benchmarks/int8.py                               # all models, all tools; what is known is not run again
    python benchmarks/int8.py --models resnet20 kwt1 --tools onnxedge ort
    python benchmarks/int8.py --tools onnxedge --fresh      # quantize and measure again with these tools
    python benchmarks/int8.py --measure                     # measure again (on an idle machine), keep the files
    python benchmarks/int8.py --memory                      # time and memory at 128, 512 and 2,048 samples
    python benchmarks/int8.py --nncf-python /path/to/venv/bin/python

``onnxedge`` is int8 as it comes; ``onnxedge-minmax`` does what quantize_static does, ranges by min-max and rounding to
nearest, without a look at the answers, so that its time compares. Peers: ONNX Runtime's ``quantize_static`` (uint8
activations, int8 weights per channel, min-max, after ``quant_pre_process``), NNCF 3 after onnxsim's ``simplify``
(``nncf`` with its preset ``mixed``, which is uint8 activations; ``nncf-default``), onnxsim's ``full_graph`` after
``simplify``. NNCF may live in an environment of its own. A peer that refuses an old opset, or writes a file that does
not load, gets the model converted to opset 17. All calibrate on the same unlabelled samples of the training file, the
peers one at a time, with one thread, in a process of their own, which may take 300 s of processor time. Time is
reading, calibrating and writing, without imports; RSS is the peak of that process, in brackets what imports take.

Accuracy is top-1 on the test file where it has the model's labels, with the standard error of the difference;
agreement of the largest output and signal-to-quantization-noise ratio of the worst output are measured on samples that
nobody calibrated on. Latency is the median of interleaved ratios to float in ONNX Runtime at one thread, with
quartiles; in CPU time, which other processes disturb less; and at two threads. *direct* is onnxedge's model against
that of the fastest peer. The exports have random weights. Tables hold all results that are known of the models asked
for. Results lie in $ONNXEDGE_BENCH_CACHE/results/int8.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from int8_cases import CASES, RESULTS, Case, calibration_file, test_file

HERE = Path(__file__).resolve().parent
TOOLS = ("onnxedge", "onnxedge-minmax", "ort", "nncf", "onnxsim", "nncf-default", "onnxedge-verified")
PEERS = ("ort", "nncf", "nncf-default", "onnxsim")
COUNTS = (128, 512, 2048)
CPU_LIMIT, WALL_LIMIT, JUDGE_LIMIT = 300, 1200, 600  #: seconds
Facts = dict[str, Any]


def quantized(case: Case, tool: str, arguments: argparse.Namespace, samples: int, output: Path) -> Facts:
    """Run a tool on a model; the answer holds what it took, or why it failed."""
    job = {
        "tool": tool,
        "source": str(case.model),
        "output": str(output),
        "calib": str(calibration_file(case, samples)),
        "samples": samples,
        "preprocess": case.preprocess,
        "passes": case.passes,
        "options": arguments.options,
        "transformer": case.transformer,
        "limit": CPU_LIMIT,
    }
    python = arguments.nncf_python if tool.startswith("nncf") else sys.executable
    facts = _asked("int8_tools.py", job, WALL_LIMIT, python)
    if "failed" in facts and tool in PEERS and "over" not in facts["failed"]:
        again = _asked("int8_tools.py", job | {"convert": True}, WALL_LIMIT, python)
        if "failed" not in again:
            return again | {"converted": facts["failed"]}
    return facts


def _asked(script: str, question: Facts, limit: float, python: str = sys.executable) -> Facts:
    command = [python, str(HERE / script)]
    try:
        done = subprocess.run(command, input=json.dumps(question), capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"over {limit:.0f} s"}
    if done.returncode in (-24, -9, 152):  # SIGXCPU, or killed behind it
        return {"failed": f"over {CPU_LIMIT} s of processor time, or out of memory (signal {-done.returncode})"}
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return {"failed": lines[-1][:200] if lines else f"exit {done.returncode}"}
    answer: Facts = json.loads(done.stdout)
    return answer


def judged(case: Case, file: Path, arguments: argparse.Namespace, against: str = "") -> Facts:
    """Measure a quantized model against float, or its time against another file's."""
    question = {
        "original": str(case.model),
        "file": str(file),
        "test": str(test_file(case)),
        "preprocess": case.preprocess,
        "limit": case.test_samples,
        "labels": case.labels,
        "classes": case.classes,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "against": against,
    }
    return _asked("int8_judge.py", question, JUDGE_LIMIT)


def known(case: Case, tool: str, samples: int | None = None) -> Facts:
    """Return what an earlier run kept, empty where there is nothing."""
    record = _record(case, tool, samples)
    facts: Facts = json.loads(record.read_text()) if record.exists() else {}
    return facts if facts.get("key") == _key(case) else {}


def _keep(case: Case, tool: str, facts: Facts, samples: int | None = None) -> None:
    record = _record(case, tool, samples)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(facts | {"key": _key(case)}, indent=1))


def _record(case: Case, tool: str, samples: int | None) -> Path:
    return RESULTS / case.name / (f"{tool}.json" if samples is None else f"{tool}-{samples}.json")


def _key(case: Case) -> str:
    return f"{case.model.name}: {case.model.stat().st_size} bytes"


def measured(case: Case, tool: str, arguments: argparse.Namespace) -> Facts:
    """Return all facts of a tool on a model, measured where they are not known."""
    facts, file = known(case, tool), RESULTS / case.name / f"{tool}.onnx"
    if arguments.fresh or not facts:
        file.parent.mkdir(parents=True, exist_ok=True)
        for stale in file.parent.glob(f"{tool}.onnx*"):
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        facts = {"samples": arguments.samples, "made": quantized(case, tool, arguments, arguments.samples, file)}
        if "failed" not in facts["made"]:
            parts = [part for part in file.parent.glob(f"{tool}.onnx*") if part.is_file()]
            facts["bytes"] = sum(part.stat().st_size for part in parts)
    if "failed" not in facts["made"] and tool != "onnxedge-verified" and ("judged" not in facts or arguments.measure):
        facts["judged"] = judged(case, file, arguments)
        facts.pop("direct", None)
    _keep(case, tool, facts)
    return facts


def direct(case: Case, runs: dict[str, Facts], arguments: argparse.Namespace) -> Facts:
    """Time onnxedge's model against that of the fastest peer, where that is not known."""
    own, timed = runs.get("onnxedge", {}), {t: _latency(runs[t]) for t in PEERS if t in runs and _latency(runs[t])}
    if not _latency(own) or not timed:
        return {}
    best = min(timed, key=lambda tool: timed[tool]["cpu_ratio"])
    if own.get("direct", {}).get("peer") != best:
        folder = RESULTS / case.name
        told = judged(case, folder / "onnxedge.onnx", arguments, str(folder / f"{best}.onnx"))
        own["direct"] = {"peer": best, **told.get("direct", {})}
        _keep(case, "onnxedge", own)
    facts: Facts = own["direct"]
    return facts


def _latency(facts: Facts) -> Facts:
    found: Facts = facts.get("judged", {}).get("latency_1", {})
    return found


HEADS = (
    "tool", "top-1 lost, points", "agreement", "SQNR dB", "size", "latency, 1 thread", "in CPU time", "2 threads",
    "CPU s (wall)", "peak RSS MiB",
)  # fmt: skip


def table(case: Case, runs: dict[str, Facts]) -> list[str]:
    """Return the rows of a model."""
    size = case.model.stat().st_size
    told = next((facts["judged"] for facts in runs.values() if "sqnr_db" in facts.get("judged", {})), {})
    base = f", top-1 {100 * told['top1_float']:.2f} %" if "top1_float" in told else ""
    lines = [f"\n### {case.name}: {size / 1e6:.2f} MB{base}, n={told.get('samples', '-')}\n"]
    lines += [f"| {' | '.join(HEADS)} |", f"|{'---|' * len(HEADS)}"]
    for tool, facts in runs.items():
        made, answer = facts["made"], facts.get("judged", {})
        failed = made.get("failed") or answer.get("failed")
        if failed:
            lines.append(f"| {tool} | fails: {failed[:120].replace('|', '/')} |" + " |" * (len(HEADS) - 2))
            continue
        cells = [tool, *_quality(answer), f"{facts['bytes'] / size:.3f}"]
        for threads in (1, 2):
            latency = answer.get(f"latency_{threads}")
            cells.append(f"{latency['ratio']:.2f} [{latency['low']:.2f}, {latency['high']:.2f}]" if latency else "-")
            if threads == 1:
                cells.append(f"{latency['cpu_ratio']:.2f}" if latency else "-")
        cells.append(f"{made['cpu_seconds']:.1f} ({made['seconds']:.1f})")
        cells.append(f"{made['peak_bytes'] / 2**20:.0f} ({made['import_bytes'] / 2**20:.0f})")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _quality(answer: Facts) -> list[str]:
    if not answer:
        return ["-", "-", "-"]
    lost = "-"
    if "top1" in answer:
        lost = f"{100 * (answer['top1_float'] - answer['top1']):+.2f} ± {100 * answer['lost_error']:.2f}"
    agreement = f"{answer['agreement']:.3f}" if "agreement" in answer else "-"
    return [lost, agreement, f"{answer['sqnr_db']:.1f}" + ("" if answer["finite"] else ", NaN")]


def goals(case: Case, runs: dict[str, Facts], against: Facts) -> list[str]:
    """Say what onnxedge falls short of."""
    own, size = runs.get("onnxedge", {}), case.model.stat().st_size
    answer, missed = own.get("judged", {}), []
    if not answer or "failed" in answer:
        return ["onnxedge has no result"]
    peers = {t: f for t, f in runs.items() if t in PEERS and "sqnr_db" in f.get("judged", {})}
    if "top1" in answer:
        best = max((f["judged"]["top1"] for f in peers.values()), default=0.0)
        lost, behind = 100 * (answer["top1_float"] - answer["top1"]), 100 * (best - answer["top1"])
        missed += [f"accuracy: {lost:+.2f} points lost (goal 0.3)"] if lost > 0.3 else []
        missed += [f"accuracy: {behind:.2f} points behind the best peer (goal 0.1)"] if behind > 0.1 else []
    elif peers:
        tool, db = max(((t, f["judged"]["sqnr_db"]) for t, f in peers.items()), key=lambda entry: entry[1])
        missed += [f"SQNR: {answer['sqnr_db']:.1f} dB, {tool} {db:.1f}"] if answer["sqnr_db"] < db - 0.5 else []
    if against and against.get("cpu_ratio", 0.0) > 1.01:
        missed.append(f"latency: {against['cpu_ratio']:.3f} (CPU) of {against['peer']}'s")
    missed += [
        f"latency, {threads} threads: {answer[f'latency_{threads}']['ratio']:.2f} of float's"
        for threads in (1, 2)
        if answer[f"latency_{threads}"]["ratio"] > 1.0
    ]
    if not case.transformer and size > 1e6 and own["bytes"] > 0.28 * size:
        missed.append(f"size: {own['bytes'] / size:.3f} (goal 0.28)")
    like, theirs = runs.get("onnxedge-minmax", {}), runs.get("ort", {})
    if "cpu_seconds" in like.get("made", {}) and "cpu_seconds" in theirs.get("made", {}):
        ours, limit = like["made"]["cpu_seconds"], theirs["made"]["cpu_seconds"]
        missed += [f"time with min-max: {ours:.1f} s, ort {limit:.1f} s"] if ours > 1.02 * limit else []
    return missed


def memory(cases: Sequence[Case], arguments: argparse.Namespace) -> None:
    """Print time and peak memory by number of samples; with no tools asked for what is known."""
    heads = [f"{count} samples: CPU s, RSS MiB" for count in COUNTS]
    print(f"| model | tool | {' | '.join(heads)} |\n|{'---|' * (2 + len(COUNTS))}")
    for case in cases:
        for tool in arguments.tools or TOOLS:
            cells: list[str] = []
            for count in COUNTS:
                facts = known(case, tool, count)
                if arguments.tools and (arguments.fresh or not facts):
                    facts = _counted(case, tool, count, arguments, "over" in "".join(cells))
                failed = facts.get("failed", "" if facts else "-")[:60].replace("|", "/")
                cells.append(failed or f"{facts['cpu_seconds']:.1f}, {facts['peak_bytes'] / 2**20:.0f}")
            if any(cell != "-" for cell in cells):
                print(f"| {case.name} | {tool} | {' | '.join(cells)} |", flush=True)


def _counted(case: Case, tool: str, count: int, arguments: argparse.Namespace, late: bool) -> Facts:
    """Quantize with so many samples; what took too long with fewer is not tried."""
    scratch = RESULTS / case.name / f"{tool}-{count}.onnx"
    scratch.parent.mkdir(parents=True, exist_ok=True)
    facts = {"failed": "over, with fewer"} if late else quantized(case, tool, arguments, count, scratch)
    scratch.unlink(missing_ok=True)
    _keep(case, tool, facts, count)
    return facts


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[], metavar="WORD", help="models whose name holds a word")
    parser.add_argument("--tools", nargs="*", default=list(TOOLS[:-2]), help="none: what is known is printed")
    parser.add_argument("--samples", type=int, default=128, help="calibration samples")
    parser.add_argument("--options", default="", help="options of int8, such as min_sqnr=25,samples=64")
    parser.add_argument("--fresh", action="store_true", help="run these tools again")
    parser.add_argument("--measure", action="store_true", help="measure again what these tools made")
    parser.add_argument("--memory", action="store_true", help="time and memory by number of samples, nothing else")
    parser.add_argument("--rounds", type=int, default=60, help="interleaved rounds of a ratio")
    parser.add_argument("--seconds", type=float, default=5.0, help="longest time for one ratio")
    parser.add_argument("--nncf-python", default=sys.executable, help="Python that has NNCF")
    arguments = parser.parse_args()
    if strange := set(arguments.tools) - set(TOOLS):
        parser.error(f"--tools: no such tools: {', '.join(sorted(strange))} (known: {', '.join(TOOLS)})")
    cases = [c for c in CASES if not arguments.models or any(word in c.name for word in arguments.models)]
    if arguments.memory:
        memory(cases, arguments)
        return
    for case in cases:
        new = {tool: measured(case, tool, arguments) for tool in arguments.tools}
        runs = {tool: new.get(tool) or known(case, tool) for tool in TOOLS}
        runs = {tool: facts for tool, facts in runs.items() if facts}
        print("\n".join(table(case, runs)), flush=True)
        against = direct(case, runs, arguments)
        if against.get("cpu_ratio"):
            quartiles = f"[{against['low']:.2f}, {against['high']:.2f}]"
            text = f"{against['ratio']:.3f} {quartiles}, in CPU time {against['cpu_ratio']:.3f}"
            print(f"\n- direct to {against['peer']}: {text}")
        print("\n".join(f"- missed, {text}" for text in goals(case, runs, against)) or "- all goals met", flush=True)


if __name__ == "__main__":
    main()
