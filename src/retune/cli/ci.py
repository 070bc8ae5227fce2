"""`retune ci`: retuning by a CI system."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import click

from retune.cli import _options
from retune.cli._mistakes import Group
from retune.cli._say import say, say_data

if TYPE_CHECKING:
    from retune.retuning.run import Plan, Runner

WEBHOOK = "RETUNE_WEBHOOK"


@click.group("ci", cls=Group)
def command() -> None:
    """Retune what changed: one at a time, within a budget, by pull request. See docs/ci.md.

    \b
    Examples:
      retune ci run study.yaml --dry-run
      retune ci run study.yaml --gpu-hours 40 --pull-request retune
      retune ci promote retune/support-bot.json
    """


@command.command(
    "run", cls=_options.StudyCommand, short_help="Run a study if something it depends on changed."
)
@click.argument("study_file", metavar="STUDY")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--code", "paths", multiple=True, metavar="PATH",
              help="Set `code` to the last commit that changed PATH; may be repeated.")  # fmt: skip
@click.option("--gpu-hours", type=click.FloatRange(min=0, min_open=True), metavar="HOURS",
              help="Budget of all retunings within --days; trials are saved before it is used up.")  # fmt: skip
@click.option(
    "--days",
    type=click.FloatRange(min=0, min_open=True),
    default=30,
    show_default=True,
    help="Period of the budget.",
)
@click.option("--pull-request", metavar="FOLDER",
              help="If the gate passes, propose files in FOLDER on the branch retune/MODEL.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print what would start and why; run and write nothing.")
@_options.kubeflow("Run on this Kubeflow Pipelines instead of this machine.")
@click.option("--beat-seconds", type=click.FloatRange(min=0.1), default=10, show_default=True,
              help="Time between two heartbeats; after six missed ones a run counts as dead.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else.")
def run(
    study_file: str, overrides: tuple[str, ...], paths: tuple[str, ...], gpu_hours: float | None, days: float,
    pull_request: str | None, dry_run: bool, host: str | None, namespace: str | None, token_file: Path | None,
    ca: str | None, beat_seconds: float, as_json: bool,
) -> None:  # fmt: skip
    """Run a study if its data, base, code or settings changed since the last time.

    The environment variable RETUNE_WEBHOOK names a webhook for messages at start and end (Slack's format). With
    --pull-request, the champion changes when the request is merged (`retune ci promote`), or at once if the study
    has `promote.automatic: beyond-noise` and the gain is beyond noise. Exit codes: 0 done or nothing to do, 2 bad
    input, 75 stopped, over budget, or another retuning is running; 1 failed.

    \b
    Examples:
      retune ci run study.yaml --code src --dry-run
      retune ci run study.yaml artifacts.uri=s3://retune --gpu-hours 40 --pull-request retune
      retune ci run study.yaml engine.kind=katib --host http://localhost:8080
    """
    import os

    from retune import outages, study
    from retune.processes import stop_signals
    from retune.retuning import run as retuning
    from retune.retuning.forge import TOKENS
    from retune.retuning.notify import notifier

    if outages.in_pod():  # e.g. of a CronJob, whose next run may be a week away
        outages.wait_long()
    words = [*overrides, *([f"code={_last_commit(paths)}"] if paths else [])]
    loaded = study.load(study_file, words)
    if pull_request is not None and loaded.promote.automatic == "passed":
        loaded = study.load(study_file, [*words, "promote.automatic=never"])
    options = retuning.Options(gpu_hours, days, pull_request, host is not None, beat_seconds)
    planned = retuning.plan(loaded, options)
    if dry_run:
        if as_json:
            say_data(json.dumps({"starts": planned.starts, **vars(planned)}, indent=2))
        else:
            say(_as_text(loaded.name, planned))
        return
    runner: Runner
    if host is None:
        from retune.launch import local
        from retune.steps.plan import checked

        if planned.steps:
            checked(loaded)

        def runner(which: study.Study, stops: retuning.Stops) -> None:
            local.run(which, lambda progress: None, stops)
    else:
        from retune.launch.submit import Kubeflow, arguments_of

        kubeflow = Kubeflow(host, namespace or loaded.cluster.namespace, token_file, ca)

        def runner(which: study.Study, stops: retuning.Stops) -> None:
            started = kubeflow.submit("search", which, arguments_of(which))
            say(started.url, err=True)
            kubeflow.complete(started, stops)

    env = dict(os.environ)
    # The processes of a study run code that a model wrote (humaneval), and need none of these secrets
    for name in (WEBHOOK, *TOKENS):
        os.environ.pop(name, None)
    notify = notifier(env.get(WEBHOOK), lambda line: say(line, err=True))
    with stop_signals() as stops:
        result = retuning.run(loaded, planned, options, runner, stops, notify, env)
    if as_json:
        say_data(json.dumps(result.as_dict(), indent=2))
    else:
        say(result.sentence())


@command.command("promote", short_help="Promote the versions in merged files.")
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("--before", metavar="COMMIT",
              help="Skip files unchanged since this commit, the branch's head before the push.")  # fmt: skip
@_options.tracking(envvar="MLFLOW_TRACKING_URI")
def promote(files: tuple[Path, ...], before: str | None, uri: str) -> None:
    """Make the version in each of FILES the champion of its model; `run --pull-request` wrote the files.

    Refused if the champion changed after the gate's decision. With --before, a file that names the previous
    champion rolls back, as after the revert of a merge.

    \b
    Example:
      retune ci promote retune/*.json --before HEAD~1 --tracking https://mlflow.example
    """
    import os

    from retune.retuning import forge, proposal
    from retune.retuning import run as retuning
    from retune.retuning.notify import notifier

    notify = notifier(os.environ.get(WEBHOOK), lambda line: say(line, err=True))
    pins = [(path, proposal.read_pin(path)) for path in files]
    changed = forge.changed_since(before, files) if before else list(files)
    for path, pin in pins:
        if path not in changed:
            say(f"{path}: unchanged")
            continue
        done = retuning.apply_pin(uri, pin, revert=before is not None)
        say(done)
        if not done.endswith("already"):
            notify(done)


def _as_text(name: str, planned: Plan) -> str:
    verb = "would start" if planned.starts else "would not start" if planned.steps else "nothing to do"
    lines = [f"{name}: {verb}{': ' + ', '.join(planned.steps) if planned.steps else ''}"]
    lines += [f"  {reason}" for reason in planned.reasons]
    lines += [f"  {planned.waits}"] if planned.waits else []
    if planned.left is not None:
        lines.append(
            f"GPU hours: {planned.spent:.3g} held, {planned.left:.3g} left; it holds {planned.gpus} GPU{'s' * (planned.gpus > 1)}"
        )
    if planned.holder:
        lines.append(f"running now: {planned.holder}")
    elif planned.last:
        lines.append(f"last: {planned.last}")
    return "\n".join(lines)


def _last_commit(paths: tuple[str, ...]) -> str:
    from retune.errors import InputError

    done = subprocess.run(
        ["git", "log", "-1", "--format=%H", "--", *paths], capture_output=True, text=True, check=False
    )
    if done.returncode or not done.stdout.strip():
        why = (
            done.stderr.strip()
            or "no commit touched them; a shallow clone has only the last ones (fetch-depth: 0)"
        )
        raise InputError(
            f"--code names paths with a commit in git, but for {list(paths)} {why}", "retune ci run"
        )
    return done.stdout.strip()
