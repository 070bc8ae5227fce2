"""`retune init`: a study file to start from."""

from __future__ import annotations

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
  sources:              # shares add up to 1 and hold in both splits
    - {{format: alpaca, uri: data/alpaca_data.json, share: 0.7}}
    - {{format: dolly, uri: data/databricks-dolly-15k.jsonl, share: 0.3}}
  train: 54000
  validation: 13000
  max_length: 512
  loss_on: completion   # or all
training:
  epochs: 2
  batch_size: 4
  target_modules: [q_proj, v_proj]
  schedule: linear      # or cosine, constant
search:
  algorithm: mads-global   # or {others}
  parameters: {{preset: tribes2024}}   # rank, alpha, dropout, learning_rate as in the paper's Table 3
  trials: 100           # the default setting is the first of them
  parallel: 1
  max_failed: 10
benchmark:
  tasks: []             # mmlu, bbh, drop, humaneval; each needs its files under data:
  # data: {{mmlu: data/mmlu}}
  top: 3
promote:
  model: {name}
artifacts: {{uri: ./artifacts}}
tracking: {{uri: "sqlite:///mlflow.db"}}
"""


@click.command("init")
@click.argument("file", type=click.Path(path_type=Path), default="study.yaml")
@click.option(
    "--name", default="my-study", show_default=True, help="Name of the study, its folder and its model."
)
@click.option("--base", default="meta-llama/Llama-2-7b-hf", show_default=True, help="Base model.")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def command(file: Path, name: str, base: str, force: bool) -> None:
    """Write a commented study file and its JSON Schema, which gives your editor completion and checks.

    \b
    Examples:
      retune init
      retune init studies/support-bot.yaml --name support-bot --base ./models/llama
    """
    import json

    from retune import search, study
    from retune.errors import InputError

    if file.exists() and not force:
        raise InputError(f"{file} exists; choose another name or pass --force")
    others = ", ".join(algorithm for algorithm in search.algorithm_names() if algorithm != "mads-global")
    text = TEMPLATE.format(file=file, name=name, base=base, others=others)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    schema = file.parent / "study.schema.json"
    schema.write_text(json.dumps(study.json_schema(), indent=2) + "\n")
    click.echo(f"wrote {file} and {schema}\nnext: edit the data paths, then `retune validate {file}`")
