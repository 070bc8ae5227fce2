"""`retune rollout`: make a workload on a cluster serve the champion of a registered model."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from retune.cli import _options
from retune.cli._say import say, say_data


@click.command("rollout")
@click.argument("model")
@click.argument("target", metavar="KIND/NAME")
@click.option(
    "--set",
    "setting",
    required=True,
    metavar="NAME=VALUE",
    help="Environment variable of the target; VALUE contains {version}.",
)
@click.option(
    "--namespace", metavar="NAME", help="Namespace of the target.  [default: that of the credentials]"
)
@_options.tracking(envvar="MLFLOW_TRACKING_URI")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: str, target: str, setting: str, namespace: str | None, uri: str, as_json: bool) -> None:
    """Make a Deployment or InferenceService serve the champion of MODEL.

    Sets one environment variable of its containers to the version behind the alias `champion`; Kubernetes then
    replaces the pods one by one. Nothing changes if the version is already set, so the command can run every
    minute, and a rollback of the alias also rolls back the server. k8s/serve has an example of each kind.

    \b
    Examples:
      retune rollout support-bot deployment/support-bot --set ADAPTER=support-bot@{version}
      retune rollout support-bot inferenceservice/support-bot \\
        --set STORAGE_URI=oci://registry.example/ml/support-bot:{version}
    """
    from retune.launch.rollout import rollout

    name, equals, value = setting.partition("=")
    if not equals or not name:
        raise click.UsageError(f"--set has the form NAME=VALUE, but got {setting!r}")
    done = rollout(uri, model, target, name, value, namespace)
    if as_json:
        say_data(json.dumps(asdict(done), indent=2))
    elif done.changed:
        say(f"{target} is set to version {done.version}: {name}={done.value}, before {done.before}")
    else:
        say(f"{target} has version {done.version} already")
