"""How one trial trains: the section `training` of a study, whose keys a search can tune."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from retune.study.section import Section

TUNABLE = (
    "rank", "alpha", "alpha_ratio", "dropout", "learning_rate", "weight_decay", "lora_plus_ratio", "beta1", "beta2",
    "max_grad_norm", "epochs", "batch_size", "gradient_accumulation_steps", "schedule", "warmup_share", "target_modules",
    "first_layer", "last_layer", "variant", "init",
)  # fmt: skip
"""The keys of `Training` that a search can tune."""
WORDS = ("schedule", "target_modules", "variant", "init")
"""Those whose values are texts; all others are numbers."""
_INTEGERS = ("rank", "epochs", "batch_size", "gradient_accumulation_steps", "first_layer", "last_layer")
# Added after the first release: they enter digests only where a study uses them, so that older folders keep their names
_LATER = (
    "alpha_ratio", "lora_plus_ratio", "beta1", "beta2", "gradient_accumulation_steps", "first_layer", "last_layer", "variant",
    "init",
)  # fmt: skip
GROUPS = ("all-linear", "attention", "mlp")
"""Names for groups of target modules: all linear layers but the output layer, those of the attention, the others."""
EDITING = ("pissa", "olora", "lora-ga")
"""Initialisations that subtract the new adapter from the base's weights."""
FROM_DATA = ("eva", "lora-ga")
"""Initialisations that read the first records of the training data."""
_NAMES = re.compile(r"\s*[A-Za-z_][\w.]*\s*(,\s*[A-Za-z_][\w.]*\s*)+")


def _listed(value: Any) -> Any:
    """Split ``q_proj,v_proj``: the value of a categorical parameter is a single text, see `retune.space`."""
    if isinstance(value, str) and _NAMES.fullmatch(value):
        return [name.strip() for name in value.split(",")]
    return value


class Training(Section):
    """How one trial trains; the defaults are those of Tribes et al. 2024 and of the transformers Trainer they used.

    All keys but `checkpoint_minutes` can be tuned: a trial's assignment replaces them (`tuned`).
    """

    epochs: int = Field(2, gt=0)
    batch_size: int = Field(4, gt=0, description="records per optimiser step, over all devices")
    gradient_accumulation_steps: int = Field(
        1, gt=0, description="batches per optimiser step; how a step is split to fit the memory is found out"
    )
    target_modules: Annotated[Annotated[list[str], Field(min_length=1)] | str, BeforeValidator(_listed)] = (
        Field(
            default_factory=lambda: ["q_proj", "v_proj"],
            description="names of layers; or `all-linear`, `attention` or `mlp`; or a regular expression for whole names",
        )
    )
    first_layer: int = Field(
        0, description="first block of the model that gets adapters; below 0 counted from the last"
    )
    last_layer: int = Field(-1, description="last block that gets adapters; below 0 counted from the last")
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_share: float = Field(
        0.0, ge=0, lt=1, description="share of all steps in which the learning rate rises from 0"
    )
    max_grad_norm: float = Field(1.0, gt=0)
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the mean of gradients")
    beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's decay of the mean of their squares")
    variant: Literal["lora", "rslora", "dora"] = Field(
        "lora", description="rslora: scaled by alpha over the root of the rank; dora: magnitudes learnt apart"
    )
    init: Literal["default", "gaussian", "orthogonal", "pissa", "olora", "eva", "lora-ga"] = Field(
        "default", description="how the adapter begins, by PEFT; default: A random, B zero"
    )
    rank: int = Field(8, gt=0)
    alpha: float = Field(32, gt=0)
    alpha_ratio: float | None = Field(
        None, gt=0, description="alpha as a multiple of the rank, in place of `alpha`"
    )
    dropout: float = Field(0.1, ge=0, lt=1)
    learning_rate: float = Field(1e-5, gt=0)
    lora_plus_ratio: float = Field(1.0, gt=0, description="LoRA+: learning rate of B over that of A")
    weight_decay: float = Field(0.0, ge=0)
    checkpoint_minutes: float = Field(10.0, gt=0, description="how much work a killed trial may lose at most")

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        return self._checked([*self._target_problems(), *self._rule_problems()])

    def _target_problems(self) -> list[str]:
        targets = self.target_modules
        if not isinstance(targets, str):
            empty = [name for name in targets if not name.strip()]
            return ["`target_modules` holds names of layers, but one is empty"] if empty else []
        try:
            re.compile(targets)
        except re.error as error:
            return [
                f"`target_modules` is a list of names, one of {list(GROUPS)} or a regular expression, "
                f"but {targets!r} is none: {error}"
            ]
        return [] if targets.strip() else ["`target_modules` must name layers, but is empty"]

    def _rule_problems(self) -> list[str]:
        problems = []
        if self.variant == "dora" and self.init in EDITING:
            problems.append(
                f"`variant: dora` needs an `init` that leaves the base's weights alone, but got {self.init!r}"
            )
        if self.init == "orthogonal" and self.rank % 2:
            problems.append(f"`init: orthogonal` needs an even `rank`, but got {self.rank}")
        if (self.first_layer < 0) == (self.last_layer < 0) and self.first_layer > self.last_layer:
            problems.append(
                f"`first_layer <= last_layer` must hold, but got {self.first_layer} and {self.last_layer}"
            )
        return problems

    @property
    def scaled_alpha(self) -> float:
        """LoRA's alpha, whichever key gives it."""
        return self.alpha if self.alpha_ratio is None else self.alpha_ratio * self.rank

    @property
    def step_records(self) -> int:
        """Records per optimiser step."""
        return self.batch_size * self.gradient_accumulation_steps

    def tuned(self, assignment: Mapping[str, Any]) -> Training:
        """Return the training of a trial: this one with the assignment's values.

        Raises:
            pydantic.ValidationError: with all problems, if it cannot be trained.
        """
        values = {name: _integer(name, value) for name, value in assignment.items()}
        if "alpha" in values and "alpha_ratio" not in values:
            values["alpha_ratio"] = None
        return Training.model_validate(self.model_dump() | values)

    def decides(self) -> dict[str, Any]:
        """Return what affects a trial's result, for digests: keys of later releases only where they are used."""
        content = self.model_dump(mode="json", exclude={"checkpoint_minutes"})
        unused = Training().model_dump(mode="json", include=set(_LATER))
        return {key: value for key, value in content.items() if key not in unused or value != unused[key]}


def _integer(name: str, value: Any) -> Any:
    """Convert ``16.0`` and ``"16.0"`` to 16 for keys that are whole numbers: levels and Katib's texts are floats."""
    if name not in _INTEGERS or isinstance(value, bool):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    return int(number) if number.is_integer() else value
