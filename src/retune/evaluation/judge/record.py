"""What was asked and answered: the record that `retune judge prepare` keeps for itself."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from retune.records import Record

Side = Literal["a", "b"]
SIDES: tuple[Side, Side] = ("a", "b")


class Contestant(BaseModel):
    """One of the two models: its name in reports, its adapter (None: the untuned base) and its weights' digest."""

    name: str
    adapter_uri: str | None = None
    adapter_digest: str | None = None


class Answered(BaseModel):
    """A question, the digest of its prompt, and each model's answer once generated."""

    id: str
    category: str
    question: str
    prompt: str
    answers: dict[Side, str] = Field(default_factory=dict)


class Generated(Record):
    """Both models' answers (`generated.json`).

    Attributes:
        models: who is a and who is b.
        inputs: all that decides questions and answers; a folder made from other inputs is never carried on.
        seconds: wall time of generating, over all runs. finished: empty until the last answer is there.

    """

    models: dict[Side, Contestant]
    inputs: dict[str, Any]
    questions: list[Answered]
    batch_size: int = 1
    seconds: float = 0.0
    versions: dict[str, str] = Field(default_factory=dict)
    finished: str = ""
