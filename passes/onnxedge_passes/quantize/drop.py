"""The fewest layers in float with which a model loses no more of a metric than allowed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .score import Score
from .sensitivity import fewest

if TYPE_CHECKING:
    from .search import Search

AGAIN = 12  #: layers put back that are tried in integers once more


def keep_metric(search: Search, score: Score, most: float) -> None:
    """Put back the layers that cause most noise, as few as will do, until trials lose at most ``most`` of the metric.

    Each layer is quantized alone, and the outputs on samples held out from calibration give the order: one layer's
    noise can be measured on few samples, its share of the metric cannot. How many go back is found by the metric, with
    1, 2, 4.. of them in float and then by halving; then each is tried in integers once more. Weights that are only
    stored as integers come first, where they alone lose too much.
    """
    returned, quantizer = search.returned, search.quantizer
    lost = score.drop(search.trial())
    if lost > most:
        wanted = f"max_drop={100 * most:.3g}%"
        before, returned.all_nodes = returned.all_nodes, f"put back to float for {wanted}: no layer may be integer"
        if quantizer.settings.stored and score.drop(search.trial()) > most:
            _restore_weights(search, score, most, wanted)
        returned.all_nodes = before
        if score.drop(search.trial()) > most:
            _restore_layers(search, score, most, wanted)
        lost = score.drop(search.trial())
    kind = "top class of the float model" if score.metric == "agreement" else score.metric
    text = f"max_drop: {100 * lost:.2f} points of {kind} lost on the {score.samples} samples that layers are chosen by"
    fine = "" if most * score.samples >= 1 else f"; one sample is {100 / max(score.samples, 1):.2g} points: give more"
    search.context.note(None, f"{text}; they are no part of those that are reported{fine}")
    search.figures |= {"max_drop_metric": score.metric, "max_drop_samples": score.samples, "max_drop_lost": lost}


def _restore_layers(search: Search, score: Score, most: float, wanted: str) -> None:
    """Put kernels back to float, which is known to do for all of them, or to 16 bits where the target has such ones."""
    returned, quantizer = search.returned, search.quantizer
    positions = {node: i for i, node in enumerate(search.model.graph)}
    units = quantizer.place(search.model).integer
    kernels = [(i,) for i, unit in enumerate(units) if unit.role == "kernel"]
    noise = {part: search.noise_of(part) for part in search.tracked(kernels)}
    ranked = sorted(kernels, key=lambda part: (-noise[part], part))
    before = copy.deepcopy(returned)

    def alone(part: tuple[int, ...]) -> str:
        return f"for {wanted}: quantized to 8 bits, this layer alone leaves {_db(noise[part]):.0f} dB"

    def put_back(parts: Sequence[tuple[int, ...]], *, wide: bool) -> bool:
        returned.become(copy.deepcopy(before))
        if wide:
            return quantizer.widen(units[part[0]] for part in parts)
        reasons = {positions[units[part[0]].node]: f"put back to float {alone(part)}" for part in parts}
        returned.nodes.update(reasons)
        return True

    def works(parts: Sequence[tuple[int, ...]]) -> bool:
        put_back(parts, wide=wide)
        return score.drop(search.trial()) <= most

    wide = True
    wide = put_back(ranked, wide=True) and works(ranked)
    chosen = ranked[: fewest(len(ranked), lambda count: works(ranked[:count]))]
    for part in chosen[-2 : -2 - AGAIN : -1]:  # without the last one there were too few
        others = [other for other in chosen if other != part]
        chosen = others if works(others) else chosen
    put_back(chosen, wide=wide)
    for part in chosen if wide else ():
        search.context.note(units[part[0]].node, f"activations of 16 bits {alone(part)}")


def _restore_weights(search: Search, score: Score, most: float, wanted: str) -> None:
    """Keep stored weights as float."""
    returned = search.returned
    noise = search.noise_of_stored()
    ranked = sorted(noise, key=lambda name: -noise[name])
    before = set(returned.constants)

    def works(count: int) -> bool:
        returned.constants = before | set(ranked[:count])
        return score.drop(search.trial()) <= most

    chosen = fewest(len(ranked), works)
    returned.constants = before | set(ranked[:chosen])
    for name in ranked[:chosen]:
        text = f"weight kept as float for {wanted}: stored as int8, this weight alone leaves {_db(noise[name]):.0f} dB"
        search.context.note(repr(name), text)


def _db(noise: float) -> float:
    return -10.0 * float(np.log10(max(noise, 1e-12)))
