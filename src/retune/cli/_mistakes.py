"""What is said about words of a command line that click refuses: the name that was meant, and where it belongs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import click

from retune.errors import nearest

_FEW = 5  # commands that a message can name
_SIMILAR = 0.7  # a typing error; below it lie other words, as `delete` and `select`


class Group(click.Group):
    """A group of commands that says which command does what was asked for, if it has none of the name given.

    Args:
        elsewhere: words that other programs have for what a command here does -> that command with its options.
    """

    def __init__(self, *args: Any, elsewhere: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._elsewhere = elsewhere or {}

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is named, or refuse the name."""
        name, names = args[0], self.list_commands(ctx)
        if name not in names and not name.startswith("-"):
            near = None if name in self._elsewhere else nearest(name, names, _SIMILAR)
            if name in self._elsewhere:
                hint = f"`{ctx.command_path} {self._elsewhere[name]}` does that"
            elif near:
                hint = f"did you mean {near!r}?"
            elif len(names) <= _FEW:
                hint = f"there are {', '.join(f'{one!r}' for one in names)}"
            else:
                hint = f"`{ctx.command_path} --help` lists them"
            ctx.fail(f"No such command {name!r}; {hint}")
        return super().resolve_command(ctx, args)


def unknown_option(
    error: click.NoSuchOption, commands: Mapping[str, Callable[[], click.Command]]
) -> click.UsageError:
    """Return an error that says which command has the option, or which option was meant.

    Args:
        error: as click raised it.
        commands: how to get every command, by its name.
    """
    ctx, name = error.ctx, error.option_name
    if ctx is None:
        return error
    near = nearest(name, _options(ctx.command))
    owners = [
        path
        for verb, get in commands.items()
        for path, command in _within(verb, get())
        if name in _options(command)
    ]
    if owners:
        hint = f"it is an option of {', '.join(f'`retune {path}`' for path in owners)}"
    elif near:
        hint = f"did you mean {near!r}?"
    else:
        hint = f"`{ctx.command_path} --help` lists them"
    return click.UsageError(f"No such option {name!r}; {hint}", ctx)


def _within(path: str, command: click.Command) -> list[tuple[str, click.Command]]:
    """Return a command with its path, or the commands of a group."""
    inner = command.commands.items() if isinstance(command, click.Group) else ()
    return [(f"{path} {name}", one) for name, one in inner] or [(path, command)]


def _options(command: click.Command) -> list[str]:
    shown = [param for param in command.params if isinstance(param, click.Option) and not param.hidden]
    return [word for param in shown for word in (*param.opts, *param.secondary_opts)]


def in_words(error: click.BadParameter) -> click.BadParameter:
    """Return an error about a value that says what is asked for, in place of the name of click's type."""
    match = re.fullmatch(
        r"(?P<value>'.*') is not a valid (?P<type>integer|float)(?: range)?\.", error.message, re.DOTALL
    )
    if not match:
        return error
    asked = "a whole number" if match["type"] == "integer" else "a number"
    return click.BadParameter(
        f"{asked} is asked for, but got {match['value']}.", error.ctx, error.param, error.param_hint
    )
