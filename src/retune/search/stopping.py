"""Which trial trains next, and how far: rules that stop poor trials early, as pure functions of what is known.

A search is a sequence of jobs. Each trains one trial until a rung, a share of its whole training, or to the end; there it
stops and keeps its checkpoint. The rule then says who goes on, from the checkpoint. `next_job` is a function of its arguments
alone, so a search that was killed makes the same jobs again.

``asha``: Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", algorithm 2: whenever a job can begin, the
highest rung with a trial among its best ``1/reduction`` that has not gone on is looked for, else a new trial begins.
``hyperband``: section 3.3 there: brackets, each an ``asha`` that begins at another rung; the budgets of the brackets are as
equal as whole trials allow (Li et al. 2018). ``median``: Golovin et al. 2017, section 3.2.2, with the losses at the same rung
instead of running means, as Optuna's MedianPruner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from retune.study import Stopping

WHOLE = 1.0
DEFAULT = 1
"""The number of the trial that all others are compared with: it is never stopped."""


@dataclass(frozen=True)
class Job:
    """Train trial `trial` until `share` of its whole training, from where it stopped last."""

    trial: int
    share: float


@dataclass(frozen=True)
class Result:
    """What trial `trial` had at `share` of its training: the validation loss in nats, None if it failed before."""

    trial: int
    share: float
    loss: float | None


def next_job(
    stopping: Stopping | None,
    results: Sequence[Result],
    under_way: Sequence[Job],
    trials: int,
    wanted: int,
) -> Job | None:
    """Return the next job; None if there is none until one that is under way has ended, or at all.

    Args:
        stopping: the rule; None trains every trial to its end.
        results: of the jobs that are known, in the order of the jobs, a trial's in the order of the rungs.
        under_way: jobs that were made and whose results are not known.
        trials: how many settings there are to try.
        wanted: how many trials are to be trained to the end, though the rule stopped them, if the rest is done.
    """
    if stopping is not None and (job := _goes_on(stopping, results, under_way)):
        return job
    begun = {result.trial for result in results} | {job.trial for job in under_way}
    if len(begun) < trials:
        new = max(begun, default=0) + 1
        return Job(new, WHOLE if stopping is None or new == DEFAULT else _first(stopping, new))
    if stopping is None or under_way:
        return None
    return _best_stopped(results, wanted)


def rungs_of(stopping: Stopping | None, trial: int) -> tuple[float, ...]:
    """Return the rungs at which a trial's loss is measured: those from where its bracket begins."""
    if stopping is None:
        return ()
    return stopping.rungs[bracket(stopping, trial) :]


def bracket(stopping: Stopping, trial: int) -> int:
    """Return how many rungs a trial skips; the default setting is at all of them.

    Of ``hyperband`` with rungs r0, r1, …: bracket s begins at rung s, the last one trains to the end at once. They take turns so
    that each gets about the same amount of training.
    """
    if stopping.kind != "hyperband" or trial == DEFAULT:
        return 0
    count = len(stopping.rungs) + 1
    # Hyperband's numbers of trials: ceil((s_max + 1) / (s + 1) * eta^s), s the number of reductions that are left
    sizes = [math.ceil(count / (left + 1) * stopping.eta**left) for left in reversed(range(count))]
    position = (trial - DEFAULT - 1) % sum(sizes)
    # The trial goes to the bracket that is furthest behind its part of the round: small ones come among the large ones.
    assigned = [0] * count
    for turn in range(1, position + 2):
        behind = [size * turn / sum(sizes) - done for size, done in zip(sizes, assigned, strict=True)]
        chosen = behind.index(max(behind))
        assigned[chosen] += 1
    return chosen


def _first(stopping: Stopping, trial: int) -> float:
    rungs = rungs_of(stopping, trial)
    return rungs[0] if rungs else WHOLE


def _goes_on(stopping: Stopping, results: Sequence[Result], under_way: Sequence[Job]) -> Job | None:
    """Return the job of a stopped trial that the rule continues, those at higher rungs first."""
    furthest: dict[int, float] = {}
    entries: list[Result | Job] = [*results, *under_way]
    for entry in entries:
        furthest[entry.trial] = max(furthest.get(entry.trial, 0.0), entry.share)
    for index, share in reversed(list(enumerate(stopping.rungs))):
        here = [result for result in results if result.share == share]
        goes_on = _by_median(stopping, here) if stopping.kind == "median" else _by_rank(stopping, here)
        for trial in goes_on:
            if furthest[trial] == share:
                return Job(trial, (*stopping.rungs, WHOLE)[index + 1])
    return None


def _by_rank(stopping: Stopping, results: Sequence[Result]) -> list[int]:
    """Return the best ``1/reduction`` of each bracket at one rung, best first; failed trials are the worst."""
    groups: dict[int, list[Result]] = {}
    for result in results:
        groups.setdefault(bracket(stopping, result.trial), []).append(result)
    survivors = []
    for group in groups.values():
        ranked = sorted((r.loss, r.trial) for r in group if r.loss is not None)
        survivors += ranked[: len(group) // stopping.eta]
    return [trial for _, trial in sorted(survivors)]


def _by_median(stopping: Stopping, results: Sequence[Result]) -> list[int]:
    """Return the trials that were no worse at one rung than the median of those before them; all while these are few."""
    survivors, before = [], list[float]()
    for result in results:
        if result.loss is None:
            continue
        if len(before) < stopping.startup or result.loss <= median(before):
            survivors.append(result.trial)
        before.append(result.loss)
    return survivors


def _best_stopped(results: Sequence[Result], wanted: int) -> Job | None:
    """Return the job that trains the best stopped trial to its end, while fewer than `wanted` are there."""
    last = {result.trial: result for result in results}
    if sum(r.share == WHOLE and r.loss is not None for r in last.values()) >= wanted:
        return None
    stopped = [r for r in last.values() if r.share < WHOLE and r.loss is not None]
    best = min(stopped, key=lambda r: (-r.share, r.loss, r.trial), default=None)
    return None if best is None else Job(best.trial, WHOLE)
