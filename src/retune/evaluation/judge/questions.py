"""The questions of a preference study: read from a file, and some of them drawn by a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retune import store
from retune.errors import InputError, RetuneError
from retune.evaluation.tasks.question import first_few

_FIELDS = ("text", "question", "instruction", "prompt")


@dataclass(frozen=True)
class Question:
    """A question of the study. `id` is unique in its file; `category` is empty where the file has none."""

    id: str
    text: str
    category: str = ""


def read(uri: str) -> list[Question]:
    """Return the questions of a file: JSON lines or plain text with one question a line.

    A JSON line holds the question under ``text`` (Vicuna), ``turns`` (FastChat, of which the first is asked),
    ``question``, ``instruction`` or ``prompt``; ``question_id`` or ``id`` and ``category`` are read where they are.

    Raises:
        InputError: with every problem of the file.
    """
    try:
        text = store.read(uri).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"there is no file {uri}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"a file of questions is UTF-8 text, but {uri} is not: {error}") from error
    except RetuneError as error:
        raise InputError(str(error)) from error
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise InputError(f"{uri} holds no question")
    questions: list[Question] = []
    problems: list[str] = []
    as_json = lines[0][1].startswith("{")
    for number, line in lines:
        try:
            questions.append(_from_json(line, number) if as_json else Question(str(number), line))
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    problems += _repeated(questions)
    if problems:
        raise InputError(first_few(problems), uri)
    return questions


def draw(questions: Sequence[Question], count: int, seed: int) -> list[Question]:
    """Return `count` questions drawn at random without replacement; a larger draw begins with a smaller one."""
    indices = list(range(len(questions)))
    random.Random(f"{seed}/questions").shuffle(indices)
    return [questions[index] for index in indices[:count]]


def _from_json(line: str, number: int) -> Question:
    try:
        entry: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"each line is one JSON object, but this is none: {error}") from error
    if not isinstance(entry, dict):
        raise ValueError("each line is one JSON object, but this is a value of another kind")
    turns = entry.get("turns")
    text = turns[0] if isinstance(turns, list) and turns else None
    text = next((entry[name] for name in _FIELDS if name in entry), text)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"a question is a text under one of {', '.join(_FIELDS)} or turns, but got {text!r}")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("a question is Unicode text, but this one holds half of a surrogate pair")
    more = entry.get("input") or entry.get("context")
    if more:
        raise ValueError("a question stands alone, but this one has an input: put it into the question")
    name = entry.get("question_id", entry.get("id", number))
    return Question(str(name), text.strip(), str(entry.get("category") or ""))


def _repeated(questions: Sequence[Question]) -> list[str]:
    """Return a problem for every repeated id and text: people would judge it twice."""
    problems = []
    for what, values in (("id", [q.id for q in questions]), ("text", [q.text for q in questions])):
        seen: set[str] = set()
        for value in values:
            if value in seen:
                problems.append(f"questions need different {what}s, but {value[:60]!r} is there twice")
            seen.add(value)
    return problems
