"""`retune chat`: base and tuned model side by side in a terminal."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from contextlib import suppress

import click

from retune.cli import _options
from retune.cli._say import say


@click.command("chat")
@click.argument("what", metavar="STUDY_FOLDER|MODEL@ALIAS")
@_options.base()
@click.option("--trial", metavar="NAME", help="Another trial instead of the chosen one.")
@click.option(
    "--ask", "questions", multiple=True, metavar="TEXT", help="Ask this question and exit; may be repeated."
)
@click.option(
    "--new-tokens",
    default=128,
    show_default=True,
    type=click.IntRange(min=1),
    help="Maximum tokens of an answer.",
)
@_options.tracking("MLflow tracking URI, for MODEL@ALIAS.")
def command(
    what: str, base: str | None, trial: str | None, questions: tuple[str, ...], new_tokens: int, uri: str
) -> None:
    """Ask the untuned base and a tuned model the same questions, and see both answers.

    Type one question per line; an empty line or Ctrl-D ends. Each question is independent, uses the prompt of the study, and is
    decoded greedily.

    \b
    Examples:
      retune chat artifacts/support-bot
      retune chat support-bot@champion --tracking https://mlflow.example
      retune chat artifacts/support-bot --ask "Where is my parcel?" --new-tokens 60
    """
    from retune.cli._console import Console
    from retune.steps import chat, tuned

    pair = chat.open_pair(tuned.find(what, trial, uri, base))
    console = Console()

    def answer(question: str) -> None:
        for name, text in pair.answers(question, new_tokens).items():
            console.print(name, style="bold")
            console.print(text or "(nothing)")
        console.print()

    for question in questions:
        console.print(f"> {question}")
        answer(question)
    if not questions:
        converse(answer)


def converse(answer: Callable[[str], None]) -> None:
    """Ask for questions and answer each, until an empty line or the end of the input.

    What is wrong with one question ends neither the session nor the models that are loaded for it, nor does Ctrl-C
    while an answer is made.

    Args:
        answer: prints the answers to a question; raises InputError if it cannot be asked.
    """
    from retune.errors import InputError

    if sys.stdin.isatty():
        with suppress(ImportError):  # there is none on Windows
            importlib.import_module("readline")  # keys that move in the line and through earlier ones
        say("One question a line. Ctrl-C stops an answer; an empty line or Ctrl-D ends.")
    while True:
        try:
            question = click.prompt(">", prompt_suffix=" ", default="", show_default=False)
        except click.Abort:
            say()
            return
        if not question.strip():
            return
        try:
            answer(question)
        except InputError as error:
            say(f"error: {error}", fg="red", err=True)
        except KeyboardInterrupt:
            say("(stopped)")
