"""The key of a blind study: which model gave which answer. Annotators never get it."""

from __future__ import annotations

import secrets

from pydantic import BaseModel, Field, ValidationError

from retune import store
from retune.errors import InputError
from retune.evaluation.judge.record import Contestant, Generated, Side
from retune.records import Record, digest, now


class BlindQuestion(BaseModel):
    """One question. `token` names it in the form, `answers` names each model's answer; both are random.

    Where both models gave the same answer, `token` is None and the question is not in the form.
    """

    id: str
    category: str
    question: str
    token: str | None = None
    answers: dict[Side, str] = Field(default_factory=dict)


class Key(Record):
    """The key (`key.json`).

    Attributes:
        form: the random name of the form; files of other forms are told apart by it.
        models: who is a and who is b.
        generated: digest of the questions and answers in the form.

    """

    form: str
    models: dict[Side, Contestant]
    questions: list[BlindQuestion]
    generated: str
    made: str = ""

    def comparisons(self) -> list[BlindQuestion]:
        """Return the questions that are in the form."""
        return [question for question in self.questions if question.token is not None]


def fetch(generated: Generated, uri: str) -> Key:
    """Return the key at `uri`; create it if there is none.

    The names in the form are drawn by the system's random numbers and not by the study's seed: a seed can be guessed.

    Raises:
        InputError: if the key there belongs to other answers.
    """
    content = digest([question.model_dump() for question in generated.questions])
    store.create(uri, _build_key(generated, content).to_json())
    key = read(uri)
    if key.generated != content:
        raise InputError(f"{uri} is the key of other answers; name another --out, or remove that one")
    return key


def read(uri: str) -> Key:
    """Return the key at `uri`.

    Raises:
        InputError: if there is none.
    """
    try:
        return Key.model_validate_json(store.read(uri))
    except FileNotFoundError as error:
        raise InputError(f"there is no key {uri}: `retune judge prepare` wrote it beside the form") from error
    except ValidationError as error:
        raise InputError(f"{uri} is not a key that `retune judge prepare` wrote") from error


def _build_key(generated: Generated, content: str) -> Key:
    questions = []
    for question in generated.questions:
        hidden = BlindQuestion(id=question.id, category=question.category, question=question.question)
        if question.answers["a"] != question.answers["b"]:
            hidden.token = secrets.token_hex(8)
            hidden.answers = {"a": secrets.token_hex(8), "b": secrets.token_hex(8)}
        questions.append(hidden)
    return Key(
        form=secrets.token_hex(8),
        models=generated.models,
        questions=questions,
        generated=content,
        made=now(),
    )
