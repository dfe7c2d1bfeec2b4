"""Run ``onnxedge optimize MODEL --passes fold,fuse`` on each hostile model and print what became of it.

    python benchmarks/hostile.py                   # all of them, in a new interpreter each
    python benchmarks/hostile.py bombs "Loop of"   # those whose name holds a word
    python benchmarks/hostile.py --forked          # faster: forks of one process, as the tests do

Seconds are of the wall clock, busy ones of the processor.
A model is to be optimized rightly, or refused with one line and exit code 2, within 10 seconds and 1 GB.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from hostile import HUGE, MODELS
from hostile.trial import Server, Trial, attempt, start_fresh


def main() -> None:
    """Print the table, a row at a time, and the figures of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="run the models whose name holds one of these")
    parser.add_argument("--forked", action="store_true", help="fork one process instead of starting a new one each")
    parser.add_argument("--wrong", action="store_true", help="print only what went wrong")
    arguments = parser.parse_args()
    models = MODELS | HUGE
    chosen = [n for n in models if not arguments.words or any(word in n for word in arguments.words)]
    trials: dict[str, Trial] = {}
    print("| model | result | seconds | busy | MB | detail |\n|---|---|---|---|---|---|")
    with Server() as server:
        for name in chosen:
            start = server.start if arguments.forked else start_fresh
            trial = trials[name] = attempt(models[name], start, server.compare)
            if trial.result == "WRONG" or not arguments.wrong:
                print(
                    f"| {name[:60]} | {_result(trial)} | {trial.seconds:.1f} | {trial.busy_seconds:.1f} | "
                    f"{trial.peak_bytes / 1e6:.0f} | "
                    f"{trial.detail[:300]!r} |",
                    flush=True,
                )
    counts = Counter(_result(trial) for trial in trials.values())
    print(f"\n{len(trials)} models: {', '.join(f'{count} {result}' for result, count in counts.items())}")
    print(
        f"longest {max(t.seconds for t in trials.values()):.1f} s, "
        f"{max(t.busy_seconds for t in trials.values()):.1f} s of processor time, "
        f"largest {max(t.peak_bytes for t in trials.values()) / 1e6:.0f} MB"
    )


def _result(trial: Trial) -> str:
    return "optimized, equal outputs" if trial.compared and trial.result == "optimized" else trial.result


if __name__ == "__main__":
    main()
