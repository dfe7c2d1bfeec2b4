"""Graphs that read what they have yet to compute."""

from __future__ import annotations

from hostile.maker import Maker, from_text, spliced, texts

MODELS: dict[str, Maker] = {
    **texts(
        {
            "node reads itself": spliced("y = Add(x, y)"),
            "two nodes": spliced("a = Add(x, b) b = Relu(a) y = Relu(b)"),
            "ten nodes": spliced("v0 = Add(x, v9)", *(f"v{i + 1} = Relu(v{i})" for i in range(9)), "y = Relu(v9)"),
            "among dead nodes": spliced("a = Add(x, b) b = Relu(a) y = Relu(x)"),
            "through constants": spliced("<float[1] c = {1}>", "a = Add(c, b) b = Relu(a) y = Add(x, b)"),
            "through a branch": spliced(
                "<bool t = {1}> ",
                "a = If(t) <then_branch = p () => (float[1] r) { r = Add(x, a) },"
                " else_branch = q () => (float[1] s) { s = Relu(x) }> y = Relu(a)",
            ),
            "inside a branch": spliced(
                "<bool t = {1}> ",
                "y = If(t) <then_branch = p () => (float[1] r) { r = Add(k, x) k = Relu(r) },"
                " else_branch = q () => (float[1] s) { s = Relu(x) }>",
            ),
            "through a loop's body": spliced(
                "<int64 n = {3}, bool t = {1}>",
                "a = Loop(n, t, x) <body = b (int64 i, bool c, float[1] v) => (bool d, float[1] w)"
                " { d = Identity(c) w = Add(v, k) }> k = Relu(a) y = Relu(k)",
            ),
            "through a scan's body": spliced(
                "a, r = Scan<num_scan_inputs=1, body = b (float[1] v, float u) => (float[1] w, float o)"
                " { w = Add(v, k) o = Relu(u) }>(x, x) k = Relu(a) y = Relu(k)",
            ),
            "second output feeds first input": spliced("a, b = Dropout(c) c = Identity(a) y = Relu(c)"),
        }
    ),
    "function calls itself": from_text(
        spliced("y = f.h(x)"), functions='<domain: "f", opset_import: ["": 17, "f": 1]> h (a) => (b) { b = f.h(a) }'
    ),
    "functions call each other": from_text(
        spliced("y = f.h(x)"),
        functions='<domain: "f", opset_import: ["": 17, "f": 1]> h (a) => (b) { b = f.k(a) }'
        '<domain: "f", opset_import: ["": 17, "f": 1]> k (a) => (b) { b = f.h(a) }',
    ),
    "dead function calls itself": from_text(
        spliced("y = Relu(x)"), functions='<domain: "f", opset_import: ["": 17, "f": 1]> h (a) => (b) { b = f.h(a) }'
    ),
    "inside a function": from_text(
        spliced("y = f.h(x)"),
        functions='<domain: "f", opset_import: ["": 17]> h (a) => (b) { c = Add(a, b) b = Relu(c) }',
    ),
}
