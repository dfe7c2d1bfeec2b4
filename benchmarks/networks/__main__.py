"""Make the exported networks: ``python benchmarks/networks [--small] [words...]``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from networks import exported, find


def main() -> None:
    """Make what is not there yet and say what each took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="networks whose name holds one of these")
    parser.add_argument("--small", action="store_true", help="fewer and narrower layers")
    arguments = parser.parse_args()
    for export in exported(arguments.small):
        if arguments.words and not any(word in export.name for word in arguments.words):
            continue
        start = time.perf_counter()
        path = find(export)
        print(f"{path} {path.stat().st_size / 2**20:.0f} MiB {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
