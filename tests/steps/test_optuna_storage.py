"""A study in an Optuna storage, opened by Optuna itself."""

from pathlib import Path

import optuna
import pytest
from click.testing import CliRunner
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from retune import store
from retune.cli import cli
from retune.errors import InputError, RetuneError
from retune.space import Parameter
from retune.steps.optuna_storage import distribution, export
from tests.report.synthetic import study, trial, trials


@pytest.fixture
def folder(tmp_path):
    def write(records, name="search-0123456789abcdef", **changes):
        search = tmp_path / "alpaca-dolly" / name
        store.write(search / "study.json", study(**changes).model_dump_json().encode())
        for record in records:
            store.write(search / "trials" / record.trial / "assignment.json", _issued(record, search))
            store.write(search / "trials" / record.trial / "trial.json", record.to_json())
        return str(tmp_path / "alpaca-dolly")

    return write


def _issued(record, search):
    from retune.trials.task import TrialTask

    where = str(search / "trials" / record.trial)
    fields = {name: getattr(record, name) for name in ("trial", "number", "role", "assignment", "seed")}
    return TrialTask(**fields, folder=where).model_dump_json().encode()


LIMITS = {"search": {"constraints": [{"metric": "seconds", "max": 60}, {"metric": "tokens", "min": 5}]}}


@pytest.mark.slow
def test_optuna_reads_states_values_constraints_and_distributions(folder, tmp_path):
    records = trials()
    for record in (r for r in records if r.role == "repeat" and r.assignment == records[1].assignment):
        record.trial = f"trial-001-seed-{record.seed}"
    where, url = folder(records, **LIMITS), f"sqlite:///{tmp_path}/x.db"
    shown = CliRunner().invoke(cli, ["export", where, "--optuna", url], catch_exceptions=False)
    assert shown.output == f"optuna study alpaca-dolly in {url}: 39 trials added, 39 in all\n"
    found = optuna.load_study(study_name="alpaca-dolly", storage=url)
    ours = {r.trial: r for r in records if r.role in ("default", "search")}
    theirs = {t.user_attrs["trial"]: t for t in found.trials}
    assert theirs.keys() == ours.keys()
    for name, record in ours.items():
        one, value = theirs[name], record.objective("validation_loss")
        assert one.state == (TrialState.FAIL if value is None else TrialState.COMPLETE)
        assert one.value == value
        assert one.params == record.assignment
        assert one.intermediate_values == {p.step: p.value for p in record.curves["validation_loss"]}
        assert list(one.constraints.values()) == [record.seconds - 60, 5 - record.tokens]
    assert theirs["trial-002"].distributions == {
        "rank": CategoricalDistribution((4, 8, 16, 32, 64, 128, 256, 512)),
        "dropout": CategoricalDistribution((0.0, 1e-4, 1e-3, 1e-2, 1e-1)),
        "alpha": IntDistribution(1, 64),
        "learning_rate": FloatDistribution(1e-6, 1e-3, log=True),
    }
    kept = [r for r in ours.values() if r.seconds <= 60 and r.objective("validation_loss") is not None]
    best = min(kept, key=lambda r: r.objective("validation_loss"))
    assert found.best_trial.user_attrs["trial"] == best.trial
    assert found.user_attrs["untuned_base"] == 2.91
    assert found.user_attrs["repeats"]["trial-001"] == pytest.approx([2.306, 2.318])
    assert set(optuna.importance.get_param_importances(found)) == {
        "rank",
        "dropout",
        "alpha",
        "learning_rate",
    }


def test_a_second_export_adds_what_is_new_and_another_search_is_refused(folder, tmp_path):
    records, url = trials(), str(tmp_path / "x.db")
    assert export(folder(records[:6]), url) == ("alpaca-dolly", 5, 5)
    assert export(folder(records[:9]), url) == ("alpaca-dolly", 3, 8)
    assert export(folder(records[:9]), url) == ("alpaca-dolly", 0, 8)
    later = [records[1].model_copy(update={"finished": "2030-01-01T00:00:00.000Z"})]
    with pytest.raises(
        InputError, match="of search-0123456789abcdef, but this is search-fedc: name another storage"
    ):
        export(folder(later, "search-fedc"), url)
    with pytest.raises(RetuneError, match="cannot be opened"):
        export(folder(records[:3]), "nosuch://x")


def test_a_bare_word_makes_no_file(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = folder(trials()[:3])
    with pytest.raises(
        InputError, match=r"the URL of a database, or a file .* but got 'foo'; write sqlite:///foo\.db"
    ):
        export(made, "foo")
    assert not Path("foo").exists()
    export(made, "foo.sqlite3")
    assert Path("foo.sqlite3").is_file()


def test_several_objectives_and_early_stops(folder, tmp_path):
    both = [{"metric": "validation_loss"}, {"metric": "adapter_mib"}]
    setting = {"rank": 8, "dropout": 0.1, "alpha": 32, "learning_rate": 1e-5}
    one, two = (trial(n, "search", setting, 2.0) for n in (2, 3))
    one.values["adapter_mib"] = 3.5
    url = f"sqlite:///{tmp_path}/x.db"
    export(folder([one, two], search={"objective": both}), url)
    found = optuna.load_study(study_name="alpaca-dolly", storage=url)
    assert [t.state for t in found.trials] == [TrialState.COMPLETE, TrialState.FAIL]
    assert found.trials[0].values == [2.0, 3.5]
    assert found.metric_names == ["validation_loss", "adapter_mib"]
    stopped = trial(4, "search", setting, 2.0).model_copy(update={"status": "early_stopped"})
    stopped.finished, stopped.started = "2026-01-01T00:01:00Z", "2026-01-01T00:00:00Z"
    export(folder([stopped], "search-0"), f"sqlite:///{tmp_path}/y.db")
    (found,) = optuna.load_study(study_name="alpaca-dolly", storage=f"sqlite:///{tmp_path}/y.db").trials
    assert (found.state, found.duration.total_seconds()) == (TrialState.PRUNED, 60)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"kind": "integer", "low": 2, "high": 512, "scale": "log"}, IntDistribution(2, 512, log=True)),
        ({"kind": "integer", "low": 0, "high": 8, "step": 2}, IntDistribution(0, 8, step=2)),
        ({"kind": "integer", "low": 0, "high": 8, "step": 2, "default": 3}, IntDistribution(0, 8)),
        ({"kind": "real", "low": 0, "high": 0.5, "step": 0.1}, FloatDistribution(0, 0.5)),
        ({"kind": "categorical", "values": ("a", "b")}, CategoricalDistribution(("a", "b"))),
    ],
)
def test_every_kind_of_parameter_has_its_distribution(given, expected):
    assert distribution(Parameter(name="x", **given)) == expected


def test_a_parameter_whose_condition_does_not_hold_is_none_of_the_trial(folder, tmp_path):
    parameters = [
        {"name": "schedule", "kind": "categorical", "values": ["linear", "constant"], "default": "linear"},
        {
            "name": "rank",
            "kind": "discrete",
            "values": [4, 8],
            "default": 8,
            "when": {"schedule": ["linear"]},
        },
    ]
    two = [
        trial(2, "search", {"schedule": "linear", "rank": 4}, 2.0),
        trial(3, "search", {"schedule": "constant", "rank": 8}, 2.1),
    ]
    export(folder(two, search={"parameters": parameters}), f"sqlite:///{tmp_path}/x.db")
    found = optuna.load_study(study_name="alpaca-dolly", storage=f"sqlite:///{tmp_path}/x.db")
    assert [t.params for t in found.trials] == [{"schedule": "linear", "rank": 4}, {"schedule": "constant"}]
