"""The command line: one file per command, no logic. Commands are imported lazily, so `--help` is fast."""

from __future__ import annotations

import importlib
import logging
import sys
import traceback
from functools import partial
from typing import NoReturn

import click

from retune import __version__
from retune.cli._mistakes import Group, in_words, unknown_option
from retune.cli._say import Notes, say
from retune.errors import EXIT_FAILED, FULL, PATHS, RetuneError, as_retune_error

# Section of `retune --help` -> its commands by name, each with its line; the module retune.cli.<name> holds `command`
_SECTIONS = {
    "A study": {
        "init": "Write a study file to start from.",
        "validate": "Check a study file and everything it refers to; nothing is run.",
        "run": "Run a study, or resume it.",
        "watch": "Show a study in a browser while it runs.",
        "report": "Rewrite the report of a study.",
        "chat": "Ask the untuned base and the tuned model the same questions.",
        "export": "Write a tuned adapter for others, with a model card; merged, as GGUF or OCI.",
        "promote": "Promote a registered adapter, or roll back.",
    },
    "One step at a time": {
        "mix": "Mix the data sets of a study into train and validation.",
        "suggest": "Show the settings that would be tried next, and why.",
        "trial": "Train and validate one setting.",
        "bench": "Score a base model and adapters on benchmarks.",
        "select": "Select a model from benchmark scores, with significance tests.",
        "judge": "Let people compare the answers of two models, blind.",
    },
    "On a cluster and in CI": {
        "submit": "Run a study on a cluster, as a run of Kubeflow Pipelines.",
        "schedule": "Run a study on a cluster on a schedule.",
        "ci": "Retune what changed, from CI: lock, budget, pull request.",
        "rollout": "Make a server on a cluster serve the champion.",
        "render": "Print what a study would create on a cluster.",
        "katib": "Register retune's algorithms with Katib, or remove them.",
        "serve": "Serve the search algorithms to Katib or to a local study.",
    },
}
VERBS = {name: line for commands in _SECTIONS.values() for name, line in commands.items()}


# Words of other programs for what a command does -> the command
_ELSEWHERE = {
    **dict.fromkeys(("train", "tune", "start", "resume", "search", "fit"), "run"),
    **dict.fromkeys(("check", "lint"), "validate"),
    **dict.fromkeys(("status", "monitor", "dashboard", "ui"), "watch"),
    **dict.fromkeys(("eval", "evaluate", "benchmark"), "bench"),
    **dict.fromkeys(("data", "prepare"), "mix"),
    **dict.fromkeys(("compare", "rank"), "select"),
    **dict.fromkeys(("generate", "ask", "infer", "predict"), "chat"),
    **dict.fromkeys(("plot", "results", "show"), "report"),
    "merge": "export --merge",
    **dict.fromkeys(("push", "upload"), "export --push"),
    "rollback": "promote --rollback",
    **dict.fromkeys(("register", "unregister"), "katib"),
    "deploy": "rollout",
    "help": "--help",
    "version": "--version",
}


def _command(name: str) -> click.Command:
    command: click.Command = importlib.import_module(f"retune.cli.{name}").command
    return command


class _Commands(Group):
    """The commands by name, imported when they are used; an unknown name is answered with the nearest one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return _command(name) if name in VERBS else None

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as error:
            raise unknown_option(error, {name: partial(_command, name) for name in VERBS}) from error
        except click.BadParameter as error:
            raise in_words(error) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, commands in _SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl(list(commands.items()))


@click.group(
    cls=_Commands,
    elsewhere=_ELSEWHERE,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="retune")
def cli() -> None:
    """Find, score and promote the best LoRA adapter.

    \b
    Start:   retune init --data questions.jsonl && retune run study.yaml
    Look:    retune report artifacts/my-study --open yes; mlflow ui --backend-store-uri sqlite:///mlflow.db
    Use:     retune export artifacts/my-study
    """


def main() -> None:
    """Run the command line; print errors with a known remedy without a traceback."""
    if logging.lastResort:  # what warnings of libraries go to
        logging.lastResort.setFormatter(Notes())
    try:
        cli(prog_name="retune")
    except (RetuneError, OSError) as error:
        # Any other OSError is a fault of retune, whose traceback is needed
        is_path_error = isinstance(error, OSError) and error.errno in PATHS and error.filename is not None
        if isinstance(error, OSError) and error.errno not in FULL and not is_path_error:
            _unforeseen()
        reported = as_retune_error(error)
        say(f"error: {reported}", fg="red", err=True)
        sys.exit(reported.exit_code)
    except Exception:
        _unforeseen()


def _unforeseen() -> NoReturn:
    """Print the traceback of an error that nobody made for people, without the secrets that libraries put into them."""
    say(traceback.format_exc(), nl=False, err=True)
    sys.exit(EXIT_FAILED)
