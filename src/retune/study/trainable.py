"""Checks that every setting of a search space can be trained, so that it is no trial that fails for it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from pydantic import ValidationError

from retune.space import Assignment, Parameter, Space
from retune.study.sentences import sentences
from retune.study.training import TUNABLE, Training

_TOGETHER = ("variant", "init", "rank", "first_layer", "last_layer")
"""Keys that `Training` has rules between."""
# Of a parameter whose levels are all checked; of a longer one both ends and their neighbours
_MAX_LEVELS = 12


def problems(training: Training, space: Space) -> list[str]:
    """Return why settings of the space cannot be trained, each rule once.

    Args:
        training: the study's section, for the keys that the search does not tune.
        space: of the search.
    """
    known = [parameter for parameter in space.parameters if parameter.name in TUNABLE]
    texts = [text for parameter in known for text in _parameter_problems(training, parameter)]
    if not texts and len(known) == len(space.parameters):
        texts = [
            text
            for assignment in settings(space, _TOGETHER)
            for text in _setting_problems(training, assignment)
        ]
    return list(dict.fromkeys(f"search.parameters: {text}" for text in texts))


def settings(space: Space, names: Sequence[str]) -> Iterator[Assignment]:
    """Yield the combinations of values of `names` in a space, all other parameters at their defaults or first levels.

    Of a parameter with many levels, both ends and their neighbours represent all.
    """
    choices = []
    for parameter in space.parameters:
        fixed = 0 if parameter.default is None else parameter.level(parameter.default)
        choices.append(_levels(parameter) if parameter.name in names else [fixed])
    seen = set()
    for levels in itertools.product(*choices):
        settled = space.settle(levels)
        if settled not in seen:
            seen.add(settled)
            assignment = space.decode(settled)
            yield {name: assignment[name] for name in space.names if name in names}


def _levels(parameter: Parameter) -> list[int]:
    top = parameter.levels - 1
    return list(range(top + 1)) if top < _MAX_LEVELS else [0, 1, top - 1, top]


def _parameter_problems(training: Training, parameter: Parameter) -> Iterator[str]:
    """Yield the problems of one parameter's values, independent of the others."""
    alone = training.model_copy(
        update={"variant": "lora", "init": "default", "first_layer": 0, "last_layer": -1}
    )
    for value in (parameter.value(level) for level in _levels(parameter)):
        for text in _errors(alone, {parameter.name: value}):
            # The rule between the two layers is checked with both of them, in `_setting_problems`
            if parameter.name not in ("first_layer", "last_layer") or text.startswith(f"{parameter.name}:"):
                yield text


def _setting_problems(training: Training, assignment: Assignment) -> list[str]:
    setting = ", ".join(f"{name} {value}" for name, value in assignment.items())
    return [
        f"{text} (at {setting}): remove a value, or tie it to another parameter by `when`"
        for text in (_errors(training, assignment) if assignment else [])
    ]


def _errors(training: Training, assignment: Assignment) -> list[str]:
    try:
        training.tuned(assignment)
    except ValidationError as error:
        return sentences(error, Training)
    return []
