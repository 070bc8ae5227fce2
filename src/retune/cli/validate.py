"""`retune validate`: check a study file and everything it refers to."""

from __future__ import annotations

import json

import click

from retune.cli import _options
from retune.cli._say import say, say_data


@click.command("validate", cls=_options.StudyCommand)
@click.argument("study_file", metavar="STUDY")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of study files instead, for your editor.")
@click.option("--json", "as_json", is_flag=True, help="Print the resolved study as JSON.")
@click.option("--offline", is_flag=True, help="Skip all checks that need the network: hub, S3, MLflow.")
def command(study_file: str, overrides: tuple[str, ...], schema: bool, as_json: bool, offline: bool) -> None:
    """Check a study file and everything it refers to: data, base model, metrics, benchmarks, S3, the MLflow server.

    The data is read, filtered and drawn as in a run, and the detected format of each file is printed. All problems
    are printed at once, each with the rule and the value. Nothing is trained or written. Exit code 2 if something
    is wrong.

    \b
    Examples:
      retune validate study.yaml
      retune validate study.yaml search.trials=20 data.sources.0.share=0.5
      retune validate study.yaml --offline
      retune validate - --schema > study.schema.json
    """
    from retune import study
    from retune.steps.check import check

    if schema:
        say_data(json.dumps(study.json_schema(), indent=2))
        return
    loaded = study.load(study_file, overrides)
    notes = check(loaded, network=not offline, tracking=True)
    if as_json:
        say_data(loaded.model_dump_json(indent=2))
        return
    space = loaded.search.space
    say(
        f"{study_file} is valid: {loaded.search.trials} trials by {loaded.search.algorithm} over {', '.join(space.names)} "
        f"({space.size:,} settings)"
    )
    for note in notes:
        say(f"  {note}")
