"""The contract of a benchmark, as tests: subclass `TaskContract`, give its name and some of its data."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from retune.errors import InputError
from retune.evaluation import tasks
from retune.evaluation.tasks.question import Question, Task, file_digest


class TaskContract:
    """What retune relies on in a benchmark.

    Attributes:
        name: of the task, as a study file has it.
        data: file or folder with at least two questions.
        right, wrong: a prediction that is right and one that is wrong for a question.

    """

    name: ClassVar[str]
    data: ClassVar[Path]

    def right(self, question: Question) -> str:
        """Return a right prediction: the label, unless the task grades otherwise."""
        return question.label

    def wrong(self, question: Question) -> str:
        """Return a wrong prediction."""
        return "\0"

    @pytest.fixture
    def task(self) -> Task:
        """The task, found by its name as a study finds it."""
        return tasks.find(self.name)

    @pytest.fixture
    def questions(self, task: Task) -> list[Question]:
        """Its questions."""
        return task.read(self.data)

    def test_it_has_the_name_it_is_found_by(self, task: Task) -> None:
        assert task.name == self.name

    def test_every_question_has_an_id_of_its_own_and_a_prompt(self, questions: list[Question]) -> None:
        assert len(questions) >= 2
        assert len({question.id for question in questions}) == len(questions)
        for question in questions:
            assert question.body
            assert question.prompt(0) == question.header + question.body
            assert question.prompt() == question.header + "".join(question.shots) + question.body

    def test_shots_are_as_many_as_stated(self, task: Task, questions: list[Question]) -> None:
        assert all(len(question.shots) == task.shots for question in questions)

    def test_reading_again_gives_the_same(self, task: Task, questions: list[Question]) -> None:
        assert task.read(self.data) == questions

    def test_the_files_decide_the_digest(self, task: Task) -> None:
        files = task.files(self.data)
        assert files
        assert all(file.is_file() for file in files)
        assert file_digest(files) == file_digest(list(reversed(files)))

    def test_right_answers_score_one_and_wrong_ones_nothing(
        self, task: Task, questions: list[Question]
    ) -> None:
        for answer, value in ((self.right, 1.0), (self.wrong, 0.0)):
            verdicts = task.grade(questions, [task.postprocess(answer(question)) for question in questions])
            assert [verdict.right for verdict in verdicts] == [value == 1.0] * len(questions)
            score = task.average(questions, [verdict.right for verdict in verdicts])
            assert (score.value, score.stderr) == (value, 0.0)

    def test_half_right_is_between_and_has_an_error(self, task: Task, questions: list[Question]) -> None:
        score = task.average(questions, [k % 2 == 0 for k in range(len(questions))])
        assert 0 < score.value < 1
        assert score.stderr >= 0
        assert all(0 <= value <= 1 for value in score.groups.values())

    def test_limits_leave_room_for_an_answer(self, task: Task) -> None:
        assert task.input_limit > 0
        assert task.new_tokens > 0 or task.choose is not None

    def test_what_is_not_its_data_is_refused(self, task: Task, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "file").write_bytes(b"\xff\xfe not this")
        for path in (tmp_path / "empty", tmp_path / "file", tmp_path / "missing"):
            with pytest.raises(InputError):
                task.read(path)
