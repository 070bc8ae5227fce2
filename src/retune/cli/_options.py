"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def tracking(help: str = "MLflow tracking URI.", **more: Any) -> Callable[[Any], Any]:
    """Return the option ``--tracking``, which a command gets as `uri`; `more` goes to `click.option`."""
    return click.option(
        "--tracking", "uri", default="sqlite:///mlflow.db", show_default=True, help=help, **more
    )


def base() -> Callable[[Any], Any]:
    """Return the option ``--base`` of commands that take a tuned model."""
    return click.option("--base", metavar="BASE", help="The base model, if it is not where the study had it.")


def dtype() -> Callable[[Any], Any]:
    """Return the option ``--dtype`` of commands that load a base which no study names."""
    return click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto",
                        show_default=True, help="Precision of the base.")  # fmt: skip


def batch_size() -> Callable[[Any], Any]:
    """Return the option ``--batch-size`` of commands that let models answer."""
    return click.option(
        "--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Prompts per batch."
    )


def kubeflow(
    host: str = "Address of Kubeflow Pipelines.  [default: from the kubeconfig]",
) -> Callable[[Any], Any]:
    """Return the options that reach Kubeflow Pipelines: `host`, `namespace`, `token_file` and `ca`."""
    options = [
        click.option("--host", envvar="KF_PIPELINES_ENDPOINT", metavar="URL", help=host),
        click.option("--namespace", metavar="NAME",
                     help="Namespace of the user in a multi-user Kubeflow.  [default: the study's]"),
        click.option("--token-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
                     help="File with a bearer token for the address."),
        click.option("--ca", type=click.Path(exists=True, dir_okay=False), metavar="FILE",
                     help="Certificate authority of the address."),
    ]  # fmt: skip

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add
