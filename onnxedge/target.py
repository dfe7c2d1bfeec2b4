"""Targets: what a runtime on a piece of hardware can do, read from TOML files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from onnxedge.errors import UserError, did_you_mean, first_line
from onnxedge.target_table import BUILT_IN, read_table


@dataclass(frozen=True, kw_only=True)
class KernelCost:
    """Say how long a float and an integer kernel take for one unit of work, measured on one thread.

    Attributes:
        at: widths at which the two costs were measured, rising; in between they are interpolated over log(width).
            Conv: the lesser of input and output channels of a group; a depthwise one: channels; MatMul, Gemm: rows of
            the first operand; all others: 1.
        float_ns: per multiply-accumulate (contractions), per window element (pooling) or per output element.
        integer_ns: the same for the integer kernel, without what it takes to quantize and dequantize.
        integer_call_ns: what one call of the integer kernel takes besides.
        integer_output_ns: what one output element of the integer kernel takes besides.
    """

    float_ns: tuple[float, ...]
    integer_ns: tuple[float, ...]
    at: tuple[int, ...] = (1,)
    integer_call_ns: float = 0.0
    integer_output_ns: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Say where a target wants Q/DQ pairs and what it then runs in integers. Operators are default-domain names.

    Attributes:
        activation: dtype of activations.
        activation_symmetric: zero point is 0 for activations.
        wide_activation: dtype of 16 bits of the activations of operators in ``wide``.
        wide: integer operators that take and give such activations, too, beside weights of 8 bits; what moves values
            unchanged need not be named. The parts of a model that cost most accuracy get them before they go to float.
        weight: dtype of weights, symmetric with zero point 0.
        weight_limit: operator -> largest magnitude of its integer weights, where its kernel would overflow beyond that;
            ``DepthwiseConv`` for a Conv with one input and one output channel a group. 127 for all others.
        per_channel: operator -> axis of the weight that has a scale of its own; Gemm's is counted with transB=0.
        bias: ``int32`` for a bias behind a DequantizeLinear with scale sx*sw, ``float`` for a bias left alone.
        explicit_zero_point: operators whose weight and bias need their zero point written down even though it is 0.
        integer: operators with integer kernels.
        pass_through: operators that move integers unchanged, with one scale and zero point for input and output.
        on_integers: operators to be put on the integer tensor itself, between Q and DQ, instead of between DQ and Q.
        quantize_output: integer operators that are only integer when their output is quantized too.
        float_before_output: operators that the kernel absorbs between an integer operator and its output Q.
        absorbing: integer operators that absorb them.
        epilogue: operators that a kernel takes in behind its own in float, so that no Q belongs between.
        bias_add: operators that an Add of a constant vector behind them becomes the bias of.
        bias_add_shapes: ``known`` where that is only so for data of two axes, or with all dimensions known.
        output_scale: ``own`` gives an integer operator's output its own Q at once; ``consumer`` leaves it float until
            an integer operator reads it (no Q between Conv, BN and Relu).
        dynamic: operators with kernels for integer weights and data that is rounded at run time.
        residual_branch_only: quantize only the branch of an Add that does not come from a weighted operator.
        equal_scales: operators whose inputs and outputs share one scale.
        fixed: operator -> (scale, zero point) of its output, fixed by the kernel.
        quantized_by_runtime: operators that the runtime quantizes by itself, badly, where they stand between a DQ and
            a Q, so that they are never left float there.
        min_opset: operator -> opset from which it takes integers.
        contrib_opset: opset from which Q/DQ of the domain com.microsoft work, per channel too; 0 for never.
        folded: form of a constant stored as integers that the runtime turns into float once, when it loads:
            ``dequantize`` for DequantizeLinear, ``cast-mul`` for Cast and Mul, ``none`` where it does not.
        min_macs: operator -> multiply-accumulates under which the integer kernel does not pay.
        costs: operator -> what its kernels cost; ``DepthwiseConv`` for a Conv with one channel a group, ``MaxPool
            alone`` for one that no Conv comes before. Empty where nobody measured: then all that can be is integer.
        boundary_ns: nanoseconds to quantize or dequantize one element.
        relayout_ns: nanoseconds more for one element of an image (rank 4 and 5), whose layout changes there.
        node_ns: nanoseconds that one more node costs.
        margin: factor that integer costs are multiplied by: what gains less than that stays float.
    """

    activation: Literal["uint8", "int8"] = "uint8"
    activation_symmetric: bool = False
    wide_activation: Literal["", "uint16", "int16"] = ""
    wide: tuple[str, ...] = ()
    weight: Literal["int8"] = "int8"
    weight_limit: Mapping[str, int] = field(default_factory=dict)
    per_channel: Mapping[str, int] = field(default_factory=dict)
    bias: Literal["int32", "float"] = "int32"
    explicit_zero_point: tuple[str, ...] = ()
    integer: tuple[str, ...] = ()
    pass_through: tuple[str, ...] = ()
    on_integers: tuple[str, ...] = ()
    quantize_output: tuple[str, ...] = ()
    float_before_output: tuple[str, ...] = ()
    absorbing: tuple[str, ...] = ()
    epilogue: tuple[str, ...] = ()
    bias_add: tuple[str, ...] = ()
    bias_add_shapes: Literal["any", "known"] = "any"
    output_scale: Literal["own", "consumer"] = "own"
    dynamic: tuple[str, ...] = ()
    residual_branch_only: bool = False
    equal_scales: tuple[str, ...] = ()
    fixed: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    quantized_by_runtime: tuple[str, ...] = ()
    min_opset: Mapping[str, int] = field(default_factory=dict)
    contrib_opset: int = 0
    folded: Literal["dequantize", "cast-mul", "none"] = "dequantize"
    min_macs: Mapping[str, int] = field(default_factory=dict)
    costs: Mapping[str, KernelCost] = field(default_factory=dict)
    boundary_ns: float = 0.0
    relayout_ns: float = 0.0
    node_ns: float = 0.0
    margin: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """Say what a kernel takes where that is less than its operator allows.

    Attributes:
        dtypes: of its first input, as ONNX Runtime names them; empty for all.
        outputs: how many outputs it needs a place for, whether they are read or not.
    """

    dtypes: tuple[str, ...] = ()
    outputs: int = 1


@dataclass(frozen=True, kw_only=True)
class Target:
    """Describe the runtime and hardware that a model is made for.

    Attributes:
        name: as given to ``--target``.
        description: one line.
        runtime: ``onnxruntime-cpu`` can be measured here; others are written for and not run.
        processor: instruction sets, as Linux names them, one of which a processor of the target has; empty for any.
        processor_lacks: instruction sets that none of the target's processors has.
        opset_max: newest default-domain opset that the runtime reads.
        ir_max: newest IR version that the runtime reads.
        channel_multiple: widths that the kernels like are multiples of this.
        operators: operators outside of the model's opset that the runtime has kernels for, as ``domain::Op``.
        kernels: operator as in ``operators`` -> what its kernel takes.
        slow: operators of the default domain whose kernels are slower than the operators that they stand for.
        fused_attention: ``always`` where an attention kernel is worth it whatever stands around it, ``heads`` where
            its products are no faster than MatMul's and it only gains by splitting and merging the heads itself.
        merged_projections: whether one product with several weights side by side, split behind, is faster than
            several products.
        sparse: patterns of zeros in weights that the runtime has faster kernels for, as ``2:4``: of every 4 neighbours
            along the input channels at most 2 are not zero.
        half: 16-bit floats that the runtime computes faster in than in float32: ``float16``, ``bfloat16``.
        half_missing: operators of any domain that it has no kernel for in them.
        quantization: integer rules; None for a target without integer kernels.
    """

    name: str
    description: str = ""
    runtime: str = "onnxruntime-cpu"
    processor: tuple[str, ...] = ()
    processor_lacks: tuple[str, ...] = ()
    opset_max: int = 99
    ir_max: int = 99
    channel_multiple: int = 1
    operators: tuple[str, ...] = ()
    kernels: Mapping[str, Kernel] = field(default_factory=dict)
    slow: tuple[str, ...] = ()
    fused_attention: Literal["always", "heads"] = "always"
    merged_projections: bool = False
    sparse: tuple[str, ...] = ()
    half: tuple[str, ...] = ()
    half_missing: tuple[str, ...] = ()
    quantization: Quantization | None = None

    @property
    def runs_here(self) -> bool:
        """Tell whether ONNX Runtime on this machine is what the target means, so that its graph can be read and run."""
        return self.runtime == "onnxruntime-cpu"

    @property
    def timed_here(self) -> bool:
        """Tell whether latency on this machine means anything for the target: not on a processor that does more."""
        have = instruction_sets()
        return self.runs_here and not (have or {*self.processor_lacks}).intersection(self.processor_lacks)

    @property
    def missing_here(self) -> tuple[str, ...]:
        """Return the instruction sets one of which the target's processors have, where this machine's has none."""
        have = instruction_sets()
        return () if have is None or have.intersection(self.processor) else self.processor

    def has_kernel(self, op_type: str, domain: str = "", *, opset: int = 0) -> bool:
        """Tell whether the runtime has a kernel for an operator that is worth fusing into.

        Args:
            op_type: operator.
            domain: for another domain than ONNX's own the target file says it.
            opset: version of ONNX's own domain that the model imports: every target has all of that, but for what is
                ``slow``.
        """
        if domain:
            return f"{domain}::{op_type}" in self.operators
        if op_type in self.slow:
            return False
        import onnx

        try:
            return not onnx.defs.get_schema(op_type, opset).deprecated
        except onnx.defs.SchemaError:
            return False


@cache
def instruction_sets() -> frozenset[str] | None:
    """Return the instruction sets of this machine's processor as Linux names them, None where nobody tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return None
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    return frozenset(flags.split()) or None


def load_target(source: str, text: str, *, package: str = BUILT_IN) -> Target:
    """Read a target from TOML text.

    Args:
        source: where the text comes from, for error messages.
        text: TOML; keys are the fields of :class:`Target`, the table ``[quantization]`` those of :class:`Quantization`.
            ``base = "ort-cpu"`` takes all that is not said from another target; tables are merged key by key.
        package: where the base is looked for before it is among the built-in ones.

    Raises:
        UserError: no TOML, an unknown key, a value of the wrong type, or no such base.
    """
    target = _build(Target, read_table(source, text, package), source)
    assert isinstance(target, Target)
    _check(target, source)
    return target


def _check(target: Target, source: str) -> None:
    """Refuse numbers that mean nothing.

    Raises:
        UserError: with the key and its value.
    """
    for key in ("channel_multiple", "opset_max", "ir_max"):
        if getattr(target, key) < 1:
            raise UserError(f"target {source}: {key}: {getattr(target, key)}; needs at least 1")
    rules = target.quantization
    if rules is None:
        return
    for key in ("boundary_ns", "relayout_ns", "node_ns", "margin"):
        number = getattr(rules, key)
        if not (math.isfinite(number) and number >= 0):
            raise UserError(f"target {source}: quantization: {key}: {number:g}; needs 0 or more")
    wanted = "int16" if rules.activation_symmetric else rules.wide_activation or "uint16"
    if rules.wide and rules.wide_activation != wanted:
        raise UserError(f"target {source}: quantization: wide_activation: {rules.wide_activation!r}; needs {wanted!r}")
    for name, limit in rules.weight_limit.items():
        if not 1 <= limit <= 127:
            raise UserError(f"target {source}: quantization: weight_limit.{name}: {limit}; needs 1..127")
    for name, cost in rules.costs.items():
        where = f"target {source}: quantization: costs.{name}"
        if not len(cost.at) == len(cost.float_ns) == len(cost.integer_ns) > 0:
            raise UserError(f"{where}: at, float_ns and integer_ns need as many numbers each, at least one")
        if list(cost.at) != sorted(set(cost.at)) or cost.at[0] < 1:
            raise UserError(f"{where}: at: {list(cost.at)}; needs widths of at least 1, rising")
        if not all(math.isfinite(n) and n >= 0 for n in (*cost.float_ns, *cost.integer_ns)):
            raise UserError(f"{where}: needs costs of 0 or more")


def load_target_file(path: Path) -> Target:
    """Read a target from a TOML file that a user names directly."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise UserError(f"target {path}: cannot be read: {first_line(err)}") from err
    return load_target(str(path), text)


def load_packaged_target(package: str, name: str) -> Target:
    """Read ``NAME.toml`` that lies in a package: how built-ins and vendors ship targets."""
    file = resources.files(package) / f"{name}.toml"
    return load_target(f"{package}/{name}.toml", file.read_text("utf-8"), package=package)


def _build(cls: type, table: Mapping[str, Any], source: str) -> object:
    hints = _hints(cls)
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in hints:
            raise UserError(f"target {source}: unknown key {key!r}{did_you_mean(key, hints)}")
        values[key] = _convert(hints[key], value, f"target {source}: {key}")
    missing = [f.name for f in dataclasses.fields(cls) if f.name not in values and _is_required(f)]
    if missing:
        raise UserError(f"target {source}: {missing[0]!r} is missing")
    return cls(**values)


@cache
def _hints(cls: type) -> Mapping[str, Any]:
    """Return the types of a class's fields: a target has dozens of tables of one class."""
    return get_type_hints(cls)


def _is_required(option: dataclasses.Field[Any]) -> bool:
    return option.default is dataclasses.MISSING and option.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    table = Quantization if hint == Quantization | None else hint if hint in (Kernel, KernelCost) else None
    if table is not None:
        if not isinstance(value, dict):
            raise UserError(f"{where}: needs a table")
        return _build(table, value, where.removeprefix("target "))
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"{where}: {value!r} is none of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple and isinstance(value, list):
        kinds = arguments[:1] * len(value) if arguments[-1:] == (...,) else arguments
        if len(kinds) == len(value):
            return tuple(_convert(kind, item, where) for kind, item in zip(kinds, value, strict=True))
    if origin is Mapping and isinstance(value, dict):
        return {str(key): _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool) == isinstance(value, bool):
        return value
    raise UserError(f"{where}: {value!r} is not of type {getattr(hint, '__name__', hint)}")
