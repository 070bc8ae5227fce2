"""`retune init`: a study file to start from."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

TEMPLATE = """\
# yaml-language-server: $schema=./study.schema.json
# A retune study. Check it: retune validate {file}   Run it: retune run {file}
name: {name}
seed: 0
model:
  base: {base}          # a folder, s3:// or a hub name
  # revision: <commit>  # pin it for hub models
data:
  sources:              # JSON, JSONL, CSV, Parquet, a folder or hf://datasets/…; docs/data.md has the formats
    - uri: {data}
  # - uri: another.csv  # without `share:` every source gives all it has
  train: all            # or a number of records, or a share such as 0.9
  validation: 0.1       # held out; or a number, or a file of its own
  max_length: 512
  loss_on: completion   # or all
  prompt: auto          # conversations by the base's chat template if it has one, else Alpaca's; or chat, alpaca, none, a file
training:
  epochs: 2
  batch_size: 4
  target_modules: all-linear   # or names: [q_proj, v_proj]
  schedule: linear      # or cosine, constant
search:
  algorithm: mads-global   # or {others}
  parameters: {{preset: tribes2024}}   # rank, alpha, dropout, learning_rate as in the paper's Table 3
  trials: 20            # the default setting is the first of them
  parallel: 1
  max_failed: 5
benchmark:
  tasks: []             # mmlu, bbh, drop, humaneval, hellaswag; each needs its files under data:
  # data: {{mmlu: data/mmlu}}
promote:
  model: {name}
  gate:
    min_gain_over_base: 0.05   # nats per token: what gains less is not worth a champion
artifacts: {{uri: ./artifacts}}
tracking: {{uri: "sqlite:///mlflow.db"}}
"""
SAMPLE = "sample.jsonl"
_WORDS = (
    ("Which number comes after {0}?", "After {0} comes {1}."),
    ("Write {0} and {1} in one line.", "{0}, {1}"),
    ("What is {0} plus 1?", "{0} plus 1 is {1}."),
    ("Is {0} larger than {1}?", "No, {0} is smaller than {1}."),
)


def sample() -> str:
    """Return a small data set to try things with: 200 questions about numbers."""
    pairs = [(n, words) for n in range(1, 51) for words in _WORDS]
    rows = [
        {"prompt": asked.format(n, n + 1), "completion": said.format(n, n + 1)} for n, (asked, said) in pairs
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


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
@click.option("--force", is_flag=True, help="Overwrite existing files.")
def command(file: Path, name: str, base: str, data: str | None, force: bool) -> None:
    """Write a study file that runs as it is, and its JSON Schema, which gives your editor completion and checks.

    Paths in the file are relative to the study file.

    \b
    Examples:
      retune init
      retune init --data questions.jsonl
      retune init studies/support-bot.yaml --name support-bot --base ./models/llama
    """
    from retune import search, study
    from retune.errors import InputError

    folder = file.parent
    written = {file: "", folder / "study.schema.json": json.dumps(study.json_schema(), indent=2) + "\n"}
    if data is None:
        written[folder / SAMPLE] = sample()
    there = [str(path) for path in written if path.exists() and path.suffix != ".json"]
    if there and not force:
        raise InputError(f"{' and '.join(there)} exist already; choose another name or pass --force")
    others = ", ".join(algorithm for algorithm in search.ALGORITHMS if algorithm != "mads-global")
    shown = file.name if folder == Path() else str(file)
    written[file] = TEMPLATE.format(
        file=shown,
        name=name,
        base=_seen_from(folder, base),
        data=_seen_from(folder, data or SAMPLE, data is None),
        others=others,
    )
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in written.items():
        path.write_text(text, encoding="utf-8")
    click.echo(f"wrote {', '.join(map(str, written))}")
    click.echo(
        f"next: retune validate {shown} && retune run {shown}"
        + ("" if data else "; then put your own data in")
    )


def _seen_from(folder: Path, place: str, is_beside: bool = False) -> str:
    """Return a path that the person gave from here as it is seen from the study file; names and URIs as they are."""
    if is_beside or "://" in place or not Path(place).expanduser().exists():
        return place
    given = Path(place).expanduser()
    if given.is_absolute():
        return place
    relative = os.path.relpath(given.resolve(), folder.resolve())
    return relative if relative.startswith(".") else f"./{relative}"
