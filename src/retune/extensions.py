"""What other packages add to retune: search algorithms, benchmarks, data formats and engines, found by entry point.

A package names what it adds in its ``pyproject.toml``; once it is installed, study files know the name::

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
    return sorted(_found(kind))


def load(kind: Kind, name: str) -> Any:
    """Import and return the object behind a name.

    Raises:
        InputError: if two packages claim the name, or the import fails; naming the package.

    """
    claims = _found(kind)[name]
    if len(claims) > 1:
        packages = sorted(_package(claim) for claim in claims)
        raise InputError(f"a name belongs to one package, but {packages} both add {name!r}", f"retune.{kind}")
    try:
        return claims[0].load()
    except Exception as error:
        message = (
            f"{name!r} of package {_package(claims[0])} cannot be imported: {type(error).__name__}: {error}"
        )
        raise InputError(message, f"retune.{kind}") from error


def known(kind: Kind, own: Iterable[str], name: str) -> str:
    """Return `name` if it is one of retune's own or of an installed package.

    Raises:
        ValueError: with the nearest name, or all there are.

    """
    own = list(own)
    if name in own or name in _found(kind):
        return name
    there = [*own, *names(kind)]
    near = nearest(name, there)
    hint = f"did you mean {near!r}?" if near else f"there are {there}"
    raise ValueError(f"unknown name {name!r}; {hint}")


@cache
def _found(kind: Kind) -> dict[str, list[EntryPoint]]:
    found: dict[str, list[EntryPoint]] = {}
    for claim in entry_points(group=f"retune.{kind}"):
        if claim not in found.setdefault(claim.name, []):  # a package can be on the path twice
            found[claim.name].append(claim)
    return found


def _package(claim: EntryPoint) -> str:
    return claim.dist.name if claim.dist else claim.value
