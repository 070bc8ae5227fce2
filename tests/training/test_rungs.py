"""A trial that stops at a rung keeps its checkpoint, goes on from it, and learns what it would have learnt without the stop."""

import json
from pathlib import Path

import pytest

from retune.events import Note
from retune.records import TrialRecord, parse
from retune.study import Proxy
from retune.training import checkpoint
from retune.trials.run_trial import run_trial
from retune.trials.task import TrialTask
from tests.training.conftest import alike, make_study

RUNGS = (0.25, 0.5, 0.8)  # of 12 steps: 3, 6 (the end of epoch 1) and 10


@pytest.fixture(scope="module")
def whole(base, data, tmp_path_factory):
    """The same trial without rungs."""
    folder = str(tmp_path_factory.mktemp("whole"))
    task = TrialTask(trial="t", number=2, role="search", seed=3, folder=folder)
    return run_trial(make_study(base.model.base), data, task, base)


def until(task, share):
    return task.model_copy(update={"rungs": RUNGS, "until": share})


def test_stopped_at_each_rung_it_ends_as_one_that_was_not(study, data, base, task, whole):
    losses = []
    for place, share in enumerate(RUNGS, 1):
        record = run_trial(study, data, until(task, share), base)
        assert (record.status, record.share) == ("early_stopped", share)
        assert [rung.share for rung in record.rungs] == list(RUNGS[:place])
        assert record.values["validation_loss"] == record.rungs[-1].loss
        assert record.objective("validation_loss") is None
        assert record.adapter_uri is record.adapter_digest is None
        assert sorted(p.name for p in Path(task.folder).iterdir()) == ["checkpoint", "trial.json"]
        assert [m.step for m in record.curves["validation_loss"]] == [3, 6, 10][:place]
        losses = [rung.loss for rung in record.rungs]
    events = []
    record = run_trial(study, data, until(task, 1.0), base, events.append)
    assert any(isinstance(e, Note) and "carrying on after step 10" in e.text for e in events)
    assert record.status == "completed"
    assert record.values["validation_loss"] == alike(whole.values["validation_loss"])
    assert record.adapter_digest == whole.adapter_digest or alike(1.0) != 1.0
    assert [rung.loss for rung in record.rungs] == losses
    assert record.rungs[1].loss == alike(whole.curves["validation_loss"][0].value)
    assert sorted(p.name for p in Path(task.folder).iterdir()) == ["adapter", "trial.json"]
    assert whole.rungs == []
    assert whole.share == 1.0


def test_what_has_come_far_enough_is_not_trained_again(study, data, base, task):
    first = run_trial(study, data, until(task, 0.5), base)
    again = []
    assert run_trial(study, data, until(task, 0.25), base, again.append) == first
    assert run_trial(study, data, until(task, 0.5), base, again.append) == first
    assert again == []


@pytest.mark.parametrize("harm", ["lost", "damaged"])
def test_without_its_checkpoint_it_is_trained_from_the_start(study, data, base, task, whole, harm):
    first = run_trial(study, data, until(task, 0.5), base)
    file = Path(checkpoint.uri(task.folder))
    if harm == "lost":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-9])
    record = run_trial(study, data, until(task, 1.0), base)
    assert record.values["validation_loss"] == alike(whole.values["validation_loss"])
    assert record.rungs[:2] == first.rungs


def test_one_that_fails_later_keeps_the_losses_that_others_were_compared_with(data, base, task):
    study = make_study(base.model.base, learning_rate=1e-2)
    first = run_trial(study, data, until(task, 0.25), base)
    model = base.load().model
    embedding = model.get_input_embeddings().weight
    kept = embedding.data.clone()
    embedding.data.fill_(float("nan"))
    try:
        record = run_trial(study, data, until(task, 1.0), base)
    finally:
        embedding.data.copy_(kept)
    assert (record.status, record.failure) == ("failed", "nan")
    assert record.rungs == first.rungs
    assert not record.values
    assert not (Path(task.folder) / "checkpoint").exists()


def test_rungs_closer_than_a_step_are_one_measurement(study, data, base, task):
    crowded = task.model_copy(update={"rungs": (0.01, 0.02, 0.08), "until": 0.01})
    record = run_trial(study, data, crowded, base)
    assert [(rung.share, rung.step) for rung in record.rungs] == [(0.01, 1), (0.02, 1), (0.08, 1)]
    assert len({rung.loss for rung in record.rungs}) == 1


def test_a_proxy_trains_on_the_part_and_leaves_no_adapter(study, data, base, tmp_path):
    part = study.search.model_copy(update={"proxy": Proxy(share=0.5)})
    study = study.model_copy(update={"search": part})
    task = TrialTask(trial="trial-002-proxy", number=2, role="proxy", seed=3, folder=str(tmp_path / "p"))
    record = run_trial(study, data, task, base)
    assert record.status == "completed"
    assert (record.proxy["records"], record.proxy["of"], record.steps) == (11, 22, 6)
    assert record.adapter_uri is record.adapter_digest is None
    assert [p.name for p in Path(task.folder).iterdir()] == ["trial.json"]
    all_data = task.model_copy(update={"role": "search", "folder": str(tmp_path / "w")})
    other = run_trial(study, data, all_data, base)
    assert other.settings_digest != record.settings_digest
    assert other.steps == 12
    file = Path(task.folder) / "trial.json"
    assert parse(TrialRecord, file.read_bytes(), str(file)) == record


def test_a_record_from_before_is_read_and_means_the_same(whole):
    content = json.loads(whole.to_json())
    assert not {"rungs", "proxy"} & content.keys()
    read = TrialRecord.model_validate(content)
    assert (read.rungs, read.proxy, read.share) == ([], {}, 1.0)
