"""Whole NHWC networks: one Transpose at the input, and at the outputs what their order needs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from conftest import apply
from nhwc import NETWORKS
from onnxedge_passes.cleanup.fold import Fold
from onnxedge_passes.fuse.fuse import Fuse

from onnxedge.api import Session

LEFT = {
    "mobilenet-v1": 1,
    "mobilenet-v2": 1,
    "resnet": 1,
    "unet": 2,  # the mask is given in NHWC
    "ssd": 7,  # six heads are cut into rows of anchors, in NHWC
    "yolo": 3,
    "shuffle": 3,  # two channel shuffles are Transposes themselves
    "squeeze-excite": 1,
    "temporal": 1,
    "decoder": 2,
    "quantized": 1,
    "resized": 2,
}
SINCE = {"quantized": 10, "resized": 11}
CASES = [(name, opset) for name in NETWORKS for opset in (7, 9, 10, 11, 13, 18, 21) if opset >= SINCE.get(name, 7)]


@pytest.mark.parametrize(("name", "opset"), CASES)
def test_transposes_left(name: str, opset: int) -> None:
    proto = NETWORKS[name](opset, width=4)
    before, after = ir.from_proto(proto), ir.from_proto(proto)
    apply(Fold(), after)
    apply(Fuse(), after)
    assert sum(node.op_type == "Transpose" for node in after.graph) == LEFT[name]
    first, second = Session(before, level="disable"), Session(after, level="disable")
    for count in (1, 3):
        shape = (count, *(int(d) for d in first.inputs[0].shape[1:] if isinstance(d, int)))
        feed = {"x": np.random.default_rng(count).standard_normal(shape).astype(np.float32)}
        for mine, other in zip(first.run(feed).values(), second.run(feed).values(), strict=True):
            np.testing.assert_allclose(mine, other, rtol=0, atol=1e-4 * float(np.abs(mine).max()))
