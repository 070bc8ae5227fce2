"""`retune schedule`: a study as a recurring run of Kubeflow Pipelines."""

from __future__ import annotations

from pathlib import Path

import click

from retune.cli import _options
from retune.cli._say import say, say_data


@click.command("schedule", cls=_options.StudyCommand)
@click.argument("study_file", metavar="STUDY")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--cron", metavar="TIMES", help="When to run: minute hour day month weekday, e.g. '0 3 * * 1'.")
@click.option(
    "--dry-run", is_flag=True, help="Check everything and print the pipeline package; send nothing."
)
@click.option("--remove", is_flag=True, help="Delete the study's schedule.")
@_options.kubeflow()
def command(
    study_file: str, overrides: tuple[str, ...], cron: str | None, dry_run: bool, remove: bool, host: str | None,
    namespace: str | None, token_file: Path | None, ca: str | None,
) -> None:  # fmt: skip
    """Run a study on a cluster on a schedule. Steps whose inputs have not changed are skipped.

    A study has one schedule; a new one replaces it. A run is skipped while the previous one is still running.

    \b
    Examples:
      retune schedule study.yaml --cron '0 3 * * 1' --host http://localhost:8080
      retune schedule study.yaml --remove --host http://localhost:8080
    """
    from retune import study
    from retune.errors import InputError
    from retune.launch.cron import six_fields
    from retune.launch.package import package, trials_only
    from retune.launch.submit import Kubeflow, arguments_of

    if remove == (cron is not None):
        raise InputError("give either --cron with the times, or --remove", "retune schedule")
    if dry_run and remove:
        raise InputError(
            "--dry-run shows what --cron would send; it does not go with --remove", "retune schedule"
        )
    if cron is not None:
        six_fields(cron)  # before the study is read and the cluster contacted
    loaded = study.load(study_file, overrides)
    if cron is not None:
        content = package("search", loaded)
        if lost := trials_only(loaded):
            say(f"note: Kubeflow Pipelines has no field for {lost}: trials have them, steps do not", err=True)
        if dry_run:
            say_data(content, nl=False)
            return
    kubeflow = Kubeflow(host, namespace or loaded.cluster.namespace, token_file, ca)
    if cron is None:
        count = kubeflow.unschedule(loaded)
        say(f"{count} schedule(s) of {loaded.name} deleted")
        return
    created = kubeflow.schedule("search", loaded, arguments_of(loaded), cron)
    say(f"{loaded.name} runs at '{cron}' as pipeline version {created.version}\n{created.url}")
