"""Benchmark scores as metrics of a trial, which a search can optimise or limit like the losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean

from retune import store
from retune.errors import InputError, RetuneError, TrialFailed
from retune.evaluation import bench
from retune.events import Event
from retune.study import Study
from retune.study.scored import MEAN_SCORE
from retune.training.resident import ResidentBase


def benchmark_scores(
    study: Study,
    base: ResidentBase,
    name: str,
    adapter_uri: str | None,
    out_uri: str,
    report: Callable[[Event], None] | None = None,
) -> dict[str, float]:
    """Return the score of each task that the search asks for, from 0 to 1, and their mean; none if it asks for none.

    Args:
        study: its `scored` has the tasks and the number of questions.
        base: the resident base. name: of the model, for the records below `out_uri`. adapter_uri: None for the bare base.
        report: called with the events of the benchmark.

    Raises:
        InputError: if the tasks' files or the adapter cannot be read, or the base is sharded.
        TrialFailed: if the model gives no finite output.
    """
    benchmark = study.scored
    if benchmark is None:
        return {}
    if base.devices.sharded:
        raise InputError(
            f"a trial's scores {benchmark.tasks} need the whole base in each process, but this one is sharded (FSDP): let each "
            "GPU train a trial of its own (`search.parallel`)",
            "search.objective",
        )
    resident = bench.SharedBase(base.load, base.forget)
    candidate = bench.Candidate(name, adapter_uri)
    records_uri = out_uri if base.devices.world == 1 else store.join(out_uri, f"process-{base.devices.rank}")
    try:
        records = bench.run(study.model, [candidate], benchmark, study.seed, records_uri, report, resident)
    except RetuneError as error:
        if isinstance(error.__cause__, TrialFailed):
            raise TrialFailed(str(error), error.__cause__.kind) from error
        raise
    scores_by_task = {record.task: record.score for record in records}
    if not all(map(math.isfinite, scores_by_task.values())):
        raise TrialFailed(f"scores must be finite, but got {scores_by_task}", "nan")
    return scores_by_task | {MEAN_SCORE: fmean(scores_by_task.values())}
