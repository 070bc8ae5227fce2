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
    def _refuse_bool_for_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `true` for a number, which pydantic would convert to 1."""
        if isinstance(value, bool):
            field = cls.model_fields[str(info.field_name)]
            annotation = field.annotation
            kinds = set(get_args(annotation)) or {annotation}
            has_own_check = any(isinstance(rule, BeforeValidator) for rule in field.metadata)
            if kinds & {int, float} and bool not in kinds and not has_own_check:
                kind = "a number" if float in kinds else "a whole number"
                raise PydanticCustomError(
                    "truth_value", "{text}", {"text": f"must be {kind}, but got {value}"}
                )
        return value

    def _checked(self, problems: Sequence[str]) -> Self:
        """Return the section, or raise one error with all of its problems."""
        if problems:
            raise PydanticCustomError(
                "rules", "{text}", {"text": "; ".join(problems), "problems": list(problems)}
            )
        return self
