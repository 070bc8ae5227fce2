"""HellaSwag (Zellers et al. 2019): the likeliest of four endings, as lm-evaluation-harness scores it, 0-shot.

Not part of Instruct-Eval; Davouse 2024 validates on it. Context, cleaning and `acc_norm` are those of the harness's
task ``hellaswag`` 1.0 (harness 0.4.13): the ending with the highest log-likelihood divided by its length in
characters. Lengths in bytes (`acc_bytes`) differ only where an ending is not plain ASCII; both, and `acc` without
lengths, are among the record's groups.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retune.errors import InputError
from retune.evaluation.tasks import lines
from retune.evaluation.tasks.question import Question, Task, Verdict, micro_average, share

_FORM = "a line needs activity_label, ctx_a, ctx_b, endings and label"


def files(path: Path) -> list[Path]:
    """Return the one data file."""
    return [path]


def read(path: Path) -> list[Question]:
    """Return the items of a ``.jsonl`` file in the data set's own schema.

    Raises:
        InputError: if the file is missing, not JSON lines, or an item lacks a field.
    """
    questions = lines.parse(path, lines.read_text(path), _FORM, _question)
    if not questions:
        raise InputError(f"{path}: the file is empty")
    return questions


def _question(number: int, row: Any) -> Question:
    context = clean(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
    endings = tuple(f" {clean(ending)}" for ending in row["endings"])
    label = int(row["label"])
    if not 0 <= label < len(endings):
        raise InputError(f"`0 <= label < {len(endings)}` must hold, but got {label}")
    return Question(str(number), str(row.get("split_type", "")), "", (), context, str(label), choices=endings)


def clean(text: str) -> str:
    """Return a text without WikiHow's marks in brackets."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def grade(questions: Sequence[Question], predictions: Sequence[str]) -> list[Verdict]:
    """Compare the number of the chosen ending with the label."""
    return [
        Verdict(prediction == question.label)
        for question, prediction in zip(questions, predictions, strict=True)
    ]


def by_characters(question: Question, likelihoods: Sequence[float]) -> str:
    """Return the number of the ending with the highest log-likelihood per character (`acc_norm`)."""
    scores = [
        value / len(choice.removeprefix(" "))
        for value, choice in zip(likelihoods, question.choices, strict=True)
    ]
    return str(max(range(len(scores)), key=scores.__getitem__))


def by_bytes(question: Question, likelihoods: Sequence[float]) -> str:
    """Return the number of the ending with the highest log-likelihood per byte (`acc_bytes`)."""
    sizes = [len(choice.removeprefix(" ").encode()) for choice in question.choices]
    scores = [value / size for value, size in zip(likelihoods, sizes, strict=True)]
    return str(max(range(len(scores)), key=scores.__getitem__))


def other_scores(questions: Sequence[Question], likelihoods: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return the scores without lengths (`acc`) and with lengths in bytes (`acc_bytes`)."""
    pairs = list(zip(questions, likelihoods, strict=True))
    plain = [
        str(max(range(len(values)), key=values.__getitem__)) == question.label for question, values in pairs
    ]
    return {
        "acc": share(plain)[0],
        "acc_bytes": share([by_bytes(q, values) == q.label for q, values in pairs])[0],
    }


TASK = Task(
    "hellaswag",
    0,
    1 << 20,
    0,
    files,
    read,
    grade,
    micro_average,
    protocol="lm-eval",
    choose=by_characters,
    others=other_scores,
)
