"""Versions of opset and file format that do not exist, or do not agree."""

from __future__ import annotations

import onnx

from hostile.maker import TINY, Change, Maker, changed, from_text, spliced

OLD_RELU = spliced("y = Relu(x)")
FUNCTION = '<domain: "f", opset_import: ["": {}]> h (a) => (b) {{ b = Relu(a) }}'


def _opset(version: int) -> Change:
    return lambda model: setattr(model.opset_import[0], "version", version)


def _ir(version: int) -> Change:
    return lambda model: setattr(model, "ir_version", version)


def _import(domain: str, version: int) -> Change:
    return lambda model: model.opset_import.add(domain=domain, version=version)


def _only_import(domain: str, version: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        del model.opset_import[:]
        model.opset_import.add(domain=domain, version=version)

    return change


def _function(version: int) -> Maker:
    return from_text(spliced("y = f.h(x)"), functions=FUNCTION.format(version))


MODELS: dict[str, Maker] = {
    **{f"opset {version}": changed(_opset(version)) for version in (0, -1, 27, 999, 2**62, -(2**63))},
    **{f"opset {version} of a new model": changed(_opset(version)) for version in (1, 3, 5, 6)},
    **{f"IR {version}": changed(_ir(version)) for version in (0, 1, 2, 3, 14, 99, 999, -1, 2**62)},
    "no IR version": changed(lambda m: m.ClearField("ir_version")),
    "no opset import": changed(lambda m: m.ClearField("opset_import")),
    "opset import without a version": changed(lambda m: m.opset_import[0].ClearField("version")),
    "default domain twice, equal": changed(_import("", 17)),
    "default domain twice, other version": changed(_import("", 11)),
    "default domain under both names": changed(_import("ai.onnx", 11)),
    "default domain as ai.onnx": changed(_only_import("ai.onnx", 17)),
    "only another domain": changed(_only_import("com.microsoft", 1)),
    "com.microsoft 999": changed(_import("com.microsoft", 999)),
    "a thousand domains": changed(lambda m: [m.opset_import.add(domain=f"d{i}", version=i) for i in range(1000)]),
    "domain with a newline": changed(_import("a\nb", 1)),
    "node of a domain not imported": from_text(OLD_RELU, change=lambda m: setattr(m.graph.node[0], "domain", "acme")),
    "ai.onnx.ml not imported": from_text(OLD_RELU, change=lambda m: setattr(m.graph.node[0], "domain", "ai.onnx.ml")),
    "unknown domain imported": from_text(
        OLD_RELU,
        change=lambda m: (_import("acme", 3)(m), setattr(m.graph.node[0], "domain", "acme")),
    ),
    "operator newer than the opset": changed(lambda m: setattr(m.graph.node[1], "op_type", "Gelu")),
    "operator older than the opset": changed(lambda m: setattr(m.graph.node[1], "op_type", "Scatter")),
    "function of an older opset": _function(11),
    "function of a newer opset": _function(21),
    "function of opset 999": _function(999),
    "function of opset -1": _function(-1),
    "function without imports": from_text(
        spliced("y = f.h(x)"), functions=FUNCTION.format(17), change=lambda m: m.functions[0].ClearField("opset_import")
    ),
    "weights that are no inputs in IR 3": from_text(TINY, 9, change=_ir(3)),
}
