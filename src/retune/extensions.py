"""Extensions by other packages: search algorithms, benchmarks, data formats and engines, found by entry point.

A package declares its extensions in ``pyproject.toml``; once it is installed, study files can use their names::

    [project.entry-points."retune.algorithms"]
    hill-climbing = "my_package.hill_climbing:ALGORITHM"

===================  =================================================================
group                the object behind the name
===================  =================================================================
`retune.algorithms`  a `retune.search.Algorithm`
`retune.tasks`       a `retune.evaluation.tasks.question.Task` of the same name
`retune.formats`     a `retune.data.formats.Format`
`retune.engines`     a function from a `retune.engines.SearchJob` to a `retune.engines.Engine`
===================  =================================================================

docs/extend.md walks through a package with one of each.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from retune.errors import InputError, nearest

Kind = Literal["algorithms", "tasks", "formats", "engines"]


def names(kind: Kind) -> list[str]:
    """Return the names that installed packages add, sorted."""
    return sorted(_entry_points(kind))


def load(kind: Kind, name: str) -> Any:
    """Import and return the object behind a name.

    Raises:
        InputError: naming the packages, if two of them add the name, or the import fails.

    """
    candidates = _entry_points(kind)[name]
    if len(candidates) > 1:
        packages = sorted(_package(candidate) for candidate in candidates)
        raise InputError(
            f"a name belongs to one package, but {packages} all add {name!r}; uninstall all but one",
            f"retune.{kind}",
        )
    try:
        return candidates[0].load()
    except Exception as error:
        message = f"{name!r} of package {_package(candidates[0])} cannot be imported: {type(error).__name__}: {error}"
        raise InputError(message, f"retune.{kind}") from error


def check_name(kind: Kind, builtin: Iterable[str], name: str) -> str:
    """Return `name` if it is built in or of an installed package.

    Raises:
        ValueError: with the nearest name, else all valid ones.

    """
    builtin = list(builtin)
    if name in builtin or name in _entry_points(kind):
        return name
    valid = [*builtin, *names(kind)]
    near = nearest(name, valid)
    hint = f"did you mean {near!r}?" if near else f"there are {valid}"
    raise ValueError(f"unknown name {name!r}; {hint}")


@cache
def _entry_points(kind: Kind) -> dict[str, list[EntryPoint]]:
    by_name: dict[str, list[EntryPoint]] = {}
    for candidate in entry_points(group=f"retune.{kind}"):
        # A package that is on sys.path twice is listed twice, e.g. an editable install beside a checkout
        if candidate not in by_name.setdefault(candidate.name, []):
            by_name[candidate.name].append(candidate)
    return by_name


def _package(candidate: EntryPoint) -> str:
    return candidate.dist.name if candidate.dist else candidate.value
