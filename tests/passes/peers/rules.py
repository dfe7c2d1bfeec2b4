"""The graphs on which the peers' rules act, as they stand in the text files beside this one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from traps import parse

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """Hold a graph on which a peer's rule acts.

    Attributes:
        rule: the peers' names for it, and behind a colon what is particular to this graph.
        left: operators that ours leaves, sorted.
        reason: why ours leaves more nodes than the peer, or other ones, on purpose; empty where it does not.
        text: the graph, empty where a reason is all there is; matrices between < > without a value become weights.
        options: target, opset, shapes of further weights, and ``idle`` where the peer's rule exists but does not act.
    """

    rule: str
    left: str
    reason: str
    text: str
    options: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        return set(re.findall(r"\w+", self.rule.partition(":")[0]))

    @property
    def target(self) -> str:
        return self.options.get("target", "ort-cpu")

    def model(self) -> onnx.ModelProto:
        opset, rng = int(self.options.get("opset", 17)), np.random.default_rng(0)
        shapes = {name: text for name, text in self.options.items() if name not in ("target", "opset", "idle")}
        weights = {n: rng.standard_normal([int(d) for d in t.split("x")]).astype(np.float32) for n, t in shapes.items()}
        model = parse(self.text, opset, 11 if opset > 21 else 8, **weights)
        made = {name for node in model.graph.node for name in node.output}
        for value in list(model.graph.value_info):
            if value.name not in made:
                shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
                weight = rng.uniform(0.5, 1.5, shape).astype(np.float32)
                model.graph.initializer.append(numpy_helper.from_array(weight, value.name))
                model.graph.value_info.remove(value)
        return model


@cache
def cases(file: str) -> tuple[Case, ...]:
    return tuple(_cases((HERE / f"{file}.txt").read_text("utf-8")))


def _cases(text: str) -> Iterator[Case]:
    for block in re.split(r"\n\n+", text):
        lines = [line for line in block.splitlines() if not line.startswith("#")]
        if not lines:
            continue
        rule, _, rest = lines[0].partition(" -> ")
        left, _, options = rest.partition(" [")
        reasons = [line.removeprefix("because ") for line in lines if line.startswith("because ")]
        graph = " ".join(line.strip() for line in lines if line.startswith(" "))
        yield Case(rule, left, " ".join(reasons), graph, dict(o.split("=") for o in options.rstrip("]").split()))
