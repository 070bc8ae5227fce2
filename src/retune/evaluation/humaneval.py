"""HumanEval (Chen et al. 2021): 164 Python functions to complete, pass@1 by running their tests in a sandbox.

Header, limits and post-processing are those of Instruct-Eval's ``human_eval/main.py`` (commit 49bbd2ce).
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from retune.errors import InputError
from retune.evaluation import sandbox
from retune.evaluation.question import Question, Task, Verdict, first_few, micro_average

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
    try:
        data = path.read_bytes()
        lines = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode().splitlines()
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    problems: list[str] = []
    questions: list[Question] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            lacking = [key for key in _FIELDS if not isinstance(row.get(key), str)]
        except (ValueError, AttributeError) as error:
            problems.append(f"{path}:{number}: a line is a JSON object, but: {error}")
            continue
        if lacking:
            problems.append(
                f"{path}:{number}: a problem has the texts {list(_FIELDS)}, but {lacking} is missing or no text"
            )
            continue
        extra = {key: row[key] for key in ("prompt", "test", "entry_point")}
        questions.append(
            Question(row["task_id"], "", HEADER, (), row["prompt"], row["canonical_solution"], extra)
        )
    if not problems and not questions:
        problems.append(f"{path}: the file is empty")
    if problems:
        raise InputError(first_few(problems))
    return questions


def completion(text: str) -> str:
    """Return what counts of a generated text: indents raised to a multiple of 2, then all before the first blank line."""
    lines = []
    for line in text.split("\n"):
        indent = len(line) - len(line.lstrip(" "))
        lines.append(" " * (indent % 2) + line)
    return "\n".join(lines).lstrip("\n").split("\n\n")[0]


def finished(text: str) -> bool:
    """Return whether a blank line has come: nothing generated after it counts."""
    return "\n\n" in text.lstrip("\n")


def program(question: Question, answer: str) -> str:
    """Return the program that runs the problem's tests on an answer, as OpenAI's human-eval builds it."""
    extra = question.extra
    return f"{extra['prompt']}{answer}\n{extra['test']}\ncheck({extra['entry_point']})"


def grade(questions: Sequence[Question], predictions: Sequence[str]) -> list[Verdict]:
    """Run every answer against its tests, a few at a time, each in its own sandbox."""
    programs = [program(question, text) for question, text in zip(questions, predictions, strict=True)]
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        outcomes = list(pool.map(sandbox.run, programs))
    return [Verdict(outcome.passed, outcome.reason) for outcome in outcomes]


TASK = Task("humaneval", 0, 1360, 512, files, read, grade, micro_average, stop=finished, tidy=completion)
