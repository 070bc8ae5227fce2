"""Options that several commands share, and the help with overrides that were written as options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click


class StudyCommand(click.Command):
    """A command that takes a study and overrides; an option that is a key of the study is answered with the override."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments.

        Raises:
            click.UsageError: as click, or naming the override for an option such as ``--trials 3``.
        """
        words = list(args)  # click empties its list
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if not (overrides := _overrides(error.option_name, words)):
                raise
            hint = " or ".join(overrides)
            raise click.UsageError(
                f"No such option {error.option_name!r}; keys of the study are written without dashes: {hint}",
                ctx,
            ) from error


def _overrides(option: str, args: Sequence[str]) -> list[str]:
    """Return the overrides that an unknown option may stand for, with its value in `args`; [] if it is no key of a study."""
    from retune.study.problems import paths_of

    index = next(k for k, word in enumerate(args) if word.partition("=")[0] == option)
    _, equals, value = args[index].partition("=")
    if not equals:
        following = args[index + 1] if index + 1 < len(args) else "-"
        value = "VALUE" if following.startswith("-") else following
    return [f"{path}={value}" for path in paths_of(option.lstrip("-").replace("-", "_"))]


def port(default: int) -> Callable[[Any], Any]:
    """Return the option ``--port`` of commands that serve."""
    return click.option(
        "--port",
        type=click.IntRange(0, 65535),
        default=default,
        show_default=True,
        help="Port to listen on; 0 selects a free port.",
    )


def tracking(help: str = "MLflow tracking URI.", **more: Any) -> Callable[[Any], Any]:
    """Return the option ``--tracking``, which a command gets as `uri`; `more` goes to `click.option`."""
    return click.option(
        "--tracking", "uri", default="sqlite:///mlflow.db", show_default=True, help=help, **more
    )


def base() -> Callable[[Any], Any]:
    """Return the option ``--base`` of commands that load a tuned model."""
    return click.option("--base", metavar="BASE", help="The base model, if it is not where the study had it.")


def dtype() -> Callable[[Any], Any]:
    """Return the option ``--dtype`` of commands that load a base without a study."""
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
    """Return the options for the connection to Kubeflow Pipelines: `host`, `namespace`, `token_file` and `ca`."""
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
