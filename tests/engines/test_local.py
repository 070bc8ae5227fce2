"""The local engine on real trainings: parallel, killed, stopped, failing, started again."""

import json
import os
import random
import resource
import signal
from pathlib import Path

import pytest

from retune.errors import DiskFull, InputError, Interrupted
from retune.events import Issued
from retune.workspace.ledger import Ledger
from tests.conftest import wait_for
from tests.engines import running
from tests.engines.running import Run

pytestmark = pytest.mark.slow
FIVE = ["search.algorithm=nomad", "search.trials=5"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The trials of an undisturbed run of the study of `five`."""
    return running.whole_search(FIVE, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def five(small):
    return small(*FIVE)


def test_runs_base_default_and_search_trials(undisturbed):
    records = {r.trial: r for r in undisturbed.outcome.records}
    assert [r.role for r in records.values()] == ["base", "default", "search", "search", "search", "search"]
    assert all(r.status == "completed" for r in records.values())
    assert undisturbed.outcome.stopped_by == "trials"
    assignments = [json.dumps(r.assignment) for r in records.values()]
    assert len(set(assignments)) == 6


def test_run_again_starts_nothing(undisturbed, five):
    again = Run(five, undisturbed.engine.folder).go()
    assert again.issued == []
    assert again.results == undisturbed.results


def test_more_trials_carry_on(undisturbed, small, tmp_path):
    short = Run(small("search.algorithm=nomad", "search.trials=3"), tmp_path / "search").go()
    longer = Run(small("search.algorithm=nomad", "search.trials=5"), tmp_path / "search").go()
    assert len(short.outcome.records) == 4
    assert longer.issued == ["trial-004", "trial-005"]
    assert longer.results == undisturbed.results


def test_a_killed_service_changes_nothing(undisturbed, five, tmp_path):
    def kill(engine, event):
        if event.kind == "finished" and engine._service.pid:
            os.kill(engine._service.pid, signal.SIGKILL)

    assert Run(five, tmp_path / "search", react=kill).go().results == undisturbed.results


def test_a_killed_worker_costs_its_trial_a_restart_only(undisturbed, five, tmp_path):
    killed = []

    def kill(engine, event):
        if event.kind == "progress" and event.trial == "trial-003" and not killed:
            killed.append(event.trial)
            next(w for w in engine._workers if w.task and w.task.trial == "trial-003").process.kill()

    run = Run(five, tmp_path / "search", react=kill).go()
    assert killed == ["trial-003"]
    assert run.issued.count("trial-003") == 2
    assert run.results == undisturbed.results


def test_a_trial_whose_worker_dies_twice_fails_and_the_study_goes_on(five, tmp_path):
    def kill(engine, event):
        if event.kind == "progress" and event.trial == "trial-003":
            next(w for w in engine._workers if w.task and w.task.trial == "trial-003").process.kill()

    run = Run(five, tmp_path / "search", react=kill).go()
    record = run.engine.ledger.records["trial-003"]
    assert (record.status, record.failure) == ("failed", "killed")
    assert "signal 9 in 2 attempts" in record.reason
    assert [r.status for r in run.outcome.records].count("completed") == 5
    assert Ledger(str(tmp_path / "search")).records["trial-003"].status == "failed"


def test_stop_saves_running_trials_and_the_next_run_ends_alike(undisturbed, five, tmp_path):
    events = []
    stop = Run(five, tmp_path / "search", should_stop=lambda: any(e.kind == "progress" for e in events))
    stop.events = events
    with pytest.raises(Interrupted, match="running trials saved"):
        stop.go()
    assert Run(five, tmp_path / "search").go().results == undisturbed.results


def test_failed_trials_are_recorded_and_the_limit_stops_the_search(small, tmp_path):
    explode = "[{name: learning_rate, kind: real, low: 1.0e+30, high: 1.0e+32, scale: log, default: 1.0e+31}]"
    study = small(
        f"search.parameters={explode}", "search.trials=20", "search.max_failed=2", "search.parallel=1"
    )
    run = Run(study, tmp_path / "search").go()
    failed = [r for r in run.outcome.records if r.status == "failed"]
    assert run.outcome.stopped_by == "failures"
    assert [r.trial for r in failed] == ["trial-001", "trial-002", "trial-003"]
    assert all(r.failure == "nan" and r.values.get("validation_loss") is None for r in failed)


def test_the_hour_limit_ends_the_search_and_counts_earlier_runs(small, tmp_path):
    study = small("search.max_hours=0.0001", "search.trials=50")
    run = Run(study, tmp_path / "search").go()
    assert run.outcome.stopped_by == "hours"
    assert len(run.outcome.records) < 20


def test_the_finalists_and_the_default_are_repeated_with_other_seeds(small, tmp_path):
    run = Run(small("search.repeats=2", "search.trials=3"), tmp_path / "search").go()
    repeats = [r for r in run.outcome.records if r.role == "repeat"]
    ranked = run.engine.ledger.ranking(run.engine.study.search)
    expected = {record.trial for record in ranked[:3]} | {"trial-001"}
    assert {r.trial.rpartition("-seed-")[0] for r in repeats} == expected
    assert len(repeats) == 2 * len(expected)
    assert {r.seed for r in repeats} == {1, 2}


def test_bad_data_is_refused_not_retried(small, tmp_path):
    study = small()
    run = Run(study, tmp_path / "search")
    run.engine.data_uri = str(tmp_path / "nowhere")
    with pytest.raises(InputError, match="nowhere"):
        run.go()


def test_only_the_best_adapters_are_kept(small, tmp_path):
    run = Run(small("artifacts.keep=2", "benchmark.top=1"), tmp_path / "search").go()
    kept = {path.parent.name for path in (tmp_path / "search/trials").glob("*/adapter")}
    ranked = [r.trial for r in run.engine.ledger.ranking(run.engine.study.search)]
    assert kept == {*ranked[:2], "trial-001"}


def test_killed_at_random_moments_it_ends_as_an_undisturbed_run(undisturbed, five, tmp_path):
    running.kill_until_done(FIVE, tmp_path, random.Random(5), (2, 7), kills=3, patience=120)
    assert Run(five, tmp_path / "search").go().results == undisturbed.results


@pytest.mark.fresh
def test_workers_and_service_end_with_a_killed_engine(small, tmp_path):
    process = running.start(FIVE, tmp_path)
    children = wait_for(lambda: c if len(c := _children(process.pid)) >= 3 else None)
    process.kill()
    process.wait()
    wait_for(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in children),
        seconds=10,
        message="a child lived on",
    )


def _children(pid):
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def test_a_full_disk_ends_the_search_and_no_setting_is_blamed(five, tmp_path, undisturbed):
    """Once trial 2 has begun, the kernel refuses the worker files of more than 2 kB."""

    def fill(engine, event):
        if isinstance(event, Issued) and event.trial == "trial-002":
            for worker in engine._workers:
                resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, (2000, 2000))

    with pytest.raises(DiskFull, match="run again"):
        Run(five, tmp_path / "search", react=fill).go()
    assert all(record.status == "completed" for record in Ledger(str(tmp_path / "search")).records.values())
    run = Run(five, tmp_path / "search").go()
    assert run.results == undisturbed.results


def test_trials_side_by_side_end_as_in_processes_of_their_own(small, tmp_path, undisturbed):
    """One process trains two trials at a time; it is killed once, and both of its trials resume, now separately."""
    study = small("search.algorithm=nomad", "search.trials=5", "engine.pack=2", "engine.threads=64")
    killed = []

    def kill(engine, event):
        running = [w for w in engine._workers if len(w.tasks) == 2]
        if event.kind == "progress" and event.trial == "trial-003" and running and not killed:
            killed.extend(sorted(running[0].tasks))
            running[0].process.kill()

    run = Run(study, tmp_path / "search", react=kill)
    assert (run.engine.spread.workers, run.engine.spread.pack) == (1, 2)
    run.go()
    assert len(killed) == 2
    assert all(run.issued.count(name) == 2 for name in killed)
    records = {r.trial: r for r in run.outcome.records}
    for record in undisturbed.outcome.records:
        found = records[record.trial]
        assert (found.status, found.assignment) == ("completed", record.assignment)
        assert found.values["validation_loss"] == pytest.approx(record.values["validation_loss"], rel=1e-4)
