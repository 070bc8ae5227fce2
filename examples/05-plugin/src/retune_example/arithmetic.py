"""A benchmark: sums in words, one a line as ``{"question": "two plus three", "answer": "5"}``, right if the answer starts so."""

from __future__ import annotations

import json
from pathlib import Path

from retune.errors import InputError
from retune.evaluation.tasks.question import Question, Task, micro_average, starts_with_label


def files(path: Path) -> list[Path]:
    """Return the files that decide the score; their digest is kept with it."""
    return [path]


def read(path: Path) -> list[Question]:
    """Return the questions of a file.

    Raises:
        InputError: with every line that is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the questions must be a text file in UTF-8: {error}", str(path)) from error
    questions, problems = [], []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            body, label = f"{record['question']} = ", record["answer"]
        except (ValueError, KeyError, TypeError):
            problems.append(
                f"line {number}: a line is an object with `question` and `answer`, but is {line[:60]!r}"
            )
            continue
        questions.append(
            Question(id=str(number), group="sums", header="", shots=(), body=body, label=str(label))
        )
    if not lines:
        problems.append("the file is empty, but a benchmark needs questions")
    if problems:
        raise InputError(problems, str(path))
    return questions


TASK = Task(
    name="arithmetic",
    shots=0,
    input_limit=256,
    new_tokens=4,
    files=files,
    read=read,
    grade=starts_with_label,
    average=micro_average,
)
