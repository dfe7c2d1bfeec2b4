"""Clean-up and fusion side by side: onnxedge ``fold,fuse`` and its peers on the same models, one table a model.

    python benchmarks/cleanup.py                     # the zoo and all exports (makes them first: torch, and an hour)
    python benchmarks/cleanup.py zoo kwt1 bert       # sets (zoo, torchscript, dynamo) or words in a model's name
    python benchmarks/cleanup.py --small dynamo      # exports with fewer layers
    python benchmarks/cleanup.py bert --tools onnxedge onnxslim --pairs 60
    python benchmarks/cleanup.py --reuse             # the peers' results of an earlier run are taken again

Each tool runs in a process of its own. Time is reading, optimizing and writing, without imports, by wall clock and as
processor time, which decides on a busy machine; RSS is the peak of that process, in brackets what imports alone take.
``right`` compares with the original at random inputs (two sizes of the free axes): the largest error is at most 1e-3 of
the largest value. Latency is the median of per-pair time ratios of interleaved runs in ONNX Runtime at ENABLE_ALL, one
thread: by processor time, which a busy machine disturbs less, with quartiles, and by wall clock. Noise is the largest
of two standard errors of the median (from the quartiles), how far the original is from itself, and 0.01.

The goals compare with onnxsim, onnxslim, onnxscript and onnxruntime.transformers where their result is right.
``onnxedge-wide`` is onnxedge for the target ort-cuda, which has ONNX Runtime's fused operators that cost time on the
CPU: onnxruntime.transformers and onnxscript-ort emit those on every device, so that their nodes and fusions are
compared with it. Where a model lets callers replace its initializers (ultraface), the peers freeze them without asking
and onnxedge is told to, with ``freeze-initializers``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from networks import NETWORKS, exported, find
from networks.catalogue import CACHE

HERE = Path(__file__).resolve().parent
ZOO = Path(os.environ.get("ONNXEDGE_ZOO", HERE.parents[1] / "shared" / "zoo"))
RESULTS = CACHE / "results"
TOOLS = (
    "onnxedge",
    "onnxedge-wide",
    "onnxsim",
    "onnxslim",
    "onnxscript",
    "onnxscript-ort",
    "transformers-0",
    "transformers-1",
    "ort-extended",
    "onnxedge-verified",
)
PEERS = ("onnxsim", "onnxslim", "onnxscript", "onnxscript-ort", "transformers-0", "transformers-1")
CONTRIB_PEERS = ("onnxscript-ort", "transformers-0", "transformers-1")
WIDE = "ort-cuda"
TIMEOUT_SECONDS = 900
NOISE = 0.01  #: a latency ratio this far above 1 is noise in any case

KINDS: Mapping[str, str] = {
    "bert": "bert", "gpt2": "gpt2", "vit": "vit", "kwt1": "vit", "whisper": "bart", "llama": "qwen3",
}  # fmt: skip

FUSED: Mapping[str, tuple[str, ...]] = {
    "norm": (
        "LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization", "GroupNorm",
        "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
        "EmbedLayerNormalization", "SkipGroupNorm",
    ),
    "activation": (
        "Gelu", "FastGelu", "QuickGelu", "BiasGelu", "BiasSplitGelu", "HardSwish", "Swish", "Mish", "Softplus",
    ),
    "attention": ("Attention", "MultiHeadAttention", "GroupQueryAttention", "PackedAttention", "QAttention"),
    "rotary": ("RotaryEmbedding",),
    "matmul": ("Gemm", "FusedMatMul", "FusedGemm", "GemmFastGelu"),
    "conv": ("FusedConv", "NhwcFusedConv"),
}  # fmt: skip
COUNTED = ("norm", "activation", "attention", "rotary")  #: kinds that the goal "at least their fusions" counts


@dataclass(frozen=True)
class Model:
    """Name a model, where it lies, and what to feed it: shape and integer range by input, one entry for each run."""

    name: str
    set: str
    path: Path
    feeds: tuple[Mapping[str, tuple[tuple[int, ...], tuple[int, int] | None]], ...]
    overridable: bool = False

    @property
    def passes(self) -> str:
        """Return onnxedge's pipeline: initializers that a caller may replace are frozen first, as the peers do."""
        return "freeze-initializers,fold,fuse" if self.overridable else "fold,fuse"

    @property
    def kind(self) -> str:
        """Return the model type for onnxruntime.transformers."""
        return next((kind for word, kind in KINDS.items() if self.name.startswith(word)), "bert")


ZOO_FEEDS: Mapping[str, Any] = {
    "silero_vad_16k_op15": {"input": ((1, 512), None), "state": ((2, 1, 128), None), "sr": ((), (16000, 16001))},
}


def zoo_models() -> Iterator[Model]:
    """Yield the models of the zoo; free axes are 1."""
    import onnx

    for path in sorted((ZOO / "models").glob("*.onnx")):
        proto = onnx.load(path)
        graph = proto.graph
        given = {initializer.name for initializer in graph.initializer}
        feeds = {}
        for value in graph.input:
            if value.name not in given:
                tensor = value.type.tensor_type
                shape = tuple(d.dim_value if d.dim_value > 0 else 1 for d in tensor.shape.dim)
                feeds[value.name] = (shape, None if tensor.elem_type in (1, 10, 11) else (0, 100))
        overridable = proto.ir_version >= 4 and any(value.name in given for value in graph.input)
        yield Model(path.stem, "zoo", path, (ZOO_FEEDS.get(path.stem, feeds),), overridable)


def export_models(small: bool) -> Iterator[Model]:
    """Yield the exports, made where they are not there; those with free axes run at two sizes."""
    for export in exported(small):
        network = NETWORKS[export.network]
        feeds = []
        for grow in (False, True) if export.free else (False,):
            feeds.append(
                {
                    name: (
                        tuple(_grown(d, network.free.get(name, {}).get(i)) if grow else d for i, d in enumerate(shape)),
                        None if bound is None else (0, bound),
                    )
                    for name, (shape, bound) in network.inputs.items()
                }
            )
        yield Model(export.name, export.exporter, export.path, tuple(feeds))


def _grown(size: int, symbol: str | None) -> int:
    return {None: size, "batch": size + 2, "tokens": size // 2 + 5}.get(symbol, size // 2)


def selected(words: list[str], small: bool) -> Iterator[Model]:
    """Yield the models that were asked for: by set, by name, or by a part of the name that is nobody's name."""
    models = (*zoo_models(), *export_models(small))
    names = {model.name for model in models}
    for model in models:
        if not words or any(w in (model.set, model.name) or (w in model.name and w not in names) for w in words):
            yield model


def optimize(model: Model, tool: str, reuse: bool) -> dict[str, Any]:
    """Run one tool on one model, or take its earlier result; the answer holds the file or the error."""
    folder = RESULTS / model.path.stem
    folder.mkdir(parents=True, exist_ok=True)
    output, record = folder / f"{tool}.onnx", folder / f"{tool}.json"
    if reuse and record.exists() and not tool.startswith("onnxedge"):
        earlier: dict[str, Any] = json.loads(record.read_text())
        if "failed" not in earlier:
            return earlier
    for stale in folder.glob(f"{tool}.onnx*"):
        stale.unlink()
    worker, kind = tool, model.kind
    if tool.startswith("onnxedge"):
        worker = tool.replace("-wide", "")
        kind = f"{WIDE if tool.endswith('-wide') else 'ort-cpu'}:{model.passes}"
    command = [sys.executable, str(HERE / "peers.py"), worker, str(model.path), str(output), kind]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
        facts = json.loads(done.stdout) if done.returncode == 0 else {"failed": _reason(done)}
    except subprocess.TimeoutExpired:
        facts = {"failed": f"over {TIMEOUT_SECONDS} s"}
    if "failed" not in facts and not output.exists():
        facts["failed"] = "wrote nothing"
    if "failed" not in facts:
        facts["file"] = str(output)
    record.write_text(json.dumps(facts, indent=1))
    return facts


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return f"exit {done.returncode}: {lines[-1][:160] if lines else ''}"


def judged(model: Model, runs: Mapping[str, Any], pairs: int, seconds: float, reuse: bool) -> dict[str, Any]:
    """Ask the judge about all results of a model, or about onnxedge's alone where those of the peers are known."""
    record, known = RESULTS / model.path.stem / "judged.json", {}
    if reuse and record.exists():
        known = {
            tool: told
            for tool, told in json.loads(record.read_text())["tools"].items()
            if tool in runs and not tool.startswith("onnxedge") and ("latency" in told or not pairs)
        }
    question = {
        "known": known,
        "original": str(model.path),
        "candidates": {tool: facts["file"] for tool, facts in runs.items() if "file" in facts},
        "feeds": model.feeds,
        "pairs": pairs,
        "seconds": seconds,
        "own": "onnxedge",
        "peers": PEERS,
        "untimed": ("onnxedge-verified", "onnxedge-wide"),
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "judge.py")], input=json.dumps(question), capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{model.name}: judge: {_reason(done)}")
    answer: dict[str, Any] = json.loads(done.stdout)
    record.write_text(json.dumps(answer, indent=1))
    return answer


def fused(ops: Mapping[str, int]) -> Counter[str]:
    """Count fused operators by kind."""
    counts: Counter[str] = Counter()
    for name, count in ops.items():
        for kind, members in FUSED.items():
            if name.split("::")[-1] in members:
                counts[kind] += count
    return counts


def table(model: Model, runs: Mapping[str, Any], answer: Mapping[str, Any]) -> list[str]:
    """Return the rows of one model."""
    original = answer["original"]["ops"]
    lines = [
        f"\n### {model.name}: {sum(original.values())} nodes\n",
        "| tool | nodes | fused | right | wall s, of it CPU | peak RSS MiB | latency / original |",
        "|---|---|---|---|---|---|---|",
    ]
    same = answer["original"].get("latency")
    if same:
        lines.append(
            f"| original | {sum(original.values())} | {_kinds(original)} | | | | {_speed(same)}, "
            f"{same['first_ms']:.2f} ms |"
        )
    for tool, facts in runs.items():
        if "failed" in facts:
            lines.append(f"| {tool} | - | - | {facts['failed'][:80]} | | | |")
            continue
        told = answer["tools"][tool]
        latency = told.get("latency")
        right = told["outcome"] if told["error"] is None else f"{told['outcome']} {told['error']:.0e}"
        lines.append(
            f"| {tool} | {sum(told['ops'].values())} | {_kinds(told['ops'])} | {right} | "
            f"{facts['seconds']:.2f}, {facts['cpu_seconds']:.2f} | "
            f"{facts['peak_bytes'] / 2**20:.0f} ({facts['import_bytes'] / 2**20:.0f}) | {_speed(latency)} |"
        )
    return lines


def _speed(latency: Mapping[str, float] | None) -> str:
    if not latency:
        return "-"
    return f"{latency['cpu']:.3f} [{latency['low']:.2f}, {latency['high']:.2f}], wall {latency['wall']:.3f}"


def _noise(latency: Mapping[str, float], same: Mapping[str, float]) -> float:
    return max(NOISE, 2 * latency["error"], abs(same["cpu"] - 1))


def _kinds(ops: Mapping[str, int]) -> str:
    return " ".join(f"{kind} {count}" for kind, count in fused(ops).items()) or "-"


def goals(runs: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, str]:
    """Return each goal as ``met ...`` or ``missed ...``."""
    tools = answer["tools"]
    own = tools.get("onnxedge")
    if own is None or own["outcome"] != "ok":
        return {"right": f"missed: {own['outcome'] if own else runs.get('onnxedge', {}).get('failed')}"}
    wide = tools.get("onnxedge-wide", own)
    peers = {name: tools[name] for name in PEERS if name in tools and tools[name]["outcome"] == "ok"}
    more, fewer = [], []
    for name, peer in peers.items():
        mine = wide if name in CONTRIB_PEERS else own
        count, theirs = sum(mine["ops"].values()), sum(peer["ops"].values())
        if count > theirs:
            more.append(f"{name} {theirs} against {count}")
        lacking = {
            kind: (fused(peer["ops"])[kind], fused(mine["ops"])[kind])
            for kind in COUNTED
            if fused(mine["ops"])[kind] < fused(peer["ops"])[kind]
        }
        fewer += [f"{name} {kind} {a} against {b}" for kind, (a, b) in lacking.items()]
    told = {
        "right": f"met: error {own['error']:.0e}",
        "nodes": "missed: " + ", ".join(more) if more else "met",
        "fusions": "missed: " + ", ".join(fewer) if fewer else "met",
    }
    direct, latency, same = answer.get("direct"), own.get("latency"), answer["original"].get("latency", {})
    if direct:
        noise = _noise(direct, same)
        word = "met" if direct["cpu"] <= 1 + noise else "missed"
        told["latency"] = f"{word}: {_speed(direct)} of {direct['peer']}, noise {noise:.3f}"
    if latency:
        noise = _noise(latency, same)
        word = "met" if latency["cpu"] <= 1 + noise else "missed"
        told["not slower"] = f"{word}: {_speed(latency)} of the original, noise {noise:.3f}"
    slim = runs.get("onnxslim", {})
    if "seconds" in slim:
        mine = runs["onnxedge"]
        word = "met" if mine["cpu_seconds"] <= slim["cpu_seconds"] else "missed"
        told["time"] = (
            f"{word}: {mine['cpu_seconds']:.2f} s, onnxslim {slim['cpu_seconds']:.2f} s of processor time "
            f"(wall {mine['seconds']:.2f}, {slim['seconds']:.2f})"
        )
    return told


def row(model: Model, runs: Mapping[str, Any], answer: Mapping[str, Any], told: Mapping[str, str]) -> str:
    """Return the summary of a model as the row of a table."""
    tools = {name: tool for name, tool in answer["tools"].items() if tool["outcome"] == "ok"}
    nodes = {name: sum(tool["ops"].values()) for name, tool in tools.items()}
    own, direct = tools.get("onnxedge"), answer.get("direct")
    if own is None:
        return f"| {model.name} | {sum(answer['original']['ops'].values())} | - |"
    cells = [model.name, sum(answer["original"]["ops"].values()), nodes["onnxedge"], nodes.get("onnxedge-wide", "-")]
    for names in ([name for name in PEERS if name not in CONTRIB_PEERS], CONTRIB_PEERS):
        cells.append(min(((nodes[name], name) for name in names if name in nodes), default=("-", "")))
    counts = fused(tools.get("onnxedge-wide", own)["ops"])
    cells.append(" ".join(f"{kind} {counts[kind]}" for kind in COUNTED if counts[kind]) or "-")
    same = answer["original"].get("latency", {})
    cells.append(f"{direct['cpu']:.3f} ± {_noise(direct, same):.3f} {direct['peer']}" if direct else "-")
    cells.append(f"{own['latency']['cpu']:.3f}" if own.get("latency") else "-")
    timed = [runs.get(name, {}).get("cpu_seconds") for name in ("onnxedge", "onnxslim")]
    cells.append(" / ".join("-" if seconds is None else f"{seconds:.2f}" for seconds in timed))
    cells.append(f"{runs['onnxedge']['peak_bytes'] / 2**20:.0f}")
    cells.append(", ".join(goal for goal, text in told.items() if not text.startswith("met")) or "-")
    return "| " + " | ".join(" ".join(map(str, c)) if isinstance(c, tuple) else str(c) for c in cells) + " |"


def main() -> None:
    """Print the tables, a model at a time, and the goals of all at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="sets (zoo, torchscript, dynamo) or words in a model's name")
    parser.add_argument("--tools", nargs="+", default=list(TOOLS[:-1]), choices=TOOLS)
    parser.add_argument("--small", action="store_true", help="exports with fewer and narrower layers")
    parser.add_argument("--pairs", type=int, default=40, help="pairs of interleaved runs; 0 measures no latency")
    parser.add_argument("--seconds", type=float, default=8.0, help="longest time for one ratio")
    parser.add_argument("--reuse", action="store_true", help="take peers' results of an earlier run")
    parser.add_argument("--quiet", action="store_true", help="print the goals alone")
    arguments = parser.parse_args()
    summary = []
    for model in selected(arguments.words, arguments.small):
        if model.set != "zoo":
            find(next(e for e in exported(arguments.small) if e.path == model.path))
        runs = {tool: optimize(model, tool, arguments.reuse) for tool in arguments.tools}
        answer = judged(model, runs, arguments.pairs, arguments.seconds, arguments.reuse)
        if not arguments.quiet:
            print("\n".join(table(model, runs, answer)), flush=True)
        told = goals(runs, answer)
        print("\n" + "\n".join(f"- {model.name} {goal}: {text}" for goal, text in told.items()), flush=True)
        summary.append(row(model, runs, answer, told))
    heads = (
        "model", "nodes", "onnxedge", "wide", "best standard peer", "best peer with ORT operators", "fused (wide)",
        "latency to the fastest peer", "to the original", "CPU s, onnxedge / onnxslim", "RSS MiB", "goals missed",
    )  # fmt: skip
    print("\n" + "\n".join([f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *summary]))


if __name__ == "__main__":
    main()
