"""Recognising a finished study takes few requests, however many trials it had."""

import pytest

from retune import models, store
from retune.data import mixing
from retune.records import BenchRecord, GateRecord, TrialRecord
from retune.steps import benchmark, outcome, promote, register, report, search, select
from retune.steps.plan import checked, plan
from retune.workspace import folders
from retune.workspace.ledger import Ledger
from retune.workspace.search_folder import GATE, PAGE, SEARCH, SearchFolder, SearchRecord
from tests.evaluation.conftest import write_mmlu

pytest_plugins = ["tests.s3_server"]
TRIALS = 100
STEPS = {"search": search, "benchmark": benchmark, "register": register, "promote": promote, "report": report}


@pytest.fixture
def done(small, s3):
    """A finished study of 100 trials in a bucket, made without training."""
    study = small(f"artifacts.uri={s3}/artifacts", f"search.trials={TRIALS}")
    return study, finish(study, TRIALS)


@pytest.fixture
def benchmarked(small, tmp_path):
    """A finished study of 6 trials on the disk, with a score."""
    questions = write_mmlu(tmp_path / "mmlu")
    study = small("search.trials=6", "benchmark.tasks=[mmlu]", f"benchmark.data={{mmlu: {questions}}}")
    scores = [
        BenchRecord(model=f"trial-{n:03d}", task="mmlu", score=n / 9, stderr=0.1, n=9, shots=5, protocol="instruct-eval")
        for n in (0, 1, 4, 5, 6)
    ]  # fmt: skip
    return study, finish(study, 6, scores)


def finish(study, trials, scores=()):
    mix = mixing.mix(study.data, study.seed, models.locate(study.model), folders.data_folder(study))
    folder = SearchFolder(folders.search_folder(study, mix.digest))
    ledger = Ledger(folder.uri)
    for number in range(trials + 1):
        role = ("base", "default", "search")[min(number, 2)]
        setting = (
            study.search.space.decode([number % p.levels for p in study.search.space.parameters])
            if number
            else {}
        )
        ledger.issue(number, role, setting, 0)
        trial = TrialRecord(
            trial=f"trial-{number:03d}", number=number, role=role, assignment=setting, seed=0, status="completed",
            values={"validation_loss": 3 - number / 100}, adapter_digest=f"adapter-{number}" if number else None,
            adapter_uri=f"{folder.uri}/trials/trial-{number:03d}/adapter" if scores and number else None,
        )  # fmt: skip
        ledger.finish(trial, write=True)
    store.write(folder.path("study.json"), study.model_dump_json().encode())
    made = SearchRecord(
        study=study.name, algorithm="random", stopped_by="trials", trials=trials, completed=trials, failed=0,
        best=f"trial-{trials:03d}", digest="d", data_digest=mix.digest, hours=0.1,
    )  # fmt: skip
    folder.write(SEARCH, made)
    for score in scores:
        folder.write(f"bench/{score.model}/{score.task}.json", score)
    select.select(study, folder)
    gate = GateRecord(model=study.promote.model, challenger="1", champion=None, decision="promote", rules=[])
    folder.write(GATE, gate)
    store.write(folder.path(PAGE), b"<html></html>")
    written = {"search": trials + 1, "benchmark": [f"{score.model}/{score.task}" for score in scores]}
    for name, step in STEPS.items():
        with folder.stamps.step(name, step.inputs(study, folder)) as outputs:
            outputs |= {"version": "1", "records": written.get(name)}
    return folder


@pytest.mark.slow
def test_a_run_with_nothing_to_do_asks_a_bucket_few_things(done, monkeypatch, tmp_path):
    from retune.store.s3 import _client

    study, _ = done
    monkeypatch.setenv("RETUNE_CACHE", str(tmp_path / "another"))
    sent = []

    def count(request, **_):
        sent.append(request.method)

    _client().meta.events.register("before-send.s3.*", count)
    first = plan(study)
    assert list(first.values()) == [True] * 7
    assert 2 * TRIALS < len(sent) < 2 * TRIALS + 40, (
        "what is not in the cache yet comes by one request a file"
    )
    sent.clear()
    assert checked(study) == first
    records = outcome.read(study).records()
    _client().meta.events.unregister("before-send.s3.*", count)
    assert [record.number for record in records] == list(range(TRIALS + 1))
    assert len(sent) < 20, sent


@pytest.mark.slow
def test_another_machine_asks_few_things_too_once_the_records_are_gathered(done, monkeypatch, tmp_path):
    from retune.store.s3 import _client

    study, folder = done
    folder.gather()
    monkeypatch.setenv("RETUNE_CACHE", str(tmp_path / "another"))
    sent = []

    def count(request, **_):
        sent.append(request.method)

    _client().meta.events.register("before-send.s3.*", count)
    assert list(checked(study).values()) == [True] * 7
    records = outcome.read(study).records()
    _client().meta.events.unregister("before-send.s3.*", count)
    assert [record.number for record in records] == list(range(TRIALS + 1))
    assert len(sent) < 20, sent
    changed = folder.trials["trial-007"].model_copy(update={"values": {"validation_loss": 0.5}})
    folder.ledger.finish(changed, write=True)
    assert Ledger(folder.uri).records["trial-007"].values == {"validation_loss": 0.5}


@pytest.mark.slow
def test_what_changes_in_a_bucket_is_seen(done):
    study, folder = done
    assert all(plan(study).values())
    changed = folder.trials["trial-007"].model_copy(update={"values": {"validation_loss": 0.5}})
    folder.ledger.finish(changed, write=True)
    assert Ledger(folder.uri).records["trial-007"].values == {"validation_loss": 0.5}
    store.remove(folder.path("steps/report.json"))
    assert [step for step, ready in plan(study).items() if not ready] == ["report"]
    store.remove(folder.path(GATE))
    assert not plan(study)["report"]


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("trials/trial-005/trial.json", "search"),
        ("trials/trial-005/assignment.json", "search"),
        ("search.json", "search"),
        ("bench/trial-000/mmlu.json", "benchmark"),
        ("selection.json", "select"),
        ("gate.json", "promote"),
        ("report.html", "report"),
    ],
)
def test_what_a_step_wrote_and_somebody_deleted_is_made_again(benchmarked, name, step):
    """The message about a damaged record says so."""
    study, folder = benchmarked
    assert all(plan(study).values())
    store.remove(folder.path(name))
    assert next(known for known, current in plan(study).items() if not current) == step
