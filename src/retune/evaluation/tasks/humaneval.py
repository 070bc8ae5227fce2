"""HumanEval (Chen et al. 2021): 164 Python functions to complete, pass@1 by running their tests in a sandbox.

Header, limits and post-processing are those of Instruct-Eval's ``human_eval/main.py`` (commit 49bbd2ce).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from retune import cores
from retune.errors import InputError
from retune.evaluation.sandbox import runner as sandbox
from retune.evaluation.tasks import lines
from retune.evaluation.tasks.question import Question, Task, Verdict, micro_average

HEADER = "Please complete the following Python code without providing any additional tasks such as testing or explanations\n"
_FIELDS = ("task_id", "prompt", "test", "entry_point", "canonical_solution")


def files(path: Path) -> list[Path]:
    """Return the one data file."""
    return [path]


def read(path: Path) -> list[Question]:
    """Return the problems of a ``.jsonl`` or ``.jsonl.gz`` file.

    Raises:
        InputError: if the file is missing, not JSON lines, or a problem lacks a field.

    """
    questions = lines.parse(path, lines.read_text(path), "a line is a JSON object", _question)
    if not questions:
        raise InputError(f"{path}: the file is empty")
    return questions


def _question(number: int, row: Any) -> Question:
    lacking = [key for key in _FIELDS if not isinstance(row.get(key), str)]
    if lacking:
        raise InputError(f"a problem has the texts {list(_FIELDS)}, but {lacking} is missing or no text")
    extra = {key: row[key] for key in ("prompt", "test", "entry_point")}
    return Question(row["task_id"], "", HEADER, (), row["prompt"], row["canonical_solution"], extra)


def completion(text: str) -> str:
    """Return what counts of a generated text: indents raised to a multiple of 2, then all before the first blank line."""
    raised = []
    for line in text.split("\n"):
        indent = len(line) - len(line.lstrip(" "))
        raised.append(" " * (indent % 2) + line)
    return "\n".join(raised).lstrip("\n").split("\n\n")[0]


def finished(text: str) -> bool:
    """Return whether a blank line has come: nothing generated after it counts."""
    return "\n\n" in text.lstrip("\n")


def run_tests(prompt: str, answer: str, test: str, entry_point: str) -> sandbox.Outcome:
    """Return whether an answer passes its problem's tests, which run in another process than the answer."""
    return sandbox.check(prompt + answer, test, entry_point, prompt=prompt)


def grade(questions: Sequence[Question], predictions: Sequence[str]) -> list[Verdict]:
    """Run every answer against its tests, a few at a time, each in its own sandbox."""

    def run(question: Question, text: str) -> sandbox.Outcome:
        extra = question.extra
        return run_tests(extra["prompt"], text, extra["test"], extra["entry_point"])

    with ThreadPoolExecutor(max_workers=min(4, cores.available())) as pool:
        outcomes = list(pool.map(run, questions, predictions))
    return [Verdict(outcome.passed, outcome.reason) for outcome in outcomes]


TASK = Task(
    "humaneval", 0, 1360, 512, files, read, grade, micro_average, stop=finished, postprocess=completion
)
