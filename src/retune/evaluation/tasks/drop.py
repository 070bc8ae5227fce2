"""DROP (Dua et al. 2019): reading comprehension with numbers, three shots, accuracy by first words.

Prompts, limits and the choice of items are those of Instruct-Eval's ``drop.py`` (commit 49bbd2ce). Two file forms
are read: DROP's own (passages with ``qa_pairs``) and OpenAI simple-evals' lines (``context``, ``ref_text``). The
second joins the spans of one answer into one text, so that it cannot tell an answer of two spans from one of
one span: it keeps a few more items than the first.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retune.errors import InputError
from retune.evaluation.tasks import lines
from retune.evaluation.tasks.question import Question, Task, first_few, micro_average, starts_with_label

SHOTS = 3
_CONTEXT = re.compile(r"\APassage:\s?(?P<passage>.*)\nQuestion:\s?(?P<question>.*?)\nAnswer:\s*\Z", re.DOTALL)


@dataclass(frozen=True)
class _Item:
    id: str
    passage: str
    question: str
    answers: tuple[str, ...]

    @property
    def body(self) -> str:
        return f"{self.passage.strip()} {self.question.strip()}\nAnswer:"


def files(path: Path) -> list[Path]:
    """Return the one data file."""
    return [path]


def read(path: Path) -> list[Question]:
    """Return the items with one distinct answer, less the shots and all that share a passage with one.

    Raises:
        InputError: if the file is missing, of neither form, or too small for the shots.

    """
    items = [item for item in _items(path) if len(set(item.answers)) == 1]
    if len(items) <= SHOTS:
        raise InputError(f"{path}: more than {SHOTS} items with one answer are needed, but got {len(items)}")
    examples = random.Random(0).sample(items, SHOTS)
    passages = {example.passage for example in examples}
    shots = tuple(f"{example.body} {example.answers[0]}\n\n" for example in examples)
    rest = [item for item in items if item.passage not in passages]
    if not rest:
        raise InputError(
            f"{path}: no item is left once those that share a passage with the shots are taken out"
        )
    return [Question(item.id, "", "", shots, item.body, item.answers[0]) for item in rest]


def documents(path: Path) -> list[dict[str, Any]]:
    """Return all items in the form of the Hugging Face data set ``EleutherAI/drop``, as lm-evaluation-harness reads them.

    Raises:
        InputError: as `read` does.
    """
    text = lines.read_text(path)
    if '"qa_pairs"' not in text:
        return [
            _document(item.id, item.passage, item.question, [{"spans": [answer]} for answer in item.answers])
            for item in _items(path)
        ]
    return [
        _document(
            pair.get("query_id", f"{name}/{number}"),
            entry["passage"],
            pair["question"],
            [pair["answer"], *pair.get("validated_answers", [])],
        )
        for name, entry in json.loads(text).items()
        for number, pair in enumerate(entry["qa_pairs"])
    ]


def _document(name: str, passage: str, question: str, answers: list[dict[str, Any]]) -> dict[str, Any]:
    whole = []
    for answer in answers:
        date = {key: (answer.get("date") or {}).get(key, "") for key in ("day", "month", "year")}
        whole.append(
            {
                "number": str(answer.get("number") or ""),
                "date": date,
                "spans": list(answer.get("spans") or []),
            }
        )
    validated = {key: [answer[key] for answer in whole[1:]] for key in ("number", "date", "spans")}
    return {
        "query_id": name, "passage": passage, "question": question, "answer": whole[0], "validated_answers": validated
    }  # fmt: skip


def _items(path: Path) -> list[_Item]:
    text = lines.read_text(path)
    if '"qa_pairs"' not in text:
        return lines.parse(path, text, "a line is JSON with the texts 'context' and 'ref_text'", _item)
    problems: list[str] = []
    items = list(_own_form(path, text, problems))
    if problems:
        raise InputError(first_few(problems))
    return items


def _item(number: int, row: Any) -> _Item:
    match = _CONTEXT.match(row["context"])
    answers = tuple(answer.strip() for answer in row["ref_text"].split("|"))
    if match is None:
        raise InputError(
            f"'context' reads 'Passage: …\\nQuestion: …\\nAnswer:', but got {row['context'][:60]!r}…"
        )
    return _Item(str(number), match["passage"], match["question"], answers)


def _own_form(path: Path, text: str, problems: list[str]) -> Iterator[_Item]:
    try:
        passages = json.loads(text).items()
    except (ValueError, AttributeError) as error:
        problems.append(f"{path}: DROP's own form is a JSON object of passages, but: {error}")
        return
    for name, entry in passages:
        try:
            for number, pair in enumerate(entry["qa_pairs"]):
                all_answers = [pair["answer"], *pair.get("validated_answers", [])]
                answers = tuple(span.strip() for answer in all_answers for span in _spans(answer))
                yield _Item(
                    pair.get("query_id", f"{name}/{number}"), entry["passage"], pair["question"], answers
                )
        except (KeyError, TypeError, AttributeError) as error:
            problems.append(
                f"{path}: passage {name!r} needs 'passage' and 'qa_pairs' with 'question' and 'answer', but: {error!r}"
            )


def _spans(answer: dict[str, Any]) -> list[str]:
    """Return one annotator's answer as texts: its number, its spans, or its date."""
    if answer.get("number"):
        return [str(answer["number"])]
    if answer.get("spans"):
        return list(answer["spans"])
    date = answer.get("date") or {}
    parts = [date[key] for key in ("day", "month", "year") if date.get(key)]
    return [" ".join(parts)] if parts else []


TASK = Task("drop", SHOTS, 2048, 8, files, read, starts_with_label, micro_average)
