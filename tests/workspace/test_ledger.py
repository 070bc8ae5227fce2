"""The trials on disk: what was issued stays, what was pruned says so."""

import json
import shutil

import pytest

from retune import store
from retune.records import TrialRecord
from retune.selection.ranking import candidates
from retune.study import Artifacts, Benchmark, Search, Study
from retune.workspace import ledger as module
from retune.workspace.ledger import Ledger, trial_name

PARTS = {"search": Search(), "artifacts": Artifacts(), "benchmark": Benchmark()}


def record(number, loss, tmp_path, role="search", status="completed", **values):
    name = trial_name(number)
    adapter = tmp_path / "trials" / name / "adapter"
    adapter.mkdir(parents=True, exist_ok=True)
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    return TrialRecord(
        trial=name, number=number, role=role, assignment={"rank": 4}, seed=0, status=status,
        values={} if loss is None else {"validation_loss": loss, **values}, adapter_uri=str(adapter),
    )  # fmt: skip


def test_an_issued_trial_stays_as_it_was_in_another_process(tmp_path):
    first = Ledger(str(tmp_path)).issue(2, "search", {"rank": 4}, seed=7)
    again = Ledger(str(tmp_path)).issue(2, "search", {"rank": 512}, seed=8)
    assert again == first
    assert again.assignment == {"rank": 4}


def test_a_finished_trial_is_read_back(tmp_path):
    ledger = Ledger(str(tmp_path))
    ledger.issue(2, "search", {"rank": 4}, seed=0)
    ledger.finish(record(2, 1.5, tmp_path), write=True)
    assert Ledger(str(tmp_path)).records["trial-002"].values == {"validation_loss": 1.5}


def test_a_copied_search_writes_and_deletes_nothing_in_the_one_it_was_copied_from(tmp_path):
    old, new = tmp_path / "artifacts/lab/search-1", tmp_path / "backup/lab/search-of-may"
    ledger = Ledger(str(old))
    for number in (1, 2, 3):
        ledger.issue(number, "search", {"rank": 4}, seed=0)
    for number in (1, 2):
        ledger.finish(record(number, float(number), old), write=True)
    shutil.copytree(old, new)
    copy = Ledger(str(new))
    assert copy.tasks["trial-003"].folder == str(new / "trials/trial-003")
    assert copy.records["trial-002"].adapter_uri == str(new / "trials/trial-002/adapter")
    copy.prune(keep={"trial-001"})
    assert not (new / "trials/trial-002/adapter").exists()
    assert (old / "trials/trial-002/adapter/adapter_model.safetensors").exists()
    assert Ledger(str(old)).tasks == ledger.tasks
    assert Ledger(str(old)).records == ledger.records


def test_a_copied_search_finds_the_trials_of_katib(tmp_path):
    old, new = tmp_path / "search-1", tmp_path / "search-2"
    ledger = Ledger(str(old))
    task = ledger.claim({"rank": 4}, 0, str(old / "katib/lab-abc"), default=True)
    made = record(1, 1.0, old).model_copy(update={"adapter_uri": f"{task.folder}/adapter"})
    ledger.finish(made, write=True)
    shutil.copytree(old, new)
    assert Ledger(str(new)).records["trial-001"].adapter_uri == str(new / "katib/lab-abc/adapter")


def test_ranking_leaves_out_failures_base_and_what_breaks_a_constraint(tmp_path):
    ledger = Ledger(str(tmp_path))
    ledger.finish(record(0, 0.1, tmp_path, role="base"))
    ledger.finish(record(1, 2.0, tmp_path, role="default", adapter_mib=1))
    ledger.finish(record(2, 1.0, tmp_path, adapter_mib=9))
    ledger.finish(record(3, None, tmp_path, status="failed"))
    ledger.finish(record(4, 2.0, tmp_path, adapter_mib=1))
    search = Search()
    assert [r.number for r in ledger.ranking(search)] == [2, 1, 4]
    limited = Search.model_validate({"constraints": [{"metric": "adapter_mib", "max": 5}]})
    assert [r.number for r in ledger.ranking(limited)] == [1, 4]


def test_pruning_removes_the_files_and_the_record_no_longer_points_to_them(tmp_path):
    ledger = Ledger(str(tmp_path))
    for number in (1, 2):
        ledger.issue(number, "search", {"rank": 4}, seed=0)
        ledger.finish(record(number, float(number), tmp_path), write=True)
    ledger.prune(keep={"trial-001"})
    again = Ledger(str(tmp_path))
    assert again.records["trial-001"].adapter_uri is not None
    assert again.records["trial-002"].adapter_uri is None
    assert again.records["trial-002"].values == {"validation_loss": 2.0}
    assert store.exists(str(tmp_path / "trials/trial-001/adapter"))
    assert not (tmp_path / "trials/trial-002/adapter").exists()


def test_a_folder_without_an_issued_trial_is_no_trial(tmp_path):
    (tmp_path / "trials" / "trial-005").mkdir(parents=True)
    (tmp_path / "trials" / "trial-005" / "trial.json").write_text(json.dumps({"half": "a record"}))
    assert Ledger(str(tmp_path)).records == {}


@pytest.mark.parametrize(
    ("number", "repeat", "name"), [(7, 0, "trial-007"), (1234, 0, "trial-1234"), (7, 2, "trial-007-seed-2")]
)
def test_names(number, repeat, name):
    assert trial_name(number, repeat) == name


def test_trials_are_in_the_order_of_their_numbers(tmp_path):
    ledger = Ledger(str(tmp_path))
    for number in (1000, 999, 7):
        ledger.issue(number, "search", {"rank": 4}, seed=0)
        ledger.finish(record(number, 1.0, tmp_path), write=True)
    ledger.issue(999, "repeat", {"rank": 4}, seed=1, repeat=1)
    again = Ledger(str(tmp_path))
    assert list(again.tasks) == ["trial-007", "trial-999", "trial-999-seed-1", "trial-1000"]
    ended = ledger.outcome(Study.model_construct(**PARTS), "trials")
    assert [r.trial for r in ended.records] == ["trial-007", "trial-999", "trial-1000"]


def test_what_is_ranked_after_each_trial_does_not_grow_with_their_number(tmp_path, monkeypatch):
    ranked = []
    monkeypatch.setattr(
        module, "candidates", lambda trials, *rest: ranked.append(len(trials)) or candidates(trials, *rest)
    )
    ledger, study = Ledger(str(tmp_path)), Study.model_construct(**PARTS)
    losses = [((number * 37) % 101) / 10 for number in range(1, 101)]
    for number, loss in enumerate(losses, 1):
        ledger.finish(record(number, loss, tmp_path), write=True)
        ledger.prune(ledger.kept(study))
    most = study.artifacts.keep + 5 + 2  # the spare ones, the default and the new one
    assert max(ranked) <= most
    left = {r.number for r in ledger.records.values() if r.adapter_uri}
    best = sorted(range(1, 101), key=lambda number: losses[number - 1])[: study.artifacts.keep + 5]
    assert left == {*best, 1}
