"""Settings of an algorithm: typed, with ranges and a line of help each; all problems of a mapping at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retune.errors import nearest


class Settings(BaseModel):
    """The settings that every algorithm knows; values may be text, as Katib sends them (``"8"``)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int | None = Field(None, ge=0, lt=2**31, description="instead of the study's seed")

    @property
    def as_measured(self) -> bool:
        """Whether results of earlier studies count as they were measured, not as this study is expected to have them."""
        return False

    def own_seed(self) -> int | None:
        """Return the seed that goes before the study's, if one was given."""
        return self.seed


def problems(kind: type[Settings], content: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the settings: unknown names, with the valid ones, and values out of range."""
    try:
        kind.model_validate(dict(content))
    except ValidationError as error:
        return [_sentence(kind, content, entry) for entry in error.errors()]
    return []


def _sentence(kind: type[Settings], content: Mapping[str, Any], error: Any) -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        valid = sorted(kind.model_fields)
        near = nearest(name, valid)
        hint = f"did you mean {near!r}? " if near else ""
        return f"unknown setting {name!r}; {hint}valid settings are {valid}"
    message = error["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f"setting {name!r}: {message}, but got {content.get(name)!r}" if name else message
