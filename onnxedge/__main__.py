"""Run the command line as ``python -m onnxedge``."""

from __future__ import annotations

from onnxedge.cli import main

if __name__ == "__main__":
    main(prog_name="onnxedge")
