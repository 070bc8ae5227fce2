"""`retune validate`: check a study file and all it points to."""

from __future__ import annotations

import json

import click


@click.command("validate")
@click.argument("study_file", metavar="STUDY")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of study files instead, for your editor.")
@click.option("--json", "as_json", is_flag=True, help="Print the resolved study as JSON.")
def command(study_file: str, overrides: tuple[str, ...], schema: bool, as_json: bool) -> None:
    """Check a study file and all it points to: data, base model, benchmarks, algorithm settings.

    All problems are printed at once, each with the rule and the value. Nothing is run or written. Exit code 2 if
    something is wrong.

    \b
    Examples:
      retune validate study.yaml
      retune validate study.yaml search.trials=20 data.sources.0.share=0.5
      retune validate - --schema > study.schema.json
    """
    from retune import study
    from retune.steps.check import check

    if schema:
        click.echo(json.dumps(study.json_schema(), indent=2))
        return
    loaded = study.load(study_file, overrides)
    check(loaded)
    if as_json:
        click.echo(loaded.model_dump_json(indent=2))
    else:
        space = loaded.search.space
        click.echo(
            f"{study_file} is valid: {loaded.search.trials} trials by {loaded.search.algorithm} over {', '.join(space.names)} "
            f"({space.size:,} settings), {loaded.data.train:,} + {loaded.data.validation:,} records"
        )
