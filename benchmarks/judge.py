"""Are optimized models right, and how fast are they: reads a question as JSON from stdin, prints the answer as JSON.

Runs in a process of its own, so that the memory of one model is gone when the next one comes.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxedge.api import CannotRun, Session

RTOL = 1e-3  #: largest error, as a share of the largest value of that output, that counts as the same answer


def structure(path: Path) -> dict[str, int]:
    """Count operators of all graphs and functions, ``domain::Op`` outside of the default domain."""
    model = onnx.load(path, load_external_data=False)
    counts: Counter[str] = Counter()

    def walk(nodes: Any) -> None:
        for node in nodes:
            counts[node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"] += 1
            for attribute in node.attribute:
                for graph in (attribute.g, *attribute.graphs):
                    walk(graph.node)

    walk(model.graph.node)
    for function in model.functions:
        walk(function.node)
    return dict(counts)


def feed(session: Session, inputs: dict[str, Any], seed: int) -> dict[str, Any]:
    """Make random inputs.

    Args:
        session: of the original, for its dtypes.
        inputs: name -> [shape, exclusive bound of integers or None, a constant or None].
        seed: of the generator.
    """
    rng = np.random.default_rng(seed)
    made = {}
    for spec in session.inputs:
        shape, bound = inputs[spec.name]
        if bound is None:
            made[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        else:
            made[spec.name] = rng.integers(*bound, size=shape).astype(spec.dtype)
    return made


def error(expected: dict[str, Any], got: dict[str, Any]) -> float:
    """Return the largest error as a share of the largest value; infinite where shapes, NaN or integers differ."""
    worst = 0.0
    for name, first in expected.items():
        second = got.get(name)
        if second is None or np.shape(first) != np.shape(second):
            return float("inf")
        a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
        if not np.array_equal(np.isfinite(a), np.isfinite(b)):
            return float("inf")
        a, b = a[np.isfinite(a)], b[np.isfinite(b)]
        if a.size:
            worst = max(worst, float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30)))
    return worst


def verdict(original: Session, path: Path, feeds: list[Any], expected: list[Any]) -> tuple[str, float | None]:
    """Return ok, wrong or fails, and the error."""
    try:
        session = Session(path)
        if session.inputs != original.inputs or session.output_names != original.output_names:
            renamed = [i.name for i in session.inputs] != [i.name for i in original.inputs]
            if renamed or session.output_names != original.output_names:
                return "wrong: other inputs or outputs", None
            frozen = [i.name for i, j in zip(session.inputs, original.inputs, strict=True) if i.shape != j.shape]
            if frozen and len(feeds) == 1:
                return f"wrong: shape of {frozen[0]} frozen", None
        worst = max(error(e, session.run(f)) for f, e in zip(feeds, expected, strict=True))
    except CannotRun as err:
        return f"fails: {str(err)[:160]}", None
    return ("ok" if worst <= RTOL else "wrong"), worst


def ratio(first: Path, second: Path, inputs: Any, pairs: int, seconds: float) -> dict[str, float]:
    """Return the ratio second/first of interleaved runs: by wall clock and by processor time of the one thread.

    Both are medians of per-pair ratios. On an idle machine they agree; on a busy one the second still holds.
    """
    sessions = (Session(first), Session(second))
    for session in sessions * 2:
        session.run(inputs)
    repeat = max(1, min(50, int(4e-3 / max(_times(sessions[0], inputs, 1)[1], 1e-6))))
    wall: tuple[list[float], list[float]] = ([], [])
    busy: tuple[list[float], list[float]] = ([], [])
    start = time.perf_counter()
    for index in range(pairs):
        for side in (0, 1) if index % 2 == 0 else (1, 0):
            elapsed, spent = _times(sessions[side], inputs, repeat)
            wall[side].append(elapsed)
            busy[side].append(spent)
        if index >= 6 and time.perf_counter() - start > seconds:
            break
    by_wall = sorted(b / a for a, b in zip(*wall, strict=True))
    by_cpu = sorted(b / a for a, b in zip(*busy, strict=True))
    count = len(by_cpu)
    return {
        "wall": statistics.median(by_wall),
        "cpu": statistics.median(by_cpu),
        "low": by_cpu[count // 4],
        "high": by_cpu[(3 * count) // 4],
        "error": 0.93 * (by_cpu[(3 * count) // 4] - by_cpu[count // 4]) / count**0.5,
        "first_ms": 1e3 * statistics.median(busy[0]) / repeat,
        "second_ms": 1e3 * statistics.median(busy[1]) / repeat,
        "pairs": count,
    }


def _times(session: Session, inputs: Any, repeat: int) -> tuple[float, float]:
    start, busy = time.perf_counter(), time.process_time()
    for _ in range(repeat):
        session.run(inputs)
    return time.perf_counter() - start, time.process_time() - busy


def main() -> None:
    """Answer one question."""
    question = json.load(sys.stdin)
    original, candidates = Path(question["original"]), {k: Path(v) for k, v in question["candidates"].items()}
    pairs, seconds = question["pairs"], question["seconds"]
    reference = Session(original)
    feeds = [feed(reference, inputs, seed) for seed, inputs in enumerate(question["feeds"])]
    expected = [reference.run(f) for f in feeds]
    answer: dict[str, Any] = {"original": {"ops": structure(original)}, "tools": dict(question["known"])}
    fresh = {name: path for name, path in candidates.items() if name not in question["known"]}
    for name, path in fresh.items():
        outcome, worst = verdict(reference, path, feeds, expected)
        answer["tools"][name] = {"ops": structure(path), "outcome": outcome, "error": worst}
    del reference, expected
    if pairs:
        answer["original"]["latency"] = ratio(original, original, feeds[0], pairs, seconds)
        for name, path in fresh.items():
            if answer["tools"][name]["outcome"] == "ok" and name not in question["untimed"]:
                answer["tools"][name]["latency"] = ratio(original, path, feeds[0], pairs, seconds)
        answer["direct"] = direct(candidates, answer["tools"], feeds[0], question)
    print(json.dumps(answer))


def direct(candidates: dict[str, Path], tools: dict[str, Any], inputs: Any, question: dict[str, Any]) -> dict[str, Any]:
    """Time onnxedge's model against that of the peer which came out fastest."""
    own = question["own"]
    timed = {n: t["latency"]["cpu"] for n, t in tools.items() if "latency" in t and n in question["peers"]}
    if own not in tools or "latency" not in tools[own] or not timed:
        return {}
    best = min(timed, key=timed.__getitem__)
    return {"peer": best} | ratio(candidates[best], candidates[own], inputs, question["pairs"], question["seconds"])


if __name__ == "__main__":
    main()
