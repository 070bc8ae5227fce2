"""Answers of base, default and winner to held-out prompts: generated once, with the study's prompt, and shown in the report."""

import re
from pathlib import Path

import pytest
import torch

from retune import models
from retune.data import mixing
from retune.errors import DiskFull
from retune.report import folder as reports
from retune.steps import answers
from retune.steps import report as step
from retune.steps.chat import open_pair
from retune.steps.tuned import from_run
from retune.study import Benchmark, Report
from retune.workspace import folders
from retune.workspace.search_folder import SearchFolder


def asking(study, count=3):
    return study.model_copy(update={"report": Report(answers=count, new_tokens=6), "benchmark": Benchmark()})


@pytest.mark.slow
@pytest.mark.parametrize("which", ["searched", "searched_chat"])
def test_they_are_made_once_by_the_prompt_of_the_study(which, request, monkeypatch):
    study, folder, _ = request.getfixturevalue(which)
    study = asking(study)
    record = answers.answers(study, folder)
    assert (record.trials, record.chosen) == (["trial-000", "trial-001", "trial-002"], "trial-002")
    held_out = mixing.load_split(folders.data_folder(study), "validation")[:3]
    assert [q.reference for q in record.questions] == [example.output for example in held_out]
    pair = open_pair(from_run(study.root))
    for question, example in zip(record.questions, held_out, strict=True):
        assert example.instruction in question.question
        if not example.input:
            said = pair.answers(example.instruction, 6)
            assert (question.answers["trial-000"], question.answers["trial-002"]) == (
                said["base"],
                said["tuned"],
            )
    assert any(len(set(q.answers.values())) > 1 for q in record.questions)
    monkeypatch.setattr(models, "load_base", lambda *_: pytest.fail("a model was loaded"))
    assert answers.answers(study, SearchFolder(folder.uri)) == record
    assert answers.answers(asking(study, 0), folder) is None


@pytest.mark.slow
def test_the_report_shows_them_and_is_written_without_them(searched):
    study, folder, tmp_path = searched
    before = step.report(study)
    assert 'id="answers"' not in Path(before).read_text()
    study = asking(study)
    record = answers.answers(study, folder)
    record.questions[0].answers["trial-002"] = "<b>bold</b>"
    folder.write("answers.json", record)
    page = Path(step.report(study)).read_text()
    assert (
        Path(reports.rewrite(study.root, str(tmp_path / "again.html"))).read_text().count('class="asked"')
        == 3
    )
    assert page.count('class="asked"') == 3
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert re.search(r"untuned base, trial-000.*default setting, trial-001.*chosen, trial-002", page, re.S)


def test_a_study_does_not_fail_for_want_of_answers(searched, monkeypatch, caplog):
    study, folder, _ = searched

    def failing(error):
        def broken(*_):
            raise error

        monkeypatch.setattr(models, "load_base", broken)

    failing(DiskFull("the disk is full"))
    with pytest.raises(DiskFull):
        answers.answers(asking(study), folder)
    failing(torch.OutOfMemoryError("no memory"))
    assert answers.answers(asking(study), folder) is None
    assert "no answers of the models: no memory" in caplog.text
    assert not SearchFolder(folder.uri).has("answers.json")
