"""Write what the program itself decides: docs/cli.md, examples/study.schema.json and the notebook of examples/04-python.

`python docs/generate.py` writes them, `python docs/generate.py --check` fails if they differ; a test calls it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from retune import study
from retune.cli import VERBS, cli

ROOT = Path(__file__).resolve().parent.parent


def _context(command: click.Command, **words: Any) -> click.Context:
    """Return a context that shows help as the program does."""
    settings = cli.context_settings["help_option_names"]
    return click.Context(command, help_option_names=settings, **words)


def cli_page() -> str:
    """Return the page of all verbs with their help texts."""
    parts = ["# The command line\n", "Written by `make docs` from the program's own help.\n"]
    for verb in ("", *VERBS):
        with _context(
            cli,
            info_name="retune",
            max_content_width=100,
        ) as parent:
            command = cli.get_command(parent, verb) if verb else cli
            assert command is not None
            context = _context(
                command, info_name=verb or "retune", parent=parent if verb else None, max_content_width=100
            )
            parts.append(_section(context))
            if verb and isinstance(command, click.Group):
                for name, inner in command.commands.items():
                    parts.append(
                        _section(_context(inner, info_name=name, parent=context, max_content_width=100))
                    )
    return "\n".join(parts)


def _section(context: click.Context) -> str:
    return f"## `{context.command_path} --help`\n\n```text\n{context.command.get_help(context)}\n```\n"


def notebook(script: str) -> str:
    """Return a script as a Jupyter notebook: ``# %% [markdown]`` begins a cell of text, ``# %%`` one of code."""
    cells = []
    for number, part in enumerate(script.split("# %%")[1:]):
        head, _, body = part.partition("\n")
        text = head.strip() == "[markdown]"
        lines = body.strip("\n").split("\n")
        if text:
            lines = [line.removeprefix("#").removeprefix(" ") for line in lines]
        source = [line + "\n" for line in lines[:-1]] + lines[-1:]
        more = {} if text else {"execution_count": None, "outputs": []}
        cells.append(
            {
                "cell_type": "markdown" if text else "code",
                "id": f"cell-{number}",
                "metadata": {},
                "source": source,
                **more,
            }
        )
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def pages() -> dict[Path, str]:
    """Return every generated file with its content."""
    return {
        ROOT / "docs/cli.md": cli_page(),
        ROOT / "examples/study.schema.json": json.dumps(study.json_schema(), indent=2) + "\n",
        ROOT / "examples/04-python/study.ipynb": notebook((ROOT / "examples/04-python/study.py").read_text()),
    }


if __name__ == "__main__":
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        sys.exit(
            f"run `make docs`: {[str(path.relative_to(ROOT)) for path in stale]} are not what the program says"
            if stale
            else 0
        )
    for path, text in pages().items():
        path.write_text(text)
