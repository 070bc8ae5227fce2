"""The gate after interruptions: a decision against a champion that was replaced is made again."""

import json

import pytest

from retune import models, store
from retune.data import mixing
from retune.records import TrialRecord
from retune.registry import promotion, versions
from retune.registry.aliases import aliases
from retune.steps import promote as step
from retune.steps.select import select
from retune.workspace import folders
from retune.workspace.ledger import Ledger
from retune.workspace.search_folder import SearchFolder, SearchRecord

pytest_plugins = ["tests.mlflow_server"]


@pytest.fixture
def registered(small, database, tmp_path):
    """A study whose winner, of loss 1.0, is version 1 of its model; and a function that registers others."""
    study = small(f"tracking.uri={database}", "benchmark.tasks=[]", "promote.model=m")
    data = folders.data_folder(study)
    digest = mixing.mix(study.data, study.seed, models.locate(study.model), data).digest
    folder = folders.search_folder(study, digest)

    def adapter(name):
        place = tmp_path / f"adapter-{name}"
        place.mkdir()
        (place / "adapter_config.json").write_text(json.dumps({"of": name}))
        (place / "adapter_model.safetensors").write_bytes(name.encode())
        return place

    def record(number, loss, **more):
        return TrialRecord(
            trial=f"trial-{number:03d}", number=number, role=("base", "default", "search")[min(number, 2)], assignment={},
            seed=0, status="completed", values={"validation_loss": loss}, data_digest=digest, base=study.model.base, **more,
        )  # fmt: skip

    def other(name, loss):
        return versions.register(
            database,
            "m",
            record(9, loss, adapter_digest=name),
            adapter(name),
            study="other",
            objective="validation_loss",
        )

    ledger = Ledger(folder)
    for number, loss in enumerate((3.0, 2.0, 1.0)):
        ledger.issue(number, ("base", "default", "search")[number], {}, 0)
        ledger.finish(record(number, loss, adapter_digest="own" if number == 2 else None), write=True)
    made = SearchRecord(
        study=study.name, algorithm="random", stopped_by="trials", trials=2, completed=2, failed=0, best="trial-002",
        digest="d", data_digest=digest, hours=0.1,
    )  # fmt: skip
    store.write(store.join(folder, "search.json"), made.to_json())
    found = SearchFolder(folder)
    select(study, found)
    with found.stamps.step("register", {}) as outputs:
        outputs["version"] = versions.register(
            database,
            "m",
            record(2, 1.0, adapter_digest="own"),
            adapter("own"),
            study=study.name,
            objective="validation_loss",
        )
    return study, folder, data, other


class Killed(BaseException):
    pass


def killed_at(monkeypatch, place, study, folder, data):
    def stop(*_):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(promotion, place, stop)
        with pytest.raises(Killed):
            step.promote(study, SearchFolder(folder), data)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["promote", "note_gate"])
def test_killed_before_and_after_the_alias_moved(registered, monkeypatch, place):
    study, folder, data, _ = registered
    killed_at(monkeypatch, place, study, folder, data)
    assert step.promote(study, SearchFolder(folder), data).decision == "promote"
    assert aliases(study.tracking.uri, "m").champion == "1"
    tags = versions.describe(study.tracking.uri, "m")["champion"]
    assert (tags["gate"], tags["gate_champion"]) == ("promote", "")
    assert step.promote(study, SearchFolder(folder), data).decision == "promote"  # by its stamp


def test_a_decision_against_a_champion_that_is_gone_is_made_again(registered, monkeypatch):
    study, folder, data, other = registered
    killed_at(monkeypatch, "promote", study, folder, data)  # decided: promote, there is no champion
    promotion.promote(study.tracking.uri, "m", other("better", 0.5), None)
    record = step.promote(study, SearchFolder(folder), data)
    assert (record.decision, record.champion) == ("keep", "2")
    assert aliases(study.tracking.uri, "m").champion == "2"
    assert SearchFolder(folder).gate.decision == "keep"


@pytest.mark.slow
def test_a_decision_to_keep_is_made_again_too(registered, monkeypatch):
    study, folder, data, other = registered
    promotion.promote(study.tracking.uri, "m", other("better", 0.5), None)
    killed_at(monkeypatch, "note_gate", study, folder, data)  # decided: keep
    promotion.promote(study.tracking.uri, "m", other("worse", 1.5), "2")
    record = step.promote(study, SearchFolder(folder), data)
    assert (record.decision, record.champion) == ("promote", "3")
    assert aliases(study.tracking.uri, "m").champion == "1"


def test_a_decision_by_rules_that_have_changed_is_made_again(registered, monkeypatch):
    study, folder, data, _ = registered
    killed_at(monkeypatch, "promote", study, folder, data)
    gate = study.promote.gate.model_copy(update={"min_gain_over_base": 100.0})
    strict = study.model_copy(update={"promote": study.promote.model_copy(update={"gate": gate})})
    assert step.promote(strict, SearchFolder(folder), data).decision == "keep"
    assert aliases(study.tracking.uri, "m").champion is None


def _asking(study, **changes):
    return study.model_copy(update={"promote": study.promote.model_copy(update=changes)})


def test_the_champion_waits_for_a_person_where_the_study_says_so(registered):
    study, folder, data, _ = registered
    record = step.promote(_asking(study, automatic="never"), SearchFolder(folder), data)
    assert (record.decision, record.waits) == ("promote", True)
    assert aliases(study.tracking.uri, "m").champion is None
    assert step.promote(_asking(study, automatic="never"), SearchFolder(folder), data).waits  # by its stamp
    assert promotion.promote_challenger(study.tracking.uri, "m").champion == "1"


def test_a_gain_whose_noise_is_not_known_is_not_beyond_it(registered):
    study, folder, data, _ = registered
    assert step.promote(_asking(study, automatic="beyond-noise"), SearchFolder(folder), data).waits
    record = step.promote(study, SearchFolder(folder), data)  # asked anew, by another rule
    assert (record.decision, record.waits) == ("promote", False)
    assert aliases(study.tracking.uri, "m").champion == "1"


def test_the_stamps_of_older_studies_stay_valid(registered):
    study, folder, _, _ = registered
    assert "automatic" not in step.inputs(study, SearchFolder(folder))["promote"]
    assert (
        step.inputs(_asking(study, automatic="never"), SearchFolder(folder))["promote"]["automatic"]
        == "never"
    )
