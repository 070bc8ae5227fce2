"""A trial that was stopped, however it was stopped, ends as if it had not been."""

import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from retune import store
from retune.errors import Interrupted, RetuneError
from retune.events import Measured, Note, Progress
from retune.training import checkpoint
from retune.trials.run_trial import run_trial
from tests.training.conftest import ON_GPU, alike, make_study

ROOT = Path(__file__).parents[2]


class StopAfter:
    """Asks to stop once `steps` optimiser steps were reported, or at the n-th question."""

    def __init__(self, questions):
        self.left = questions

    def __call__(self):
        self.left -= 1
        return self.left < 0


@pytest.fixture(scope="module")
def whole(base, data, tmp_path_factory):
    """The same trial, never interrupted."""
    from retune.trials.task import TrialTask

    study = make_study(base.model.base)
    folder = str(tmp_path_factory.mktemp("whole"))
    return run_trial(study, data, TrialTask(trial="t", number=2, role="search", seed=3, folder=folder), base)


def assert_equal(record, whole):
    assert record.status == "completed"
    assert ON_GPU or record.adapter_digest == whole.adapter_digest
    for curve in ("train_loss", "validation_loss"):
        assert [(m.step, m.value) for m in record.curves[curve]] == [
            (m.step, alike(m.value)) for m in whole.curves[curve]
        ]
    assert (record.tokens, record.steps) == (whole.tokens, whole.steps)
    for name in ("validation_loss", "train_loss", "best_validation_loss"):
        assert record.values[name] == alike(whole.values[name])


# Questions 0 to 6 come before the steps of the first epoch, 7 and 8 in and after its validation, and so on.
@pytest.mark.slow
@pytest.mark.parametrize("questions", [1, 5, 6, 7, 8, 13, 14])
def test_stopped_and_carried_on_equals_uninterrupted(study, data, base, task, whole, questions):
    with pytest.raises(Interrupted, match="a checkpoint was saved"):
        run_trial(study, data, task, base, should_stop=StopAfter(questions))
    assert [p.name for p in Path(task.folder).iterdir()] == ["checkpoint"]
    torch.randn(5)  # whatever another trial draws in between does not matter
    events = []
    record = run_trial(study, data, task, base, events.append)
    assert any(isinstance(e, Note) and "carrying on" in e.text for e in events)
    assert_equal(record, whole)
    assert sorted(p.name for p in Path(task.folder).iterdir()) == ["adapter", "trial.json"]


@pytest.mark.slow
def test_stopped_at_every_other_step(study, data, base, task, whole):
    stops = 0
    while True:
        try:
            record = run_trial(study, data, task, base, should_stop=StopAfter(3))
            break
        except Interrupted:
            stops += 1
    assert stops >= 4
    assert_equal(record, whole)


def test_asked_before_the_first_step_saves_nothing(study, data, base, task):
    with pytest.raises(Interrupted, match="stopped after step 0 of 12; nothing new"):
        run_trial(study, data, task, base, should_stop=lambda: True)
    assert not Path(task.folder).exists()


def test_a_timed_checkpoint_is_carried_on_after_a_kill(base, data, task, whole, monkeypatch):
    """An exception that nothing catches stands for SIGKILL: only what is on disk already is left."""
    study = make_study(base.model.base, checkpoint_minutes=1e-9)

    class Killed(BaseException):
        pass

    def die(event):
        if isinstance(event, Measured) and event.step == 6:
            raise Killed

    with pytest.raises(Killed):
        run_trial(study, data, task, base, die)
    assert store.exists(checkpoint.uri(task.folder))
    events = []
    record = run_trial(study, data, task, base, events.append)
    assert "carrying on after step 6 of 12" in [e.text for e in events if isinstance(e, Note)]
    assert_equal(record, whole)


def flip(content):
    return content[:500] + bytes([content[500] ^ 1]) + content[501:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda content: content[:1000], "it is damaged"),
        (lambda content: b"", "it is damaged"),
        (flip, "it is damaged"),
        (lambda content: hashlib.sha256(b"zip").digest() + b"zip", "it cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_not_used(study, data, base, task, whole, damage, why):
    with pytest.raises(Interrupted):
        run_trial(study, data, task, base, should_stop=StopAfter(4))
    path = Path(checkpoint.uri(task.folder))
    path.write_bytes(damage(path.read_bytes()))
    events = []
    record = run_trial(study, data, task, base, events.append)
    notes = [e.text for e in events if isinstance(e, Note)]
    assert len(notes) == 1
    assert "starts from step 0" in notes[0]
    assert why in notes[0]
    assert_equal(record, whole)


def test_another_trials_checkpoint_is_not_used(study, data, base, task, whole):
    other = task.model_copy(update={"assignment": {"alpha": 1}})
    with pytest.raises(Interrupted):
        run_trial(study, data, other, base, should_stop=StopAfter(4))
    events = []
    record = run_trial(study, data, task, base, events.append)
    assert any("it belongs to another trial" in e.text for e in events if isinstance(e, Note))
    assert_equal(record, whole)


def test_a_full_disk_costs_the_checkpoint_not_the_training(base, data, task, whole, monkeypatch):
    study = make_study(base.model.base, checkpoint_minutes=1e-9)
    real = store.write

    def full(uri, content):
        if "checkpoint" in uri:
            raise RetuneError("no space left on device")
        real(uri, content)

    monkeypatch.setattr(store, "write", full)
    events = []
    record = run_trial(study, data, task, base, events.append)
    notes = [e.text for e in events if isinstance(e, Note)]
    assert len(notes) == 12
    assert "no checkpoint was saved after step 1; the training continues: no space left" in notes[0]
    assert_equal(record, whole)
    with pytest.raises(Interrupted, match="nothing new was saved"):
        run_trial(
            study, data, task.model_copy(update={"folder": task.folder + "b"}), base, should_stop=StopAfter(3)
        )


_PROGRAM = """
import sys, torch
torch.set_num_threads(1)
from retune.training.resident import ResidentBase
from retune.trials.run_trial import run_trial
from retune.trials.task import TrialTask
from tests.training.conftest import ON_GPU, alike, make_study
base, data, folder = sys.argv[1:]
study = make_study(base, checkpoint_minutes=1e-9)
def report(event):
    if event.kind == "progress":
        print(event.step, flush=True)
import retune.training.loop as loop
loop._REPORT_SECONDS = 0
run_trial(study, data, TrialTask(trial="t", number=2, role="search", seed=3, folder=folder), ResidentBase(study.model), report)
"""


@pytest.mark.slow
def test_sigkill_at_any_moment_loses_at_most_the_step_it_hit(base_folder, data, tmp_path, base, whole):
    """Killed with SIGKILL twice, a little after a step each time, then left alone."""
    command = [sys.executable, "-c", _PROGRAM, str(base_folder), data, str(tmp_path / "t")]
    for step, pause in ((3, 0.0), (8, 0.01)):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for line in process.stdout:
            if int(line) >= step:
                break
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
    final = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(final.stdout.split()[0]) > 7
    from retune.trials.task import TrialTask

    study = make_study(base_folder, checkpoint_minutes=1e-9)
    task = TrialTask(trial="t", number=2, role="search", seed=3, folder=str(tmp_path / "t"))
    assert_equal(run_trial(study, data, task, base), whole)


def test_progress_counts_on_after_a_stop(study, data, base, task, whole):
    with pytest.raises(Interrupted):
        run_trial(study, data, task, base, should_stop=StopAfter(8))
    events = []
    run_trial(study, data, task, base, events.append)
    assert [e.step for e in events if isinstance(e, Progress)][-1] == 12
