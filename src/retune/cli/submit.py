"""`retune submit`: a study as a run of Kubeflow Pipelines."""

from __future__ import annotations

import json
from pathlib import Path

import click

from retune.cli import _options
from retune.cli._say import say, say_data


@click.command("submit", cls=_options.StudyCommand)
@click.argument("study_file", metavar="STUDY")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@_options.kubeflow()
@click.option("--wait", is_flag=True, help="Wait until the run ends; the exit code has its result.")
@click.option("--dry-run", is_flag=True, help="Print the pipeline package instead of sending it.")
@click.option("--render", is_flag=True, hidden=True)
@click.option(
    "--json", "as_json", is_flag=True, help="Print run, address and state as JSON, and nothing else."
)
def command(
    study_file: str, overrides: tuple[str, ...], host: str | None, namespace: str | None, token_file: Path | None,
    ca: str | None, wait: bool, dry_run: bool, render: bool, as_json: bool,
) -> None:  # fmt: skip
    """Run a study on a cluster: the same steps as `retune run`, in pods.

    The pipeline package is uploaded once per version of retune and section `cluster`. Pods must be able to reach all
    addresses in the study: s3://, a hub name, or a path on a mounted volume.

    \b
    Examples:
      retune submit study.yaml --host http://localhost:8080
      retune submit study.yaml engine.kind=katib search.trials=100 --wait
      retune submit study.yaml --dry-run | less

    Exit codes: 0 started (with --wait: succeeded), 2 bad input, 1 failed, 75 stopped waiting.
    """
    from retune import study
    from retune.errors import Interrupted, RetuneError
    from retune.launch.package import package, trials_only
    from retune.launch.submit import Kubeflow, arguments_of

    loaded = study.load(study_file, overrides)
    content = package("search", loaded)
    if lost := trials_only(loaded):
        say(f"note: Kubeflow Pipelines has no field for {lost}: trials have them, steps do not", err=True)
    if render:  # its name in version 0.1
        say("note: --render is deprecated; use --dry-run", err=True)
    if dry_run or render:
        say_data(content, nl=False)
        return
    kubeflow = Kubeflow(host, namespace or loaded.cluster.namespace, token_file, ca)
    run = kubeflow.submit("search", loaded, arguments_of(loaded))
    if not as_json:
        say(f"{loaded.name} runs as pipeline version {run.version}\n{run.url}")
    state = None
    if wait:
        try:
            state = kubeflow.wait(run.id, lambda state: None if as_json else say(state.lower()))
        except KeyboardInterrupt:
            raise Interrupted(f"stopped waiting; the run continues: {run.url}") from None
    if as_json:
        say_data(json.dumps({**run.as_dict(), "state": state}, indent=2))
    if state not in (None, "SUCCEEDED"):
        raise RetuneError(f"the run ended as {state}: {run.url}")
