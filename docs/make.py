"""Make docs/passes.md from the passes: ``python docs/make.py``; ``--check`` only tells whether it is stale."""

from __future__ import annotations

import sys
from pathlib import Path

import jinja2

from onnxedge.documentation import describe
from onnxedge.registry import list_passes, list_targets

PAGE = Path(__file__).with_name("passes.md")
TEMPLATE = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False).from_string(
    """\
# Passes and targets

Made by `docs/make.py` from the passes' own docstrings and options; `onnxedge passes show NAME` prints the same.

{% for page in passes %}
## {{ page.name }}

Outputs: {{ page.promise }}{{ "; reads calibration samples" if page.needs_calibration }}.

```text
{{ page.text }}
```

{% if page.options %}
| option | type | default | meaning |
|---|---|---|---|
{% for option in page.options %}
| `{{ option.name }}` | {{ option.type | replace("|", " or ") }} | `{{ option.default }}` | {{ option.comment }} |
{% endfor %}

{% endif %}
{% endfor %}
# Targets

| target | runtime | widths in multiples of | what it is |
|---|---|---|---|
{% for target in targets %}
| `{{ target.name }}` | {{ target.runtime }} | {{ target.channel_multiple }} | {{ target.description }} |
{% endfor %}
"""
)


def page() -> str:
    """Return the page for the passes and targets that come with onnxedge."""
    own = [cls for entry, cls in list_passes() if cls is not None and entry.distribution.startswith("onnxedge ")]
    targets = [t for entry, t in list_targets() if t is not None and entry.distribution.startswith("onnxedge ")]
    return TEMPLATE.render(passes=[describe(cls) for cls in own], targets=targets).rstrip() + "\n"


def main() -> int:
    """Write the page, or say whether it is stale."""
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.exists() and PAGE.read_text("utf-8") == page() else 1
    PAGE.write_text(page(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
