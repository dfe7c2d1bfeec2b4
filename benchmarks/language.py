"""Train a small language model of the GPT-2 kind and print what 4 and 8 bits do to its perplexity.

    OMP_NUM_THREADS=1 python benchmarks/language.py --train    # once, half a minute; needs torch
    OMP_NUM_THREADS=1 python benchmarks/language.py            # the table

The text is made here: sentences of a grammar with a vocabulary by Zipf's law, in which verbs agree with their subjects
over relative clauses, names come back as pronouns, brackets close in order and sums are right, so that there is
something to learn at every distance. Training, calibration and test text have seeds of their own; nothing is chosen on
the test text. Perplexity is ``exp`` of the mean negative log-likelihood of each token but the first; its error is that
of the mean over sequences, and that of the difference to float is taken sequence by sequence. Time is that of one
sequence of all ``TOKENS`` over float's, in turns.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

import onnxedge
from onnxedge.api import Array, Session, constant, latency_ratio, load, set_constant
from onnxedge.model.serialize import to_proto

if TYPE_CHECKING:
    import torch

NOUNS, VERBS, NAMES, ADJECTIVES, NUMBERS = 240, 120, 40, 80, 20
WORDS = ["<s>", ".", "the", "a", "that", "and", "he", "she", "(", ")", "[", "]", "plus", "is", "then"]
PARTS = {"noun": 2 * NOUNS, "verb": 2 * VERBS, "name": NAMES, "adjective": ADJECTIVES, "number": 2 * NUMBERS}
START = dict(zip(PARTS, np.cumsum([len(WORDS), *PARTS.values()])[:-1].tolist(), strict=True))
VOCABULARY = len(WORDS) + sum(PARTS.values())
TOKENS, FEATURES, HEADS, LAYERS = 96, 128, 4, 4
STEPS, BATCH = 260, 16
WAYS = {
    "float": "",
    "int8 plain": "int8(min_sqnr=-99,smooth=off,equalize=off)",
    "int8 smoothed": "int8(min_sqnr=-99)",
    "int8(mode=dynamic)": "int8(mode=dynamic,min_sqnr=-99)",
    "int4 rtn": "method=rtn",
    "int4 hqq": "method=hqq",
    "int4 gptq": "method=gptq",
    "int4 awq": "method=awq",
    "int4 auto": "method=auto",
}


class Grammar:
    """Make text."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def zipf(self, count: int) -> int:
        """Return the rank of a word, common ones more often."""
        rank = int(count ** float(self.rng.random())) - 1
        return min(rank, count - 1)

    def word(self, part: str, index: int) -> int:
        return START[part] + index

    def phrase(self, depth: int) -> tuple[list[int], bool]:
        """Return a noun phrase and whether it is plural; each noun likes some adjectives and verbs."""
        noun, plural = self.zipf(NOUNS), bool(self.rng.random() < 0.4)
        text = [WORDS.index("the" if plural or self.rng.random() < 0.5 else "a")]
        if self.rng.random() < 0.4:
            text.append(self.word("adjective", (7 * noun + int(self.rng.integers(3))) % ADJECTIVES))
        text.append(self.word("noun", 2 * noun + plural))
        if depth and self.rng.random() < 0.3:
            inner, many = self.phrase(depth - 1)
            verb = (5 * noun + int(self.rng.integers(4))) % VERBS
            text += [WORDS.index("that"), *inner, self.word("verb", 2 * verb + many)]
        return text, plural

    def clause(self) -> list[int]:
        """Return subject, verb and object; the verb agrees with the subject."""
        if self.rng.random() < 0.3:
            name = self.zipf(NAMES)
            verb, other = self.zipf(VERBS), self.zipf(VERBS)
            pronoun = WORDS.index("he" if name % 2 else "she")
            thing = self.phrase(0)[0]
            first = [self.word("name", name), self.word("verb", 2 * verb), *thing]
            return [*first, WORDS.index("then"), pronoun, self.word("verb", 2 * other)]
        subject, plural = self.phrase(2)
        verb = (5 * ((subject[-1] - START["noun"]) // 2) + int(self.rng.integers(4))) % VERBS
        return [*subject, self.word("verb", 2 * verb + plural), *self.phrase(1)[0]]

    def brackets(self, depth: int) -> list[int]:
        left, right = ("(", ")") if self.rng.random() < 0.5 else ("[", "]")
        inner = self.brackets(depth - 1) if depth and self.rng.random() < 0.6 else [*self.phrase(0)[0]]
        return [WORDS.index(left), *inner, WORDS.index(right)]

    def sentence(self) -> list[int]:
        kind = self.rng.random()
        if kind < 0.12:
            a, b = (int(n) for n in self.rng.integers(0, NUMBERS, 2))
            numbers = [self.word("number", n) for n in (a, b, a + b)]
            text = [numbers[0], WORDS.index("plus"), numbers[1], WORDS.index("is"), numbers[2]]
        elif kind < 0.25:
            text = self.brackets(3)
        else:
            text = self.clause()
            if self.rng.random() < 0.3:
                text += [WORDS.index("and"), *self.clause()]
        return [*text, WORDS.index(".")]

    def sequences(self, count: int) -> Array:
        """Return int64 [count, TOKENS], each a cut of running text that begins with the start token."""
        text: list[int] = []
        while len(text) < count * (TOKENS - 1):
            text += self.sentence()
        rows = np.array(text[: count * (TOKENS - 1)], np.int64).reshape(count, -1)
        return np.concatenate([np.zeros((count, 1), np.int64), rows], axis=1)


def network() -> torch.nn.Module:
    """Return the model: pre-norm blocks, learned positions, a head of its own."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(FEATURES), nn.LayerNorm(FEATURES)
            self.query, self.key, self.value, self.out = (nn.Linear(FEATURES, FEATURES) for _ in range(4))
            self.up, self.down = nn.Linear(FEATURES, 4 * FEATURES), nn.Linear(4 * FEATURES, FEATURES)

        def split(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(x.shape[0], x.shape[1], HEADS, FEATURES // HEADS).transpose(1, 2)

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            n = self.norm1(x)
            query, key, value = (self.split(part(n)) for part in (self.query, self.key, self.value))
            scores = query @ key.transpose(-1, -2) / (FEATURES // HEADS) ** 0.5 + mask
            mixed = (scores.softmax(-1) @ value).transpose(1, 2)
            x = x + self.out(mixed.reshape(x.shape))
            return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(VOCABULARY, FEATURES), nn.Embedding(TOKENS, FEATURES)
            nn.init.normal_(self.words.weight, std=0.1)
            nn.init.normal_(self.places.weight, std=0.1)
            self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
            self.norm, self.head = nn.LayerNorm(FEATURES), nn.Linear(FEATURES, VOCABULARY, bias=False)
            self.register_buffer("mask", torch.full((TOKENS, TOKENS), -1e4).triu(1), persistent=False)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.words(tokens) + self.places.weight
            for block in self.blocks:
                x = block(x, self.mask)
            return self.head(self.norm(x))

    return Model()


def train(file: Path, steps: int) -> None:
    """Train and export."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, text = network(), torch.from_numpy(Grammar(0).sequences(steps * BATCH))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        batch = text[step * BATCH : (step + 1) * BATCH]
        loss = torch.nn.functional.cross_entropy(model(batch)[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1}: perplexity {float(loss.exp()):.2f}", flush=True)
    model.eval()
    torch.onnx.export(
        model,
        (text[:2],),
        str(file),
        input_names=["tokens"],
        output_names=["logits"],
        dynamic_axes={"tokens": {0: "N"}, "logits": {0: "N"}},
        opset_version=17,
        dynamo=False,
    )


def with_outliers(model: ir.Model, spread: float) -> None:
    """Scale some channels behind each normalization up and the weights that read them down: float outputs stay.

    Large language models have such channels by themselves; one in 32 here, ``spread`` times as large.
    """
    rng = np.random.default_rng(3)
    for norm in model.graph:
        readers = _readers(norm.outputs[0]) if norm.op_type == "LayerNormalization" else []
        if not readers or any(n.op_type not in ("MatMul", "Gemm") or constant(n.inputs[1]) is None for n in readers):
            continue
        if any(node.attributes.get_int("transB", 0) for node in readers):
            continue
        factor = np.where(rng.permutation(FEATURES) % 32 == 0, spread, 1.0).astype(np.float32)
        changes = [(norm, 1, factor), (norm, 2, factor), *((node, 1, 1 / factor[:, None]) for node in readers)]
        for node, index, by in changes:
            array = constant(node.inputs[index])
            assert array is not None
            set_constant(node, index, array * by)


def _readers(value: ir.Value) -> list[ir.Node]:
    """Return the nodes that read a value, behind a Reshape to rows too."""
    readers: list[ir.Node] = []
    for use in value.uses():
        readers += _readers(use.node.outputs[0]) if use.node.op_type == "Reshape" else [use.node]
    return readers


def surprise(model: ir.Model, text: Array) -> Array:
    """Return the mean negative log-likelihood of each sequence, float64 [N]."""
    session, found = Session(model), []
    for start in range(0, len(text), 16):
        batch = text[start : start + 16]
        logits = session.run({"tokens": batch})["logits"][:, :-1].astype(np.float64)
        top = logits.max(axis=-1, keepdims=True)
        total = np.log(np.exp(logits - top).sum(axis=-1)) + top[..., 0]
        taken = np.take_along_axis(logits, batch[:, 1:, None], axis=-1)[..., 0]
        found.append((total - taken).mean(axis=1))
    return np.concatenate(found)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true", help="train and export the model first")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--model", type=Path, default=Path(tempfile.gettempdir()) / "onnxedge_language.onnx")
    parser.add_argument("--samples", type=int, default=256, help="test sequences")
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--outliers", type=float, default=1.0, help="how much larger one channel in 32 is made")
    parser.add_argument("words", nargs="*", help="print the rows whose name holds one of these, and float")
    arguments = parser.parse_args()
    if arguments.train or not arguments.model.exists():
        train(arguments.model, arguments.steps)
    base = onnxedge.optimize(load(arguments.model), "fold,fuse", measure=False).model
    with_outliers(base, arguments.outliers)
    test = Grammar(2).sequences(arguments.samples)
    first, session = surprise(base, test), Session(base)
    size = len(to_proto(base).SerializeToString())
    what = f"blocks of {arguments.block_size}, outliers {arguments.outliers:g}"
    print(f"{arguments.samples} test sequences of {TOKENS} tokens, {what}")
    print("| weights | perplexity | over float | file | latency ratio, ONNX Runtime CPU, 1 thread |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        calib = Path(folder) / "calib.npz"
        np.savez(calib, tokens=Grammar(1).sequences(128))
        for name, how in WAYS.items():
            if name != "float" and arguments.words and not any(word in name for word in arguments.words):
                continue
            options = f"slower=true,min_elements=1,min_sqnr=-99,block_size={arguments.block_size}"
            passes = how if name.startswith("int8") else f"int4({how},{options})"
            model = base if name == "float" else onnxedge.optimize(base, passes, calib=calib, measure=False).model
            found = surprise(model, test)
            change = found - first
            error = float(change.std() / np.sqrt(len(change)))
            speed = latency_ratio(session, Session(model), {"tokens": test[:1]}, rounds=40, seconds=2.0)
            bytes_ = len(to_proto(model).SerializeToString())
            print(
                f"| {name} | {np.exp(found.mean()):.3f} | {100 * np.expm1(change.mean()):+.2f} ± {100 * error:.2f} % | "
                f"{bytes_ / size:.3f} | {speed.ratio:.2f}, in CPU time {speed.cpu_ratio:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
