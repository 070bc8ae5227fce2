"""A benchmark's score as what a search improves: scored in each trial, by real answers of a tiny base."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from retune.engines.katib import manifest
from retune.errors import InputError
from retune.evaluation import bench
from retune.events import Measured
from retune.records import parse
from retune.search import Objective, Observation
from retune.search.problem import pose
from retune.search.random import RandomSettings
from retune.space import tribes2024
from retune.study import Study
from retune.training.resident import ResidentBase
from retune.trials import trial_record
from retune.trials.run_trial import run_trial
from retune.trials.task import TrialTask
from retune.workspace import folders
from tests.evaluation.tasks.test_hellaswag import ROWS
from tests.training.conftest import make_base, make_data, make_study

GOAL = {"metric": "hellaswag", "goal": "maximize"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scoring")
    make_base(folder / "base")
    make_data(folder / "data")
    rows = [{**row, "label": k % 4} for k, row in enumerate(ROWS * 6)]
    (folder / "hellaswag.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def study_of(place, search, **benchmark):
    content = make_study(place / "base", epochs=1).model_dump(mode="json")
    content["search"] |= search
    content["benchmark"] |= {"data": {"hellaswag": str(place / "hellaswag.jsonl")}} | benchmark
    return Study.model_validate(content)


@pytest.fixture(scope="module")
def study(place):
    return study_of(place, {"objective": GOAL, "benchmark": {"limit": 6}})


@pytest.fixture(scope="module")
def base(study):
    return ResidentBase(study.model)


def task_at(folder, number, role="search", **assignment):
    return TrialTask(
        trial=f"t{number}", number=number, role=role, assignment=assignment, seed=0, folder=str(folder)
    )


def test_a_trial_and_the_base_have_the_score_that_the_benchmark_gives(study, place, base, tmp_path):
    events = []
    trial = run_trial(study, str(place / "data"), task_at(tmp_path / "1", 1, rank=4), base, events.append)
    untuned = run_trial(study, str(place / "data"), task_at(tmp_path / "0", 0, "base"), base)
    assert trial.status == untuned.status == "completed"
    wanted = study.scored
    assert (wanted.tasks, wanted.limit) == (["hellaswag"], 6)
    candidates = [bench.Candidate("t", trial.adapter_uri), bench.Candidate("b")]
    tuned, bare = bench.run(study.model, candidates, wanted, study.seed, str(tmp_path / "again"))
    assert (trial.values["hellaswag"], untuned.values["hellaswag"]) == (tuned.score, bare.score)
    assert trial.values["mean_score"] == tuned.score
    assert {e.name: e.value for e in events if isinstance(e, Measured)}["hellaswag"] == tuned.score
    assert trial.values["validation_loss"] > 0
    again = run_trial(study, str(place / "data"), task_at(tmp_path / "2", 2, rank=4), base)
    assert again.adapter_digest == trial.adapter_digest, "scoring left something on the base"
    Path(tmp_path, "1", "trial.json").unlink()  # killed after the score
    kept = run_trial(study, str(place / "data"), task_at(tmp_path / "1", 1, rank=4), base)
    assert kept.values["hellaswag"] == tuned.score


@pytest.mark.slow
def test_a_diverged_adapter_fails_its_trial_and_not_the_search(study, place, base, tmp_path, monkeypatch):
    from retune.errors import TrialFailed
    from retune.evaluation.decoding.generate import Decoder

    def diverged(self, *args, **kwargs):
        raise TrialFailed("the model's output is not finite: it gives no likelihood to score", "nan")

    monkeypatch.setattr(Decoder, "log_likelihoods", diverged, raising=False)
    for name in [n for n in vars(Decoder) if "likelihood" in n]:
        monkeypatch.setattr(Decoder, name, diverged)
    record = run_trial(study, str(place / "data"), task_at(tmp_path / "3", 3, rank=4), base)
    assert (record.status, record.failure) == ("failed", "nan")
    assert "not finite" in record.reason
    assert record.values == {}


def test_the_search_sees_the_score_and_its_limits(study, place):
    limited = study_of(
        place,
        {
            "objective": [GOAL, {"metric": "validation_loss"}],
            "constraints": [{"metric": "adapter_mib", "max": 1}, {"metric": "seconds", "max": 60}],
            "algorithm": "nomad",
        },
    )
    objective = Objective.of(limited.search)
    space = tribes2024()
    values = {"hellaswag": 0.4, "validation_loss": 2.0, "adapter_mib": 2.0, "seconds": 30.0}
    history = [Observation(space.default(), "completed", values, number=1)]
    [point] = pose(space, objective, RandomSettings(), history, 0, None).points
    assert point.values == (-0.4, 2.0)
    assert point.excesses == (1.0, -0.5)


def test_the_mean_of_several_tasks(place):
    study = study_of(
        place,
        {
            "objective": {"metric": "mean_score", "goal": "maximize"},
            "benchmark": {"tasks": ["hellaswag", "mmlu"]},
        },
        data={"hellaswag": "h", "mmlu": "m"},
        limit=50,
    )
    assert (study.scored.tasks, study.scored.limit) == (["hellaswag", "mmlu"], 50)


def test_what_cannot_be_scored_is_refused(place):
    for search, benchmark, words in [
        ({"objective": {"metric": "mmlu", "goal": "maximize"}}, {}, "these have none: ['mmlu']"),
        ({"objective": {"metric": "hellaswag"}}, {}, "a higher score is better: write `goal: maximize` for ['hellaswag']"),
        ({"objective": {"metric": "mean_score", "goal": "maximize"}}, {}, "is the mean of `search.benchmark.tasks`"),
        (
            {"constraints": [{"metric": "humaneval", "min": 0.1}]},
            {"data": {"humaneval": "h"}},
            "set `benchmark.allow_code_execution: true`",
        ),
    ]:  # fmt: skip
        with pytest.raises(ValidationError) as caught:
            study_of(place, search, **benchmark)
        assert words in str(caught.value)


def test_a_score_decides_the_folder_of_a_search_and_no_other_study_changes_its_own(study, place):
    plain = study_of(place, {})
    assert plain.settings_digest("d", "b") == make_study(place / "base", epochs=1).settings_digest("d", "b")
    fewer = study_of(place, {"objective": GOAL, "benchmark": {"limit": 5}})
    assert len({s.settings_digest("d", "b") for s in (plain, study, fewer)}) == 3


def test_other_questions_in_the_same_file_begin_a_new_search_and_the_same_ones_elsewhere_do_not(
    study, place, base, tmp_path
):
    def digests(study):
        task = task_at(tmp_path, 2, rank=4)
        return folders.search_folder(study, "d"), trial_record.digest(study, str(place / "data"), task, base)

    moved = tmp_path / place.name / "hellaswag.jsonl"  # the folder's name is part of the files' digest
    moved.parent.mkdir()
    moved.write_bytes((place / "hellaswag.jsonl").read_bytes())
    elsewhere = study_of(
        place, {"objective": GOAL, "benchmark": {"limit": 6}}, data={"hellaswag": str(moved)}
    )
    before = digests(study)
    assert digests(elsewhere) == before
    moved.write_text("".join(moved.read_text().splitlines(keepends=True)[1:]))
    assert not set(digests(elsewhere)) & set(before)


def test_katib_collects_the_score(study, place):
    content = study.model_dump(mode="json")
    content["engine"]["kind"] = "katib"
    content["search"]["constraints"] = [{"metric": "adapter_mib", "max": 8}]
    content["cluster"]["images"] = {"train": "retune-train"}
    spot = manifest.Place("s3://b/search-1", "s3://b/data")
    content["artifacts"]["uri"], content["model"]["base"] = "s3://b", "s3://b/base"
    content["tracking"]["uri"] = "http://mlflow"
    spec = manifest.experiment(Study.model_validate(content), spot, 5)["spec"]["objective"]
    assert (spec["type"], spec["objectiveMetricName"]) == ("maximize", "hellaswag")
    assert spec["additionalMetricNames"] == ["adapter_mib"]


def test_an_unreadable_file_is_told_before_a_trial(place, base, tmp_path):
    broken = study_of(place, {"objective": GOAL}, data={"hellaswag": str(tmp_path / "nothing.jsonl")})
    with pytest.raises(InputError, match="there is no file or folder"):
        run_trial(broken, str(place / "data"), task_at(tmp_path / "4", 4, rank=4), base)


def test_records_of_a_trial_name_the_questions(study, place, base, tmp_path):
    from retune.records import BenchRecord

    record = run_trial(study, str(place / "data"), task_at(tmp_path / "5", 5, rank=4), base)
    [path] = Path(tmp_path, "5", "scores").rglob("hellaswag.json")
    scored = parse(BenchRecord, path.read_bytes(), str(path))
    assert (scored.n, scored.score) == (6, record.values["hellaswag"])
