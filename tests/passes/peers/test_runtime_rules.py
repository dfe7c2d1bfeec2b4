"""ONNX Runtime's and onnxscript's rules, each on a minimal graph: ``fold,fuse`` leaves no more nodes than they do.

The graphs stand in ``onnxruntime.txt`` and ``onnxscript.txt``, with what is left of each, and why where that is more.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import onnxscript.optimizer
import onnxscript.rewriter
import pytest
from onnxscript.rewriter import ort_fusions
from onnxscript.rewriter.rules import common, fusion
from rules import Case, cases
from traps import feeds_for, operators, optimized

from onnxedge.api import Session

TRANSFORMERS = """
    EliminateIdentity EliminateSlice UnsqueezeElimination EliminateDropout ExpandElimination CastElimination
    CastChainElimination PreShapeNodeElimination NoopElimination DivMulFusion FuseReluClip GemmSumFusion
    GemmTransposeFusion NotWhereFusion ConvAddFusion ConvMulFusion ConvBNFusion PadFusion MatmulBNFusion
    LabelEncoderFusion ClipQuantFusion ReluQuantFusion DoubleQDQPairsRemover ConstantSharing
    CommonSubexpressionElimination ConstantFolding MatMulAddFusion ReshapeFusion FreeDimensionOverrideTransformer
    GeluFusion LayerNormFusion QDQPropagationTransformer WeightBiasQuantization EnsureUniqueDQForNodeUnit
    RocmBlasAltImpl TransposeOptimizer SliceConcatToSpaceToDepthFusion QDQS8ToU8Transformer
    QDQSelectorActionTransformer GemmActivationFusion MatMulIntegerToFloatFusion DynamicQuantizeMatMulFusion
    ConvActivationFusion SimplifiedLayerNormFusion AttentionFusion EmbedLayerNormFusion GatherSliceToSplitFusion
    GatherToSliceFusion MatmulTransposeFusion BiasGeluFusion GroupQueryAttentionFusion
    GroupQueryAttentionPreNormFusion SkipLayerNormFusion BiasSkipLayerNormFusion FastGeluFusion QuickGeluFusion
    GeluApproximation BiasSoftmaxFusion BiasDropoutFusion MatMulScaleFusion MatMulActivationFusion
    Avx2WeightS8ToU8Transformer MatMulNBitsFusion DQMatMulNBitsFusion MatMulNBitsMlpFusion MatMulNBitsQkvFusion
    QDQFinalCleanupTransformer NchwcTransformer NhwcTransformer ConvAddActivationFusion
"""
FILES = ("onnxruntime", "onnxscript")


def by_runtime(case: Case, folder: Path) -> list[str]:
    """Return the operators that ONNX Runtime leaves at the better of its levels BASIC and EXTENDED."""
    left = []
    for level in (ort.GraphOptimizationLevel.ORT_ENABLE_BASIC, ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED):
        options = ort.SessionOptions()
        options.graph_optimization_level, options.log_severity_level = level, 4
        options.optimized_model_filepath = str(folder / "optimized.onnx")
        ort.InferenceSession(case.model().SerializeToString(), options, providers=["CPUExecutionProvider"])
        left.append(operators(onnx.load(folder / "optimized.onnx")))
    return min(left, key=len)


def by_onnxscript(case: Case, folder: Path) -> list[str]:
    """Return the operators that onnxscript leaves: folder, default rules, the named rules, fusions for the runtime."""
    model = ir.serde.deserialize_model(case.model())
    onnxscript.optimizer.optimize_ir(model)
    left = [ir.serde.serialize_model(onnxscript.rewriter.rewrite(model))]
    named = [rule for name in case.rule.split(", ") for rule in _named(name)]
    if named:
        left.append(ir.serde.serialize_model(onnxscript.rewriter.rewrite(model, named)))
    fused, _ = ort_fusions.optimize_for_ort(model)
    return min((operators(proto) for proto in [*left, ir.serde.serialize_model(fused)]), key=len)


def _named(name: str) -> list[object]:
    """Return the rules of a name that are not among the default ones."""
    found = getattr(common, f"{name}_rule", None)
    sets = getattr(common, f"{name}_rules", ())
    return [found] if found is not None else list(sets() if callable(sets) else sets)


PEERS = {"onnxruntime": by_runtime, "onnxscript": by_onnxscript}
ALL = [(file, case) for file in FILES for case in cases(file) if case.text]


@pytest.mark.parametrize(("file", "case"), ALL, ids=[f"{file}: {case.rule}" for file, case in ALL])
def test_at_most_the_peers_nodes(file: str, case: Case, tmp_path: Path) -> None:
    model = case.model()
    onnx.checker.check_model(model)
    made = optimized(model, target=case.target)
    assert " ".join(sorted(operators(made))) == case.left
    peer = PEERS[file](case, tmp_path)
    assert case.reason or len(operators(made)) <= len(peer), (operators(made), peer)
    idle = case.reason or "idle" in case.options
    assert idle or sorted(peer) != sorted(operators(model)), "the peer's rule does not act"
    for feed in feeds_for(model):
        before, after = (Session(m, level="disable").run(feed) for m in (model, made))
        for name, array in before.items():
            assert array.dtype == after[name].dtype
            exact = array.dtype.kind != "f"
            tolerance = 0 if exact else 5e-3 if array.dtype.itemsize < 4 else 2e-5
            np.testing.assert_allclose(after[name], array, rtol=tolerance, atol=tolerance)


def _rules(file: str) -> set[str]:
    """Return the names that stand before a colon or a comma in a file."""
    return {name.partition(":")[0] for case in cases(file) for name in case.rule.split(", ")}


def test_no_rule_of_the_runtime_is_absent() -> None:
    """As listed in graph_transformer_utils.cc of ONNX Runtime 1.31, levels 1 and 2."""
    assert set(TRANSFORMERS.split()) - _rules("onnxruntime") == set()


def test_no_rule_of_onnxscript_is_absent() -> None:
    ours = _rules("onnxscript")
    named = {re.sub("_rules?$", "", name) for name in common.__all__}
    fusions = {path.stem for path in Path(ort_fusions.__path__[0]).glob("[!_]*.py")}
    assert (named | fusions) - ours == set()
    assert {path.stem[1:] for path in Path(fusion.__path__[0]).glob("_[!_]*.py")} - ours == set()


@pytest.mark.parametrize("file", FILES)
def test_what_has_no_graph_has_a_reason(file: str) -> None:
    assert [case.rule for case in cases(file) if not case.text and not case.reason] == []
