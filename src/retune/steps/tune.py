"""Steps for one setting without a search: train it, validate its saved adapter, benchmark it."""

from __future__ import annotations

from retune import store
from retune.errors import RetuneError
from retune.evaluation import bench
from retune.records import BenchRecord, TrialRecord, digest
from retune.space import Assignment
from retune.study import Study
from retune.training.resident import ResidentBase
from retune.trials.run_trial import run_trial
from retune.trials.task import TrialTask


def train(study: Study, data_uri: str, assignment: Assignment) -> TrialRecord:
    """Train one setting and return its record; the same setting on the same data is not trained twice.

    Raises:
        RetuneError: if the trial failed, with its reason.
    """
    name = f"tune-{digest([assignment, study.seed])}"
    folder = store.join(study.root, name)
    task = TrialTask(
        trial=name, number=1, role="default", assignment=assignment, seed=study.seed, folder=folder
    )
    record = run_trial(study, data_uri, task, ResidentBase(study.model))
    if record.status != "completed":
        raise RetuneError(f"the trial in {folder} failed: {record.reason}")
    return record


def validate(study: Study, data_uri: str, adapter_uri: str) -> float:
    """Return the validation loss of a saved adapter, in nats per counted token."""
    return ResidentBase(study.model).evaluate(adapter_uri, data_uri, study)


def benchmark(study: Study, adapter_uri: str) -> list[BenchRecord]:
    """Score the untuned base and one adapter on the study's tasks."""
    if not study.benchmark.tasks:
        return []
    folder = store.join(adapter_uri.rsplit("/", 1)[0], "bench")
    candidates = [bench.Candidate("base", None, None), bench.Candidate("adapter", adapter_uri, None)]
    return bench.run(study.model, candidates, study.benchmark, study.seed, folder, None)
