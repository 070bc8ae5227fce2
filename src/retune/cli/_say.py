"""Printing of the command line: what comes from files and servers can neither steer the terminal nor show a secret.

`say` prints sentences, `say_over` a line that the next one replaces, `say_data` what other programs read. Tables and
progress bars are printed by `retune.cli._console`. No other module of the command line prints (a rule of ruff).
"""

from __future__ import annotations

import logging
from typing import Any

import click

from retune.errors import escaped_in_strings, sanitized

_LINE = 70  # columns of a line that the next one replaces


def say(text: object = "", *, err: bool = False, nl: bool = True, **style: Any) -> None:
    """Print a text; `style` is that of `click.style`."""
    click.secho(sanitized(str(text)), err=err, nl=nl, **style)


def say_over(text: str, *, last: bool = False) -> None:
    """Print a line on stderr over the one before; the next one goes over it, unless it is the last."""
    click.echo(f"\r{sanitized(text):<{_LINE}}", nl=last, err=True)


def say_data(text: str, *, nl: bool = True) -> None:
    """Print JSON or YAML, which stays the same to a program that reads it."""
    click.echo(escaped_in_strings(text), nl=nl)


class Notes(logging.Formatter):
    """The format of a message that a library logs to the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message in the form that may be printed."""
        return sanitized(super().format(record))
