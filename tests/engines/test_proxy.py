"""`search.proxy` on real trainings: the search on a part of the data, the best settings on all of it."""

import json
from pathlib import Path

import pytest

from retune.selection.choice import select
from retune.study import Select
from tests.engines import running
from tests.engines.running import Run

pytestmark = pytest.mark.slow
PROXY = ["search.proxy={share: 0.25, full: 2}", "search.trials=4", "search.repeats=1", "search.finalists=1"]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search on a quarter of the data whose trials may be stopped too."""
    return running.whole_search(PROXY, tmp_path_factory.mktemp("proxy"))


def test_trials_train_on_a_part_and_the_best_on_all(searched):
    records = {r.trial: r for r in searched.outcome.records}
    parts = {name: r for name, r in records.items() if r.role == "proxy"}
    assert list(parts) == [f"trial-{k:03d}-proxy" for k in range(1, 5)]
    assert len({json.dumps(r.proxy) for r in parts.values()}) == 1
    assert {(r.proxy["records"], r.proxy["of"], r.steps) for r in parts.values()} == {(10, 40, 3)}
    ranked = sorted((r for r in parts.values() if r.number > 1), key=lambda r: r.values["validation_loss"])
    whole = [r for r in records.values() if r.role in ("default", "search")]
    assert {r.number for r in whole} == {1, *(r.number for r in ranked[:2])}
    assert all(r.steps == 10 and not r.proxy for r in whole)
    assert all(r.assignment == parts[f"{r.trial}-proxy"].assignment for r in whole)
    assert {r.role for r in records.values() if r.trial.endswith("-seed-1")} == {"repeat"}
    assert not {r.settings_digest for r in whole} & {r.settings_digest for r in parts.values()}


def test_no_adapter_of_a_part_is_ever_there_to_choose(searched):
    folder = Path(searched.engine.folder)
    assert not list(folder.glob("trials/*-proxy/adapter"))
    assert all(r.adapter_uri is None for r in searched.outcome.records if r.role == "proxy")
    study = searched.engine.study
    found = select(
        searched.outcome.records, [], study.search.objective, Select(), [], space=study.search.space
    )
    assert found.chosen in found.ranking
    assert not [name for name in (*found.ranking, *(row.trial for row in found.rows)) if "proxy" in name]
    assert found.proxy.n == len(found.proxy_pairs) == 3
    assert any("Spearman's correlation of the validation_loss is" in text for text in found.findings)


def test_run_again_starts_nothing(searched, small):
    assert Run(small(*PROXY), searched.engine.folder).go().issued == []


def test_a_part_and_stopping_go_together(small, tmp_path):
    stopping = "search.stopping={kind: asha, reduction: 2, min_share: 0.5}"
    study = small("search.proxy={share: 0.5, full: 1}", stopping, "search.trials=5", "search.parallel=1")
    run = Run(study, tmp_path / "search").go()
    parts = [r for r in run.outcome.records if r.role == "proxy"]
    assert {r.status for r in parts} == {"completed", "early_stopped"}
    assert all(r.status == "completed" for r in run.outcome.records if r.role in ("default", "search"))
    assert run.engine.ledger.ranking(study.search)
