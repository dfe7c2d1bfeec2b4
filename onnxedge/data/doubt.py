"""A second look at data that fits a model by shape and type, but perhaps not by value."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxedge.data.dataset import Data
from onnxedge.data.facts import facts_of

_FACTOR = 6.0  #: deviations differ this much, or means by so many deviations, where preprocessing was forgotten


def preprocessing_doubt(model: ir.Model, data: Data, samples: int = 32) -> str | None:
    """Say where values are far from those that the model's own first normalization was trained on.

    Only the statistics of a BatchNormalization count as evidence; None where there is none, or the values are near.

    Args:
        model: whose inputs the data is for.
        data: what will be fed.
        samples: how many are looked at.
    """
    values = {value.name: value for value in model.graph.inputs}
    batches = list(data.feeds(limit=samples)) if not data.synthetic else []
    for spec in data.inputs:
        moments = facts_of(values[spec.name]).moments if spec.name in values and batches else None
        if moments is None or not moments.measured:
            continue
        fed = np.concatenate([feed[spec.name].reshape(-1) for feed in batches]).astype(np.float64)
        mean, std = float(fed.mean()), max(float(fed.std()), 1e-9)
        wanted_mean = float(moments.mean.mean())
        wanted_std = float(np.sqrt((moments.std**2).mean() + moments.mean.var()))
        ratio = max(std / wanted_std, wanted_std / std)
        if ratio > _FACTOR or abs(mean - wanted_mean) > _FACTOR * max(std, wanted_std):
            return (
                f"input {spec.name!r}: the data has mean {mean:.3g} and deviation {std:.3g}, the model was trained on "
                f"about {wanted_mean:.3g} and {wanted_std:.3g}; is --preprocess (scale, mean, std) right?"
            )
    return None
