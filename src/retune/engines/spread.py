"""How the local engine spreads trials over processes: one per GPU or core, with the remaining trials side by side in each."""

from __future__ import annotations

from dataclasses import dataclass

from retune import cores, gpus
from retune.study import Study

_PACK_GPU, _PACK_CPU = 8, 4  # trials side by side in a process under `search.parallel: auto`
# These metrics are those of a process: several trials in it would share one value
_PER_PROCESS = {"seconds", "tokens_per_second", "peak_memory_gib", "peak_gpu_gib"}
_MIN_ROUNDS = 8  # that `auto` leaves a search, whose algorithm learns nothing within one round


@dataclass(frozen=True)
class Spread:
    """Worker processes, and the trials in each.

    Attributes:
        workers: number of processes.
        pack: most trials side by side in each.
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
    if _PER_PROCESS & metrics:
        pack = 1
    workers = min(wanted, max(places, -(-wanted // pack)))
    return Spread(workers, -(-wanted // workers))


def _places(study: Study) -> int:
    """Return how many processes can have a GPU, or their CPU threads, to themselves."""
    return len(gpus.visible()) or max(1, cores.available() // (study.engine.threads or 1))


def settled(study: Study, before: int | None) -> Study:
    """Return the study with a number instead of ``search.parallel: auto``.

    The settings that a search tries depend on this number, so a resumed search keeps it.

    Args:
        study: the resolved study.
        before: the number of an earlier run of its search, None for the first run.
    """
    if study.search.parallel != "auto":
        return study
    places = _places(study)
    pack = study.engine.pack if study.engine.pack != "auto" else _PACK_GPU if gpus.visible() else _PACK_CPU
    number = before or min(places * pack, max(places, study.search.trials // _MIN_ROUNDS))
    return study.model_copy(update={"search": study.search.model_copy(update={"parallel": number})})
