"""Reads the annotators' answer files, checks them against the key and drops duplicates. A bad file never stops the count."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retune import store
from retune.errors import RetuneError
from retune.evaluation.judge.key import Key
from retune.evaluation.judge.record import Side

FORMAT = "retune-judge-answers"
TIE = "tie"
_MAX_BYTES = 16 << 20  # an answer is a line of three names
Vote = Literal["a", "b", "tie"]


class _Choice(BaseModel):
    model_config = ConfigDict(strict=True)

    question: str
    choice: str
    first: str


class _File(BaseModel):
    """What the form exports. Times are RFC 3339 in UTC, so that they sort as text."""

    model_config = ConfigDict(strict=True)

    annotator: str = Field(min_length=1, max_length=200)
    session: str
    exported: str
    answers: list[_Choice]


class Ballot(BaseModel):
    """One person's judgements by question id: whose answer was better, and whose stood first (left, or above)."""

    annotator: str
    file: str
    session: str
    exported: str
    votes: dict[str, Vote]
    first: dict[str, Side]


class Excluded(BaseModel):
    """A file that is not counted, and why."""

    file: str
    kind: Literal["unreadable", "foreign", "damaged", "empty", "double"]
    reason: str


def collect(files: Sequence[str], key: Key) -> tuple[list[Ballot], list[Excluded]]:
    """Return the ballots to count, by annotator, and the files left out, in the order given.

    Of several files of one person the one exported last is counted. One person is whoever has the same name or code
    (upper and lower case and spaces aside), or exported from the same filling in of the form.
    """
    ballots: list[Ballot] = []
    left_out: list[Excluded] = []
    for file in dict.fromkeys(files):
        collected = _read(file, key)
        (ballots if isinstance(collected, Ballot) else left_out).append(collected)  # type: ignore[arg-type]
    kept: list[Ballot] = []
    for ballot in sorted(ballots, key=lambda one: (one.exported, len(one.votes), one.file), reverse=True):
        same = next((one for one in kept if _same_person(one, ballot)), None)
        if same is None:
            kept.append(ballot)
        else:
            reason = f"{same.file} is of the same annotator, {same.annotator!r}, and was exported later"
            left_out.append(Excluded(file=ballot.file, kind="double", reason=reason))
    left_out.sort(key=lambda one: list(files).index(one.file))
    return sorted(kept, key=lambda one: _plain(one.annotator)), left_out


def _same_person(one: Ballot, other: Ballot) -> bool:
    return one.session == other.session or _plain(one.annotator) == _plain(other.annotator)


def _plain(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())


def _read(file: str, key: Key) -> Ballot | Excluded:
    """Return the ballot in a file, or why there is none."""

    def out(kind: Any, reason: str) -> Excluded:
        return Excluded(file=file, kind=kind, reason=reason)

    try:
        if "://" not in file and Path(file).stat().st_size > _MAX_BYTES:
            return out("foreign", f"it has more than {_MAX_BYTES >> 20} MiB, as no answer file of a form has")
        data = store.read(file)
    except (RetuneError, OSError) as error:
        return out("unreadable", f"it cannot be read: {error}")
    if not data.strip():
        return out("empty", "the file is empty")
    try:
        content = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return out("damaged", f"it is not JSON: {error}")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return out("foreign", "it is not an answer file of `retune judge`")
    if content.get("form") != key.form:
        return out("foreign", f"it was filled in for form {content.get('form')!r}, the key is of {key.form}")
    try:
        parsed = _File.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return out("damaged", f"{where}: {first['msg']}")
    if not parsed.answers:
        return out("empty", "no question was answered")
    return _ballot(file, parsed, key) or out(
        "damaged", "it names questions or answers that the form does not have, or one question twice"
    )


def _ballot(file: str, parsed: _File, key: Key) -> Ballot | None:
    """Return the judgements with the names of the form resolved; None if one of them is not in the key."""
    comparisons = {question.token: question for question in key.comparisons()}
    votes: dict[str, Vote] = {}
    first: dict[str, Side] = {}
    for answer in parsed.answers:
        question = comparisons.get(answer.question)
        if question is None or question.id in votes:
            return None
        whose: dict[str, Side] = {token: side for side, token in question.answers.items()}
        if answer.first not in whose or (answer.choice != TIE and answer.choice not in whose):
            return None
        votes[question.id] = "tie" if answer.choice == TIE else whose[answer.choice]
        first[question.id] = whose[answer.first]
    return Ballot(
        annotator=parsed.annotator.strip() or "?",
        file=file,
        session=parsed.session,
        exported=parsed.exported,
        votes=votes,
        first=first,
    )
