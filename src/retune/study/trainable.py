"""Whether every setting of a search can be trained: told before the first trial, not by a failed one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from pydantic import ValidationError

from retune.space import Assignment, Parameter, Space
from retune.study.sentences import sentences
from retune.study.training import TUNABLE, Training

_TOGETHER = ("variant", "init", "rank", "first_layer", "last_layer")
"""Keys that `Training` has rules between."""
_MOST = 12  # levels of a parameter that are all looked at; of longer ladders the ends are


def problems(training: Training, space: Space) -> list[str]:
    """Return what of the space cannot be trained, each rule once.

    Args:
        training: the study's, for what the search does not tune.
        space: what is searched.
    """
    known = [parameter for parameter in space.parameters if parameter.name in TUNABLE]
    found = [text for parameter in known for text in _single(training, parameter)]
    if not found and len(known) == len(space.parameters):
        found = [text for assignment in settings(space, _TOGETHER) for text in _refused(training, assignment)]
    return list(dict.fromkeys(f"search.parameters: {text}" for text in found))


def settings(space: Space, names: Sequence[str]) -> Iterator[Assignment]:
    """Yield the assignments that a search can reach in `names`, all other parameters at their defaults or first levels.

    Of a long ladder both ends and their neighbours stand for all.
    """
    ladders = []
    for parameter in space.parameters:
        first = 0 if parameter.default is None else parameter.level(parameter.default)
        ladders.append(_levels(parameter) if parameter.name in names else [first])
    seen = set()
    for levels in itertools.product(*ladders):
        settled = space.settle(levels)
        if settled not in seen:
            seen.add(settled)
            assignment = space.decode(settled)
            yield {name: assignment[name] for name in space.names if name in names}


def _levels(parameter: Parameter) -> list[int]:
    top = parameter.levels - 1
    return list(range(top + 1)) if top < _MOST else [0, 1, top - 1, top]


def _single(training: Training, parameter: Parameter) -> Iterator[str]:
    """Yield what is wrong with one parameter's values by themselves."""
    alone = training.model_copy(
        update={"variant": "lora", "init": "default", "first_layer": 0, "last_layer": -1}
    )
    for value in (parameter.value(level) for level in _levels(parameter)):
        for text in _told(alone, {parameter.name: value}):
            if parameter.name not in ("first_layer", "last_layer") or text.startswith(f"{parameter.name}:"):
                yield text  # the two are judged together


def _refused(training: Training, assignment: Assignment) -> list[str]:
    given = ", ".join(f"{name} {value}" for name, value in assignment.items())
    return [
        f"{text} (at {given}): leave a value out, or tie it to another parameter by `when`"
        for text in (_told(training, assignment) if assignment else [])
    ]


def _told(training: Training, assignment: Assignment) -> list[str]:
    try:
        training.tuned(assignment)
    except ValidationError as error:
        return sentences(error, Training)
    return []
