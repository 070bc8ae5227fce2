"""`retune submit`: a study as a run of Kubeflow Pipelines."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("submit")
@click.argument("study_file", metavar="STUDY")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--host", envvar="KF_PIPELINES_ENDPOINT", metavar="URL", help="KFP's address.  [default: kubeconfig's]"
)
@click.option(
    "--namespace", metavar="NAME", help="Of the user, in a multi-user Kubeflow.  [default: the study's]"
)
@click.option("--token-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
              help="Bearer token for the address.")  # fmt: skip
@click.option(
    "--ca", type=click.Path(exists=True, dir_okay=False), metavar="FILE", help="Its certificate authority."
)
@click.option("--wait", is_flag=True, help="Wait for the end; the exit code tells how it went.")
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

    The pipeline package is uploaded once for each version of retune and each section `cluster`. All addresses of
    the study must be reachable from pods: s3://, a hub name, or a path on a mounted volume.

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
        click.echo(
            f"note: Kubeflow Pipelines has no field for {lost}: trials have them, steps do not", err=True
        )
    if render:  # its name in version 0.1
        click.echo("note: --render is called --dry-run now, and will go", err=True)
    if dry_run or render:
        click.echo(content, nl=False)
        return
    token = token_file.read_text().strip() if token_file else None
    kubeflow = Kubeflow(host, namespace or loaded.cluster.namespace, token, ca)
    run = kubeflow.submit("search", loaded, arguments_of(loaded))
    if not as_json:
        click.echo(f"{loaded.name} runs as pipeline version {run.version}\n{run.url}")
    state = None
    if wait:
        try:
            state = kubeflow.wait(run.id, lambda state: None if as_json else click.echo(state.lower()))
        except KeyboardInterrupt:
            raise Interrupted(f"stopped waiting; the run goes on: {run.url}") from None
    if as_json:
        click.echo(json.dumps({**run.as_dict(), "state": state}, indent=2))
    if state not in (None, "SUCCEEDED"):
        raise RetuneError(f"the run ended as {state}: {run.url}")
