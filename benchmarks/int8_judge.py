"""How well and how fast a quantized model answers: reads a question as JSON from stdin, prints the answer as JSON."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from onnxedge.api import Array, Session, latency_ratio, open_data, optimized_graph

Outputs = dict[str, Array]


def answers(session: Session, data: Any, limit: int | None) -> tuple[Outputs, Array | None]:
    """Return all outputs over the samples, [N, ...] each, and the labels."""
    parts: list[Outputs] = []
    labels = []
    for batch in data.batches(8, limit):
        found = session.run(batch.feed)
        cut = {name: a[: batch.count] if data.fixed_batch else a for name, a in found.items()}
        parts.append({name: np.asarray(a, np.float64).reshape(batch.count, -1) for name, a in cut.items()})
        labels.append(batch.labels)
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return joined, np.concatenate(labels) if labels[0] is not None else None


def sqnr_db(first: Outputs, second: Outputs) -> float:
    """Return signal power over noise power of the worst output in dB."""
    worst = 200.0
    for name, a in first.items():
        noise, signal = float(np.mean((a - second[name]) ** 2)), float(np.mean(a**2))
        worst = min(worst, 10.0 * float(np.log10(max(signal, 1e-30) / max(noise, 1e-30))))
    return worst


def compare(question: dict[str, Any]) -> dict[str, Any]:
    """Return accuracy, or agreement, and signal over noise of one model against float."""
    first, second = Session(Path(question["original"]), threads=2), Session(Path(question["file"]), threads=2)
    data = open_data(question["test"], first.inputs, question["preprocess"])
    limit = question["limit"]
    expected, labels = answers(first, data, limit)
    got, _ = answers(second, data, limit)
    told: dict[str, Any] = {"samples": len(next(iter(expected.values()))), "sqnr_db": sqnr_db(expected, got)}
    a, b = (next(iter(outputs.values())) for outputs in (expected, got))
    if question["labels"] and labels is not None:
        right, still = a.argmax(1) == labels, b.argmax(1) == labels
        change = right.astype(float) - still
        told |= {"top1_float": float(right.mean()), "top1": float(still.mean())}
        told["lost_error"] = float(change.std() / np.sqrt(len(change)))
    if question["classes"]:
        told["agreement"] = float((a.argmax(1) == b.argmax(1)).mean())
    told["finite"] = all(bool(np.isfinite(output).all()) for output in got.values())
    return told


def timed(first: str, second: str, question: dict[str, Any], threads: int) -> dict[str, float]:
    """Time two models in turns on one sample."""
    sessions = [Session(Path(file), threads=threads) for file in (first, second)]
    data = open_data(question["test"], sessions[0].inputs, question["preprocess"])
    feed = next(data.feeds(1, 1))
    rounds, seconds = question["rounds"], question["seconds"]
    return asdict(latency_ratio(sessions[0], sessions[1], feed, rounds=rounds, seconds=seconds))


def main() -> None:
    """Answer one question: a model against float, or two models by time alone."""
    question = json.load(sys.stdin)
    if question.get("against"):
        print(json.dumps({"direct": timed(question["against"], question["file"], question, 1)}))
        return
    answer = compare(question)
    for threads in (1, 2):
        answer[f"latency_{threads}"] = timed(question["original"], question["file"], question, threads)
    answer["runs_as"] = dict(Counter(node.op_type for node in optimized_graph(Path(question["file"])).graph.node))
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
