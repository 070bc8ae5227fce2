"""How the local engine spreads trials over processes: one per GPU or core, with the remaining trials side by side in each."""

from __future__ import annotations

import os
from dataclasses import dataclass

from retune import gpus
from retune.study import Study

_ON_GPU, _ON_CPU = 8, 4  # trials side by side that `search.parallel: auto` asks for
# Measured for a process, not for one trial in it
_MEASURED = {
    "seconds",
    "tokens_per_second",
    "peak_memory_gib",
    "peak_gpu_gib",
}
_ROUNDS = 8  # `auto` leaves the search at least this many rounds


@dataclass(frozen=True)
class Spread:
    """Processes and what runs in each.

    Attributes:
        workers: processes. pack: trials side by side in each, at most.
    """

    workers: int
    pack: int


def spread(study: Study) -> Spread:
    """Return how `search.parallel` trials at a time run on this machine."""
    wanted, places = study.search.at_once, _places(study)
    pack = study.engine.pack if study.engine.pack != "auto" else -(-wanted // places)
    metrics = {each.metric for each in study.search.objectives} | {
        each.metric for each in study.search.constraints
    }
    if _MEASURED & metrics:
        pack = 1
    workers = min(wanted, max(places, -(-wanted // pack)))
    return Spread(workers, -(-wanted // workers))


def _places(study: Study) -> int:
    """Return how many trials can have a GPU, or their threads, to themselves."""
    return len(gpus.visible()) or max(1, (os.cpu_count() or 1) // (study.engine.threads or 1))


def settled(study: Study, before: int | None) -> Study:
    """Return the study with a number instead of ``search.parallel: auto``.

    The settings that a search tries depend on this number, so a resumed search keeps it.

    Args:
        study: the resolved study. before: the number that its search had in an earlier run, if there was one.
    """
    if study.search.parallel != "auto":
        return study
    places = _places(study)
    pack = study.engine.pack if study.engine.pack != "auto" else _ON_GPU if gpus.visible() else _ON_CPU
    number = before or min(places * pack, max(places, study.search.trials // _ROUNDS))
    return study.model_copy(update={"search": study.search.model_copy(update={"parallel": number})})
