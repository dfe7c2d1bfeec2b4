"""Rules of onnx/optimizer, onnxsim and OnnxSlim, each on a minimal graph: ``fold,fuse`` leaves no more nodes.

The graphs stand in text files, with what is left of each, and why where that is more. What has no graph stands here
with its reason; a rule of an installed peer that stands nowhere fails.
"""

from __future__ import annotations

import re

import onnx
import pytest
from rules import HERE, Case, cases
from traps import feeds_for, hold, operators, optimized

from onnxedge.api import Session

FILES = ("optimizer_eliminate", "optimizer_fuse", "onnxslim", "optimizer_kept")
ALL = [case for file in FILES for case in cases(file)]

#: Rules whose graphs are too large for here -> the tests that show what ours makes of them.
ELSEWHERE = {"fuse_gqa": "fuse/attention/test_fuse_attention.py"}

#: Names, as a regular expression -> why ours does nothing of the kind.
OUT_OF_SCOPE = {
    r"nop|logging": "does nothing",
    r".*quant.*|gguf_.*|fp6_llm|float16_to_float32|ibert_.*|nf4|if4|hqq|iq4_nl|olive|quarot|qoq|adpq|aqlm|lo_bcq"
    r"|any_precision_llm|quip_sharp|kbvq_moe|llm_fp4|leptoquant|intactkv|d2quant_dsq|deepseek_fp8|cross_layer_.*"
    r"|defuse_matmul_integer_to_float|drop_by_drop|magnitude_pruning_.*": "changes weights or types: int8 and prune are"
    " passes of their own",
    r"dilated_conv_to_taps|explicit_auto_pad|explicit_conv_padding|fuse_matmul_into_conv|fuse_reduce_sum_into_conv"
    r"|gemm_transA_to_transpose|maxpool_rowmajor_when_indices_unused|neg_to_mul|pow2_to_mul|rank0_to_rank1"
    r"|rewrite_(bev_pool|deform_conv|gatherelements|gathernd|gather_over|gridsample|msdeformattn|scatterelements"
    r"|tensor_scatter|trt_batched).*|rewrite_implicit_broadcast|rewrite_bool_where|split_large_gather": "as many nodes"
    " or more, for hardware that lacks an operator; on request alone there, too, but for rewrite_bool_where",
    r"adjust_add": "changes the order of two operands, which ONNX Runtime takes either way",
    r"lift_lexical_references|set_unique_name_for_nodes?|rename_input_output": "renames or annotates; the interface and"
    " the names stay as they are",
    r"rewrite_input_dtype": "changes the type of the inputs",
    r"split_init|split_predict|split": "takes the model apart into one that computes the weights and one that runs",
    r"eliminate_initializer_from_input": "changes the interface: freeze-initializers on request",
}

#: Passes of onnx/optimizer (passes/ of its repository, 76 files over its history) that onnxsim does not bring.
OPTIMIZER = (
    "eliminate_initializer_from_input",
    "eliminate_nop_add_zero",
    "eliminate_nop_div_one",
    "eliminate_nop_gather_shape",
    "eliminate_nop_mul_one",
    "eliminate_nop_sub_zero",
    "eliminate_shape_slice",
    "eliminate_slice_shape",
    "fuse_concat_and_reshape",
    "fuse_concat_shape_for_reshape",
    "fuse_constant_reshape",
    "fuse_pad_into_avgpool",
    "fuse_pad_into_maxpool",
    "set_unique_name_for_node",
)


@pytest.mark.parametrize("case", ALL, ids=[case.rule for case in ALL])
def test_what_is_left(case: Case) -> None:
    model = case.model()
    assert " ".join(sorted(operators(optimized(model, target=case.target)))) == case.left
    hold(model)


@pytest.mark.parametrize("case", ALL, ids=[case.rule for case in ALL])
def test_at_most_the_peers_nodes(case: Case) -> None:
    left = [operators(made) for made in (_by_onnxsim(case), _by_onnxslim(case)) if made is not None]
    assert bool(case.reason) or len(case.left.split()) <= min(map(len, left), default=99), left


def _by_onnxsim(case: Case) -> onnx.ModelProto | None:
    onnxsim = pytest.importorskip("onnxsim")
    other = onnxsim.onnxsim_cpp2py_export._list_other_optimizers()
    asked = sorted(case.names & set(other))
    return _right(case, onnxsim.simplify(case.model(), extra_optimizers=asked)[0])


def _by_onnxslim(case: Case) -> onnx.ModelProto | None:
    onnxslim = pytest.importorskip("onnxslim")
    try:
        return _right(case, onnxslim.slim(case.model()))
    except Exception:  # of any kind: it does not know optional types
        return None


def _right(case: Case, made: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return a peer's model where it runs and gives the outputs of the original."""
    model = case.model()
    try:
        before, after = Session(model, level="disable"), Session(made, level="disable")
        pairs = [(before.run(feed), after.run(feed)) for feed in feeds_for(model)]
    except Exception:  # the runtime's exceptions share no base
        return None
    close = all(
        a.shape == two[name].shape and abs(a.astype(float) - two[name].astype(float)).max(initial=0.0) < 1e-3
        for one, two in pairs
        for name, a in one.items()
    )
    return made if close else None


def test_each_rule_stands_somewhere() -> None:
    onnxsim, registry = pytest.importorskip("onnxsim"), pytest.importorskip("onnxslim.core.pattern.registry")
    listed = onnxsim.onnxsim_cpp2py_export
    other = listed._list_other_optimizers()  # first: it registers onnxsim's own among the others
    theirs = {*listed._list_optimizers(), *other, *registry.get_fusion_patterns(), *OPTIMIZER}
    known = {*ELSEWHERE, *(name for case in ALL for name in case.names)}
    scopes = [re.compile(pattern) for pattern in OUT_OF_SCOPE]
    assert sorted(n for n in theirs - known if not any(scope.fullmatch(n) for scope in scopes)) == []


def test_what_is_elsewhere_is_there() -> None:
    assert all((HERE.parent / file).exists() for file in ELSEWHERE.values())
