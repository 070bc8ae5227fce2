"""The keys `search.stopping` and `search.proxy`: accepted and refused values."""

import json

import pytest

from retune import study
from retune.errors import InputError
from retune.study import Stopping
from tests.conftest import DEMO

KATIB = ["engine.kind=katib", "cluster.images.train=x"]


def load(*overrides):
    return study.load(DEMO, [*overrides])


def test_the_kind_alone_is_enough_and_gives_the_usual_rungs():
    found = load("search.stopping=asha").search.stopping
    assert found == Stopping(kind="asha")
    assert found.rungs == pytest.approx([1 / 9, 1 / 3])
    assert Stopping(kind="hyperband", reduction=2, min_share=0.1).rungs == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert Stopping(kind="median").rungs == pytest.approx([0.25, 0.5, 0.75])
    assert Stopping(kind="median", min_share=0.1, interval=0.3).rungs == pytest.approx([0.1, 0.4, 0.7])


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["search.stopping=halving"], r"search\.stopping.*halving"),
        (["search.stopping={reduction: 3}"], r"search\.stopping\.kind"),
        (["search.stopping={kind: asha, min_share: 1.0}"], "min_share.*1"),
        (["search.stopping={kind: asha, startup_trials: 3}"], r"options \['reduction', 'min_share'\].*startup_trials"),
        (["search.stopping={kind: median, reduction: 3}"], r"options \['min_share', .*\].*reduction"),
        (["search.stopping={kind: median, min_share: 0.001}"], "at most 100 rungs"),
        (["search.stopping=asha", "search.objective={metric: train_loss}"], "validation_loss.*minimize train_loss"),
        (["search.stopping=asha", "search.objective={metric: validation_loss, goal: maximize}"], "maximize"),
        (
            ["search.stopping=asha", "search.objective=[{metric: validation_loss}, {metric: seconds}]"],
            "validation_loss` alone.*seconds",
        ),
        (["search.proxy={share: 1.0}"], r"proxy\.share"),
        (["search.proxy={}"], r"proxy\.share"),
        ([*KATIB, "search.proxy={share: 0.1}"], "`search.proxy` needs `engine.kind: local`, but got 'katib'"),
        ([*KATIB, "search.stopping=asha"], "`search.stopping: asha` lets stopped trials go on, which Katib cannot"),
        ([*KATIB, "search.stopping=hyperband"], "`search.stopping: hyperband` lets"),
        ([*KATIB, "search.stopping={kind: median, interval: 0.2}"], "`search.stopping.interval` has no meaning"),
        ([*KATIB, "search.stopping=median", "cluster.katib.early_stopping=medianstop"], "give one of them"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(overrides, problem):
    with pytest.raises(InputError, match=problem):
        load(*overrides)


def test_a_study_without_the_keys_is_the_study_it_was():
    plain = load()
    assert plain.search.stopping is None
    assert plain.search.proxy is None
    digests = {
        load(*more).search_digest("data", "base")
        for more in (
            [],
            ["search.stopping=asha"],
            ["search.stopping={kind: asha, min_share: 0.2}"],
            ["search.proxy={share: 0.1}"],
            ["search.proxy={share: 0.2}"],
        )
    }
    assert len(digests) == 5
    assert load("search.proxy={share: 0.1, full: 9}").search_digest("d", "b") == load(
        "search.proxy={share: 0.1}"
    ).search_digest("d", "b"), "how many are trained on all data in the end decides no setting"
    assert plain.settings_digest("d", "b") == load("search.stopping=asha").settings_digest("d", "b")


def test_records_and_tasks_without_the_keys_have_no_new_field():
    from retune.records import TrialRecord
    from retune.trials.task import TrialTask
    from retune.workspace.ledger import _content

    record = TrialRecord(
        trial="trial-001", number=1, role="search", assignment={}, seed=0, status="completed"
    )
    assert not {"rungs", "proxy"} & json.loads(record.to_json()).keys()
    task = TrialTask(trial="trial-001", number=1, role="search", folder="x", until=0.5, rungs=(0.5,))
    assert set(json.loads(_content(task))) == {
        "trial", "number", "role", "assignment", "seed", "folder", "checksum",
    }  # fmt: skip
