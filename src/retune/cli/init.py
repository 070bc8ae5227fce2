"""`retune init`: a study file to start from."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from retune.cli._say import say

SAMPLE = "sample.jsonl"


@click.command("init")
@click.argument("file", type=click.Path(path_type=Path), default="study.yaml")
@click.option(
    "--name", default="my-study", show_default=True, help="Name of the study, of its folder and of its model."
)
@click.option(
    "--base",
    default="HuggingFaceTB/SmolLM2-135M-Instruct",
    show_default=True,
    help="Base model: a folder or a hub name.",
)
@click.option(
    "--data",
    metavar="URI",
    help=f"Your data file.  [default: {SAMPLE}, a small data set, also written]",
)
@click.option(
    "--columns",
    metavar="PART=FIELD,…",
    help="Fields by their part, if they are not detected, e.g. prompt=q,completion=a.",
)
@click.option("--format", "form", metavar="FORMAT", help="Format of the data, if it is not detected.")
@click.option("--split", metavar="NAME", help="Split of a data set that has several, if not train.")
@click.option("--force", is_flag=True, help="Overwrite existing files.")
def command(
    file: Path, name: str, base: str, data: str | None, columns: str | None, form: str | None, split: str | None,
    force: bool,
) -> None:  # fmt: skip
    """Write a study file that runs as it is, and its JSON Schema, which gives your editor completion and checks.

    Data and base are checked first, and nothing is written if the study could not run. Without a GPU, the number of
    settings and records is chosen to end within about an hour. Paths in the file are relative to the study file.

    \b
    Examples:
      retune init
      retune init --data questions.jsonl
      retune init --data tickets.csv --columns prompt=subject,completion=reply
      retune init studies/support-bot.yaml --name support-bot --base ./models/llama
    """
    from retune import study
    from retune.errors import InputError
    from retune.steps import first_study

    folder = file.parent
    schema = folder / "study.schema.json"
    targets = [file] if data else [file, folder / SAMPLE]
    problems = [f"{path} must be a file, but is a folder" for path in targets if path.is_dir()]
    existing = [str(path) for path in targets if path.is_file()]
    if existing and not force:
        problems.append(
            f"{' and '.join(existing)} exist{'s' * (len(existing) == 1)} already; choose another name or pass --force"
        )
    if data is None and (columns or form or split):
        problems.append("--columns, --format and --split describe the file of --data, which is not given")
    if problems:
        raise InputError(problems, "retune init")
    source: dict[str, object] | None = None
    if data is not None:
        options = {"format": form, "columns": _columns(columns), "split": split}
        source = {
            "uri": _relative_to(folder, data),
            **{key: value for key, value in options.items() if value},
        }
    if base.startswith(".") or Path(base).exists():  # otherwise it is a hub name
        base = _relative_to(folder, base)
    created = first_study.write(file, name, base, source)
    folder.mkdir(parents=True, exist_ok=True)
    written = {file: created.text, schema: json.dumps(study.json_schema(), indent=2) + "\n"}
    if data is None:
        written[folder / SAMPLE] = first_study.sample()
    for path, text in written.items():
        path.write_text(text, encoding="utf-8")
    say(f"wrote {', '.join(map(str, written))}")
    for note in created.notes:
        say(f"  {note}")
    shown = file.name if folder == Path() else str(file)
    say(
        f"next: retune validate {shown} && retune run {shown}"
        + ("" if data else "; then put your own data in")
    )


def _columns(text: str | None) -> dict[str, str]:
    from retune.errors import InputError

    pairs = [part.partition("=") for part in (text or "").split(",") if part.strip()]
    if wrong := [part for part, equals, field in pairs if not (equals and part.strip() and field.strip())]:
        raise InputError(
            f"--columns has the form prompt=FIELD,completion=FIELD, but got {text!r} ({wrong[0]!r} has no field)",
            "retune init",
        )
    return {part.strip(): field.strip() for part, _, field in pairs}


def _relative_to(folder: Path, path: str) -> str:
    """Return a path relative to the study file's folder; URIs and absolute paths are returned unchanged."""
    if "://" in path or Path(path).expanduser().is_absolute():
        return path
    relative = os.path.relpath(Path(path).resolve(), folder.resolve())
    return relative if relative.startswith(".") else f"./{relative}"
