"""The base of every part of the study file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """The base of every part of the study file: unknown keys are refused, and so are infinite numbers and NaN."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, given: Any, info: ValidationInfo) -> Any:
        """Refuse `true` where a number is asked for: pydantic takes it for 1."""
        if isinstance(given, bool):
            field = cls.model_fields[str(info.field_name)]
            annotation = field.annotation
            kinds = set(get_args(annotation)) or {annotation}
            tells = any(isinstance(rule, BeforeValidator) for rule in field.metadata)  # in its own words
            if kinds & {int, float} and bool not in kinds and not tells:
                asked = "a number" if float in kinds else "a whole number"
                raise PydanticCustomError(
                    "truth_value", "{text}", {"text": f"{asked} is asked for, but got {given}"}
                )
        return given

    def _checked(self, problems: Sequence[str]) -> Self:
        """Return the section, or raise one error with all of its problems."""
        if problems:
            raise PydanticCustomError(
                "rules", "{text}", {"text": "; ".join(problems), "problems": list(problems)}
            )
        return self
