"""`search.stopping` on real trainings: stopped trials resume from their checkpoints, and a killed search ends the same."""

import os
import random
import signal
from pathlib import Path

import pytest

from retune.engines.jobs import Jobs
from retune.workspace.ledger import Ledger
from tests.engines import running
from tests.engines.running import Run

pytestmark = pytest.mark.slow
STOPPING = [
    "search.stopping={kind: asha, reduction: 2, min_share: 0.25}", "search.trials=7", "search.finalists=2",
    "search.parallel=2", "search.algorithm=gp", "search.settings={LH_SEARCH: 3}",
]  # fmt: skip


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """An uninterrupted search in which trials were stopped and later resumed."""
    return running.whole_search(STOPPING, tmp_path_factory.mktemp("stopped"))


def results(run):
    return {
        r.trial: (r.assignment, r.status, [(x.share, x.loss) for x in r.rungs], r.adapter_digest)
        for r in run.outcome.records
    }


def test_poor_trials_are_stopped_and_keep_their_checkpoint_and_no_adapter(stopped):
    records = {r.trial: r for r in stopped.outcome.records}
    early = [r for r in records.values() if r.status == "early_stopped"]
    whole = [r for r in records.values() if r.status == "completed" and r.role != "base"]
    assert early
    assert len(whole) >= 2
    assert {r.trial for r in whole} >= {"trial-001"}
    for record in early:
        folder = Path(stopped.engine.folder) / "trials" / record.trial
        assert record.share < 1
        assert (folder / "checkpoint/state.pt").exists()
        assert not (folder / "adapter").exists()
        assert record.adapter_uri is None
        assert record.objective("validation_loss") is None
    ranked = [r.trial for r in stopped.engine.ledger.ranking(stopped.engine.study.search)]
    assert set(ranked) == {r.trial for r in whole}
    issued = stopped.issued
    gone_on = [trial for trial in issued if issued.count(trial) > 1]
    assert gone_on, "no trial went on after a stop"


def test_a_trial_that_was_stopped_and_went_on_is_the_one_that_was_not_stopped(stopped, small, tmp_path):
    """Its adapter is, bit for bit, that of a training without rungs."""
    issued = stopped.issued
    name = next(
        r.trial for r in stopped.outcome.records if r.status == "completed" and issued.count(r.trial) > 1
    )
    record = stopped.engine.ledger.records[name]
    study = small("search.trials=1", "search.parallel=1")
    plain = Run(study, tmp_path / "search")
    plain.engine.ledger.issue(1, "default", record.assignment, study.seed)
    plain.go()
    assert plain.engine.ledger.records["trial-001"].adapter_digest == record.adapter_digest
    assert plain.engine.ledger.records["trial-001"].rungs == []


def test_run_again_starts_nothing_and_more_trials_go_on(stopped, small, tmp_path):
    again = Run(small(*STOPPING), stopped.engine.folder).go()
    assert again.issued == []
    assert results(again) == results(stopped)
    short = Run(small(*STOPPING, "search.trials=4"), tmp_path / "search").go()
    longer = Run(small(*STOPPING), tmp_path / "search").go()
    assert {n: r[0] for n, r in results(longer).items()} == {n: r[0] for n, r in results(stopped).items()}
    done = {n for n, r in results(short).items() if r[1] == "completed"}
    assert not done & set(longer.issued)


def test_killed_at_random_moments_it_ends_as_an_undisturbed_search(stopped, small, tmp_path):
    running.kill_until_done(STOPPING, tmp_path, random.Random(7), (3, 9), kills=2, patience=240)
    assert results(Run(small(*STOPPING), tmp_path / "search").go()) == results(stopped)


def test_a_worker_that_dies_while_a_stopped_trial_goes_on_costs_a_restart_only(stopped, small, tmp_path):
    killed = []

    def kill(engine, event):
        if event.kind == "issued" and engine.ledger.records.get(event.trial) and not killed:
            killed.append(event.trial)
            worker = next(w for w in engine._workers if w.task and w.task.trial == event.trial)
            os.kill(worker.process.pid, signal.SIGKILL)

    run = Run(small(*STOPPING), tmp_path / "search", react=kill).go()
    assert killed
    assert results(run) == results(stopped)


def test_a_stopped_trial_that_dies_for_good_keeps_what_others_were_compared_with(small, tmp_path):
    def kill(engine, event):
        if event.kind == "issued" and event.trial in engine.ledger.records:
            worker = next(w for w in engine._workers if w.task and w.task.trial == event.trial)
            os.kill(worker.process.pid, signal.SIGKILL)

    study = small(*STOPPING, "search.trials=4", "search.parallel=1", "search.finalists=1")
    run = Run(study, tmp_path / "search", react=kill).go()
    dead = [r for r in run.outcome.records if r.failure == "killed"]
    assert dead
    assert all(r.rungs for r in dead)
    assert Run(study, tmp_path / "search").go().issued == []


def test_decisions_hide_what_a_later_job_found(stopped):
    """A restarted search has the records of later jobs too, and must decide without them."""
    jobs = Jobs(stopped.engine.study.search, Ledger(stopped.engine.folder))
    made = []
    while (job := jobs.next()) is not None:
        made.append(job)
        if jobs.role(job.trial) == "search" and job.trial not in [m.trial for m in made[:-1]]:
            known = {o.name: o.status for o in jobs.history(job)}
            assert list(known) == [f"trial-{k:03d}" for k in range(1, job.trial)]
    shares = [(job.trial, job.share) for job in made]
    assert len(set(shares)) == len(shares)
    assert any(o.rungs for o in jobs.history(made[-1]))
