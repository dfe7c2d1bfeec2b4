"""All that a user or a pass author imports; re-exports only."""

from __future__ import annotations

from onnxedge.autodiff import OPSET as GRADIENT_OPSET
from onnxedge.autodiff import Backward, NoGradient, graph_values
from onnxedge.bridges import GraphSurgeonPass, PatternPass
from onnxedge.data import Batch, Data, Preprocess, from_arrays, model_inputs, open_data, synthesise
from onnxedge.errors import OnnxEdgeError, PassError, UserError, did_you_mean, first_line
from onnxedge.importance import Score, Units
from onnxedge.metrics import Comparison, load_metric
from onnxedge.model.edit import (
    add_initializer,
    bypass,
    drop_if_unused,
    forked,
    insert_after,
    insert_before,
    move_uses,
    new_initializer,
    new_node,
    release_captured,
    remove_node,
    replace_content,
    replace_input,
    replace_uses,
    set_constant,
)
from onnxedge.model.files import cache_folder, refuse_overwrite, scratch_directory, write_whole
from onnxedge.model.graph import (
    Array,
    constant,
    constant_tensor,
    graph_of,
    graphs_of,
    is_constant,
    is_standard,
    node_label,
    opset,
    sole_consumer,
    static_shape,
    subgraphs,
    unordered,
    use_count,
)
from onnxedge.model.io import load, save
from onnxedge.model.names import join_scope, refresh_scopes, scope_of, unique_name, unique_node_name
from onnxedge.model.serialize import to_proto, weight_bytes
from onnxedge.model.weights import at_hand
from onnxedge.operators import (
    OPERATORS,
    Kind,
    Operator,
    WeightAxes,
    batch_one_shape,
    data_inputs,
    macs,
    model_macs,
    operator,
    weight_axes,
)
from onnxedge.parts import ChannelGroup, ChannelGroups, Member, Part, Variations, member_positions
from onnxedge.passes import Accuracy, Context, Note, Pass, Result
from onnxedge.placement import Costs, Coverage, Placement, Unit, clip_bounds, integer_nodes, place, predict, read_back
from onnxedge.probe import is_tame
from onnxedge.registry import find_importance, find_pass
from onnxedge.runtime import (
    CannotRun,
    Feed,
    InputSpec,
    KernelTime,
    Latency,
    Session,
    capture,
    flattened,
    kernel_times,
    latency_ratio,
    optimized_graph,
)
from onnxedge.target import KernelCost, Quantization, Target
from onnxedge.training.augment import Augmentation
from onnxedge.training.choice import Choice
from onnxedge.training.choice import Score as TrainingScore
from onnxedge.training.compose import Composed, compose
from onnxedge.training.engine import Trained, choose_engine, train
from onnxedge.training.loop import History, Loop, train_loop
from onnxedge.training.loop import Samples as TrainingSamples
from onnxedge.training.losses import Feature, HardLabels, Loss, Regression, SoftLabels, distillation
from onnxedge.training.rows import check_rows, store_rows
from onnxedge.training.settings import Settings as TrainingSettings
from onnxedge.training.store import digest_of, run_folder
from onnxedge.training.teacher import Teacher, matched_inputs
from onnxedge.verify import infer_shapes

__all__ = [
    "GRADIENT_OPSET",
    "OPERATORS",
    "Accuracy",
    "Array",
    "Augmentation",
    "Backward",
    "Batch",
    "CannotRun",
    "ChannelGroup",
    "ChannelGroups",
    "Choice",
    "Comparison",
    "Composed",
    "Context",
    "Costs",
    "Coverage",
    "Data",
    "Feature",
    "Feed",
    "GraphSurgeonPass",
    "HardLabels",
    "History",
    "InputSpec",
    "KernelCost",
    "KernelTime",
    "Kind",
    "Latency",
    "Loop",
    "Loss",
    "Member",
    "NoGradient",
    "Note",
    "OnnxEdgeError",
    "Operator",
    "Part",
    "Pass",
    "PassError",
    "PatternPass",
    "Placement",
    "Preprocess",
    "Quantization",
    "Regression",
    "Result",
    "Score",
    "Session",
    "SoftLabels",
    "Target",
    "Teacher",
    "Trained",
    "TrainingSamples",
    "TrainingScore",
    "TrainingSettings",
    "Unit",
    "Units",
    "UserError",
    "Variations",
    "WeightAxes",
    "add_initializer",
    "at_hand",
    "batch_one_shape",
    "bypass",
    "cache_folder",
    "capture",
    "check_rows",
    "choose_engine",
    "clip_bounds",
    "compose",
    "constant",
    "constant_tensor",
    "data_inputs",
    "did_you_mean",
    "digest_of",
    "distillation",
    "drop_if_unused",
    "find_importance",
    "find_pass",
    "first_line",
    "flattened",
    "forked",
    "from_arrays",
    "graph_of",
    "graph_values",
    "graphs_of",
    "infer_shapes",
    "insert_after",
    "insert_before",
    "integer_nodes",
    "is_constant",
    "is_standard",
    "is_tame",
    "join_scope",
    "kernel_times",
    "latency_ratio",
    "load",
    "load_metric",
    "macs",
    "matched_inputs",
    "member_positions",
    "model_inputs",
    "model_macs",
    "move_uses",
    "new_initializer",
    "new_node",
    "node_label",
    "open_data",
    "operator",
    "opset",
    "optimized_graph",
    "place",
    "predict",
    "read_back",
    "refresh_scopes",
    "refuse_overwrite",
    "release_captured",
    "remove_node",
    "replace_content",
    "replace_input",
    "replace_uses",
    "run_folder",
    "save",
    "scope_of",
    "scratch_directory",
    "set_constant",
    "sole_consumer",
    "static_shape",
    "store_rows",
    "subgraphs",
    "synthesise",
    "to_proto",
    "train",
    "train_loop",
    "unique_name",
    "unique_node_name",
    "unordered",
    "use_count",
    "weight_axes",
    "weight_bytes",
    "write_whole",
]
