"""Write the table of values in retune/README.md from the comments in retune/values.yaml.

`python charts/readme.py` writes it, `--check` fails if it differs; a test calls it. A comment that begins with `# --`
describes the key below it; a key without one must hold keys that have one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

CHART = Path(__file__).resolve().parent / "retune"
BEGIN, END = "<!-- values: written by charts/readme.py -->", "<!-- end of values -->"


class Value(NamedTuple):
    """One documented key of values.yaml."""

    key: str
    default: Any
    description: str


def values(text: str) -> list[Value]:
    """Return every documented key in the order of the file.

    Raises:
        ValueError: with the keys that have no comment.

    """
    found = list(_walk(yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text), text.splitlines()))
    missing = [value.key for value in found if not value.description]
    if missing:
        raise ValueError(f"these keys of values.yaml need a comment that begins with `# --`: {missing}")
    return found


def _walk(node: yaml.Node | None, content: Any, lines: list[str], above: str = "") -> Iterator[Value]:
    assert isinstance(node, yaml.MappingNode)
    for key, value in node.value:
        name, default = f"{above}{key.value}", content[key.value]
        description = _comment(lines, key.start_mark.line)
        if not description and isinstance(value, yaml.MappingNode) and value.value:
            yield from _walk(value, default, lines, f"{name}.")
        else:
            yield Value(name, default, description)


def _comment(lines: list[str], line: int) -> str:
    text = lines[line - 1].strip() if line else ""
    return text.removeprefix("# -- ") if text.startswith("# -- ") else ""


def table(found: list[Value]) -> str:
    """Return the values as a Markdown table."""
    rows = ["| key | default | |", "|---|---|---|"]
    rows += [f"| `{v.key}` | `{json.dumps(v.default)}` | {v.description} |" for v in found]
    return "\n".join(rows)


def readme() -> str:
    """Return README.md with the table that values.yaml asks for."""
    text = (CHART / "README.md").read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    found = values((CHART / "values.yaml").read_text(encoding="utf-8"))
    return f"{before}{BEGIN}\n\n{table(found)}\n\n{END}{after}"


if __name__ == "__main__":
    if "--check" not in sys.argv:
        (CHART / "README.md").write_text(readme(), encoding="utf-8")
    elif readme() != (CHART / "README.md").read_text(encoding="utf-8"):
        sys.exit("run `make docs`: charts/retune/README.md does not say what values.yaml says")
