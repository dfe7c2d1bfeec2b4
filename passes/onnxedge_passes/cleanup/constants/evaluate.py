"""Run nodes on constants in ONNX Runtime, so that NaN, infinity and overflow come out as the runtime makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from onnxedge.api import Array, CannotRun, Session, constant_tensor, first_line, is_standard
from onnxedge_passes.cleanup.constants.isolated import Isolated

_BATCH_NODES = 1000  #: nodes of one session: to make one takes the square of them
_EMBEDDED_BYTES = 1 << 10  #: constants up to this size stand in the model, where kernels and checks look for them

#: Operators that run in this process, which takes a millisecond: their kernels read and write no more than inputs and
#: outputs of known sizes. Each was given 500 odd inputs (no elements, broadcast, wrong axes, extreme integers, other
#: types) and computed or refused; of the others Unique, for one, died. Div and Mod are asked for only where defined.
_HARMLESS_NAMES = (
    "Abs Add And Cast Ceil Clip Concat ConstantOfShape Cos CumSum Div Equal Erf Exp Expand Flatten Floor Gather "
    "GatherElements Greater GreaterOrEqual Identity IsInf IsNaN Less LessOrEqual Log Max Mean Min Mod Mul Neg Not "
    "Or Pow Range Reciprocal ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape Round Shape Sigmoid "
    "Sign Sin Size Slice Split Sqrt Squeeze Sub Sum Tanh Tile Transpose Trilu Unsqueeze Where Xor"
)
_HARMLESS = frozenset(_HARMLESS_NAMES.split(" "))


@dataclass(frozen=True)
class _Batch:
    """Hold a model of nodes without inputs of their own, the arrays that it is fed, and whose values it gives."""

    model: onnx.ModelProto
    feed: dict[str, Array]
    wanted: list[int]


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Compute nodes whose inputs are all constant.

    Attributes:
        opset: version of the default domain.
        ir_version: of the model, so that the runtime reads the nodes as it would in the model.
        isolated: gives the process for nodes that may crash, or take long or much memory.
    """

    opset: int
    ir_version: int
    isolated: Callable[[], Isolated]

    def evaluate(self, nodes: Sequence[ir.Node], known: Mapping[int, Array]) -> tuple[dict[int, Array], dict[int, str]]:
        """Return the values of nodes that others read, and why some could not be evaluated.

        Up to a thousand nodes run in one session. If that fails, each half of them runs alone, so that what is at fault
        is found and all others are computed.

        Args:
            nodes: in topological order, none in need of a value from outside of them but constants and ``known``.
            known: arrays of values (by ``id``) that were computed before.

        Returns:
            Arrays by ``id`` of the value; reasons by ``id`` of the node.
        """
        computed: dict[int, Array] = {}
        reasons: dict[int, str] = {}
        starts = range(0, len(nodes), _BATCH_NODES)
        stack = [list(nodes[start : start + _BATCH_NODES]) for start in reversed(starts)]
        while stack:
            batch = stack.pop()
            lost = [node for node in batch if any(_source(value) in reasons for value in node.inputs)]
            reasons.update((id(node), "an input could not be computed") for node in lost)
            batch = [node for node in batch if id(node) not in reasons]
            if lost or not batch:
                stack.extend([batch] if batch else [])
                continue
            try:
                computed.update(self._run(batch, {**known, **computed}))
            except CannotRun as err:
                if len(batch) == 1:
                    reasons[id(batch[0])] = first_line(err, 160)
                else:
                    middle = len(batch) // 2
                    stack += [batch[middle:], batch[:middle]]
        return computed, reasons

    def _run(self, nodes: Sequence[ir.Node], known: Mapping[int, Array]) -> dict[int, Array]:
        batch = _batch(nodes, known, self.opset, self.ir_version)
        if all(is_standard(node) and node.op_type in _HARMLESS for node in nodes):
            arrays = list(Session(batch.model, level="disable").run(batch.feed).values())
        else:
            arrays = self.isolated().run(batch.model.SerializeToString(), batch.feed)
        return dict(zip(batch.wanted, arrays, strict=True))


def _source(value: ir.Value | None) -> int | None:
    producer = value.producer() if value is not None else None
    return id(producer) if producer is not None else None


def _batch(nodes: Sequence[ir.Node], known: Mapping[int, Array], opset: int, ir_version: int) -> _Batch:
    names: dict[int, str] = {}
    feed: dict[str, Array] = {}
    graph = onnx.GraphProto(name="constants")
    made: list[ir.Value] = []
    for node in nodes:
        for value in node.inputs:
            if value is None or id(value) in names:
                continue
            name = names[id(value)] = f"c{len(names)}"
            array = known[id(value)] if id(value) in known else _array(value)
            if array.nbytes <= _EMBEDDED_BYTES:
                graph.initializer.append(ir.serde.serialize_tensor(ir.tensor(array, name=name)))
            else:
                kind = ir.DataType.from_numpy(array.dtype)
                graph.input.append(onnx.helper.make_tensor_value_info(name, kind, array.shape))
                feed[name] = array
        for value in node.outputs:
            if value.name:
                names[id(value)] = f"c{len(names)}"
                made.append(value)
        graph.node.add(
            name=f"n{len(graph.node)}",
            domain=node.domain,
            op_type=node.op_type,
            input=["" if value is None else names[id(value)] for value in node.inputs],
            output=[names.get(id(value), "") for value in node.outputs],
            attribute=[ir.serde.serialize_attribute(attribute) for attribute in node.attributes.data.values()],
        )
    inside = {id(node) for node in nodes}
    wanted = [value for value in made if any(id(use.node) not in inside for use in value.uses())] or made
    graph.output.extend(onnx.ValueInfoProto(name=names[id(value)]) for value in wanted)
    imports = [onnx.OperatorSetIdProto(version=opset)]
    ir_version = max(ir_version, 4)  # from 4 on initializers are no inputs
    model = onnx.ModelProto(graph=graph, opset_import=imports, ir_version=ir_version)
    return _Batch(model, feed, [id(value) for value in wanted])


def _array(value: ir.Value) -> Array:
    """Return the elements of a constant, on a tensor of our own: a value gives its name to its tensor."""
    tensor = constant_tensor(value)
    assert tensor is not None
    return tensor.numpy()
