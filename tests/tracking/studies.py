"""A small study reported to a tracker, and what MLflow then has of it."""

from __future__ import annotations

from retune.records import BenchRecord, Metric, TrialRecord
from retune.tracking import Tracker
from retune.tracking.runs import connect

TAGS = {
    "algorithm": "nomad",
    "seed": "0",
    "data_digest": "dd",
    "base_revision": "rev",
    "search_digest": "search-1",
}
SETTING = {"rank": 8, "alpha": 32, "learning_rate": 1e-05, "dropout": 0.1}


def record(trial: str, status: str = "completed", points: int = 5, **changes) -> TrialRecord:
    curve = [Metric(step=k, value=2 - 0.1 * k, time=f"2026-11-22T13:30:{k:02d}.000Z") for k in range(points)]
    given = {
        "trial": trial,
        "number": int(trial[-3:]),
        "role": "search",
        "assignment": SETTING,
        "seed": 0,
        "status": status,
        "curves": {"validation_loss": curve},
        "steps": points - 1,
        "seconds": 1.5,
        "tokens": 1000,
        "finished": "2026-11-22T13:31:00.000Z",
    }
    if status == "completed":
        given["values"] = {"validation_loss": curve[-1].value}
    else:
        given |= {"reason": "the loss was not finite", "failure": "nan"}
    return TrialRecord(**{**given, **changes})


def tell(tracker: Tracker, count: int = 3, points: int = 5) -> None:
    """Run a whole study."""
    tracker.start_study({"trials": count})
    for number in range(count):
        tell_trial(tracker, f"trial-{number:03d}", points)
    tracker.finish_study()


def tell_trial(tracker: Tracker, trial: str, points: int = 5) -> None:
    tracker.start_trial(trial, int(trial[-3:]), "search", SETTING, 0)
    for k in range(points):
        tracker.metric(trial, "validation_loss", 2 - 0.1 * k, k)
    tracker.finish_trial(record(trial, points=points))
    score = {"score": 0.4, "stderr": 0.01, "n": 50, "shots": 5, "protocol": "instruct-eval"}
    tracker.benchmark(BenchRecord(model=trial, task="mmlu", **score))


class Held:
    """What MLflow holds of a study."""

    def __init__(self, uri: str, study: str) -> None:
        self.client = connect(uri)
        experiment = self.client.get_experiment_by_name(study)
        runs = self.client.search_runs([experiment.experiment_id], max_results=1000) if experiment else []
        self.parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        self.children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]

    def names(self) -> list[str]:
        return sorted(run.info.run_name for run in self.children)

    def trial(self, name: str):
        (found,) = [run for run in self.children if run.info.run_name == name]
        return found

    def curve(self, name: str, metric: str = "validation_loss") -> list[tuple[int, float]]:
        """Every measurement, in the order of their times."""
        history = self.client.get_metric_history(self.trial(name).info.run_id, metric)
        return [(point.step, point.value) for point in sorted(history, key=lambda p: (p.timestamp, p.step))]


def expect_whole(held: Held, count: int = 3, points: int = 5) -> None:
    """Assert that MLflow has all of a study reported by `tell`, and nothing twice."""
    assert len(held.parents) == 1
    assert held.parents[0].info.status == "FINISHED"
    assert held.names() == [f"trial-{number:03d}" for number in range(count)]
    for name in held.names():
        child = held.trial(name)
        assert child.info.status == "FINISHED"
        assert child.data.tags["mlflow.parentRunId"] == held.parents[0].info.run_id
        assert held.curve(name) == [(k, 2 - 0.1 * k) for k in range(points)]
        assert child.data.metrics["bench/mmlu"] == 0.4
