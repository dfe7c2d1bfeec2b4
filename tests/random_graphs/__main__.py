"""Hold many random graphs to the law, one for each seed, and show those that break it."""

from __future__ import annotations

import argparse
import random
import time
import traceback
from collections import Counter
from pathlib import Path

import onnx

from random_graphs.build import random_model
from random_graphs.law import Broken, Example, NotAccepted, check
from random_graphs.reduce import smallest


def main() -> None:
    """Run the seeds that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--nodes", type=int, default=12, help="nodes and blocks of the largest graph")
    parser.add_argument("--target", action="append", help="target; may be given more than once")
    parser.add_argument("--show", action="store_true", help="print the smallest graph that still breaks")
    parser.add_argument("--save", type=Path, help="folder for the models that break")
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    start = time.perf_counter()
    for seed in range(arguments.first, arguments.first + arguments.examples):
        if seed > arguments.first and seed % 500 == 0:
            print(f"seed {seed} after {time.perf_counter() - start:.0f} s: {dict(counts)}", flush=True)  # noqa: T201
        model = random_model(random.Random(seed), nodes=arguments.nodes)
        counts["nodes"] += len(model.graph.node)
        targets = arguments.target or ["ort-cpu" if seed % 4 else "generic"]
        try:
            for line in check(Example.of(model), targets):
                counts["rewritten"] += not line.endswith(": 0")
            counts["accepted"] += 1
        except NotAccepted as err:
            counts["not accepted"] += 1
            reasons[_short(str(err))] += 1
        except Broken as err:
            counts["BROKEN"] += 1
            print(f"seed {seed}: {str(err)[:300]}", flush=True)  # noqa: T201
            _show(model, targets, seed, arguments)
        except Exception:
            counts["RAISED"] += 1
            print(f"seed {seed}:\n{traceback.format_exc()}", flush=True)  # noqa: T201
    print(f"{arguments.examples} graphs in {time.perf_counter() - start:.0f} s: {dict(counts)}")  # noqa: T201
    for reason, count in reasons.most_common(10):
        print(f"  not accepted {count}: {reason}")  # noqa: T201


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words[words.find("Status Message") if "Status Message" in words else 0 :][:200]


def _show(model: onnx.ModelProto, targets: list[str], seed: int, arguments: argparse.Namespace) -> None:
    small = smallest(model, targets) if arguments.show else model
    if arguments.save is not None:
        arguments.save.mkdir(parents=True, exist_ok=True)
        (arguments.save / f"seed{seed}.onnx").write_bytes(small.SerializeToString())
    if arguments.show:
        print(onnx.printer.to_text(small), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
