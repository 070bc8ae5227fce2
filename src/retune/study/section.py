"""The base of every part of the study file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """The base of every part of the study file: unknown keys are refused, and so are infinite numbers and NaN."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    def _checked(self, problems: Sequence[str]) -> Self:
        """Return the section, or raise one error with all of its problems."""
        if problems:
            raise PydanticCustomError(
                "rules", "{text}", {"text": "; ".join(problems), "problems": list(problems)}
            )
        return self
