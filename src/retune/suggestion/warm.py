"""Results of earlier studies as the text of one algorithm setting, since Katib sends only trials of its own.

``3.0.17 validation_loss=1.25 peak_gpu_gib=40.1;4.1.2`` are two trials: the levels of the parameters, then the final
metrics; a trial without metrics has failed. ``@2`` behind the levels marks a trial of the second earlier study, ``@0``
one of an earlier part of the same search.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from retune.search import SAME, Observation
from retune.space import Space


def encode(space: Space, warm: Iterable[Observation]) -> str:
    """Return finished trials as the text of a setting; those outside the space, and unfinished ones, are left out."""
    words = []
    warm = list(warm)
    sources = list(dict.fromkeys([SAME, *(entry.source for entry in warm)]))
    for entry in warm:
        if entry.status == "running" or not space.contains(entry.assignment):
            continue
        values = entry.values if entry.status != "failed" else {}
        levels = ".".join(map(str, space.encode(entry.assignment)))
        source = [f"@{sources.index(entry.source)}"] if entry.source else []
        words.append(
            " ".join([levels, *source, *(f"{name}={float(value)!r}" for name, value in values.items())])
        )
    return ";".join(words)


def decode(space: Space, text: str, problems: list[str]) -> list[Observation]:
    """Return the trials in the text of a setting; problems are appended to `problems`."""
    observations = []
    for number, word in enumerate(filter(None, map(str.strip, text.split(";")))):
        levels, *metrics = word.split()
        source = ""
        if metrics and re.fullmatch(r"@\d+", metrics[0]):
            source = SAME if metrics[0] == "@0" else metrics[0]
            del metrics[0]
        try:
            tops = [parameter.levels for parameter in space.parameters]
            numbers = [int(level) for level in levels.split(".")] if re.fullmatch(r"[\d.]+", levels) else []
            if len(numbers) != len(tops) or any(n >= top for n, top in zip(numbers, tops, strict=True)):
                raise ValueError(levels)
            values = {name: float(value) for name, _, value in (m.rpartition("=") for m in metrics)}
        except ValueError:
            problems.append(
                f"a trial of an earlier study reads `levels metric=number …` with one level below {tops} each, but got {word!r}"
            )
            continue
        status: Literal["completed", "failed"] = "completed" if values else "failed"
        observations.append(
            Observation(space.decode(numbers), status, values, f"warm-{number}", warm=True, source=source)
        )
    return observations
