"""The search space: hyper-parameters, their bounds and grids.

Every parameter has a finite grid of levels. An algorithm sees a point as one integer per parameter (its level,
`Space.encode`) or as a point of the unit cube (`Space.to_unit`); people and trials see the value (`Space.decode`).
Levels keep trials from differing by less than matters, make points comparable exactly, and let a value survive its way
through strings, as which Katib passes it.

Default grids of `real` parameters, unless `step` says otherwise:

* log scale: 0.01 in log10 (a factor of 1.023),
* linear scale: a hundredth of the range.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Value = float | int | str
Assignment = dict[str, Value]
Kind = Literal["real", "integer", "discrete", "categorical"]
Scale = Literal["linear", "log"]

LOG10_GRID = 0.01
LINEAR_LEVELS = 100
_DIGITS = 6
EXACT = 2.0**53
"""The largest whole number up to which a float represents each one exactly."""


def tidy(value: float) -> float:
    """Round to six significant digits, so that values print short and round-trip through text."""
    return float(f"{value:.{_DIGITS}g}")


class Parameter(BaseModel):
    """One hyper-parameter.

    ``real`` and ``integer`` have ``low``, ``high`` (both inclusive), ``scale`` and optionally ``step``:
    levels are ``low + k * step`` (linear) or ``low * 10 ** (k * step)`` (log, step in log10).
    ``discrete`` has ordered numbers, ``categorical`` unordered names, both in ``values``.
    ``default`` is the setting that the study compares itself with; it must lie in the range. An algorithm sees it at
    its nearest level. ``when`` makes the parameter conditional: it varies only while each of the named parameters, which
    come before it, has one of the listed values, and stays at its default otherwise.

    Raises:
        pydantic.ValidationError: naming the rule and the value, all problems at once.

    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: Kind
    low: float | None = None
    high: float | None = None
    scale: Scale = "linear"
    step: float | None = None
    values: tuple[Value, ...] | None = Field(
        None, description="a list among them is one value, its items joined by commas: names of layers"
    )
    default: Value | None = None
    when: dict[str, tuple[Value, ...]] | None = Field(
        None, description="varies only while the parameters named here have one of these values"
    )

    @field_validator("values", mode="before")
    @classmethod
    def _join_value_lists(cls, value: Any) -> Any:
        return [_joined(item) for item in value] if isinstance(value, list | tuple) else value

    @field_validator("default", mode="before")
    @classmethod
    def _join_default_list(cls, value: Any) -> Any:
        return _joined(value)

    @field_validator("when", mode="before")
    @classmethod
    def _list_single_values(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            name: values if isinstance(values, list | tuple) else [values] for name, values in value.items()
        }

    @model_validator(mode="after")
    def _check(self) -> Parameter:
        problems = list(self._problems())
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _problems(self) -> list[str]:
        problems = self._kind_problems()
        if self.when is not None and not problems:
            if not self.when or not all(self.when.values()):
                problems.append(
                    f"`when` names parameters and their values, but got {self.when} for {self.name!r}"
                )
            if self.default is None or self.value(self.level(self.default)) != self.default:
                problems.append(
                    f"a parameter with `when` needs a `default` on its grid, which it keeps otherwise, but got "
                    f"{self.default} for {self.name!r}"
                )
        return problems

    def _kind_problems(self) -> list[str]:
        if self.kind in ("discrete", "categorical"):
            return self._list_problems()
        return self._range_problems()

    def _list_problems(self) -> list[str]:
        problems = []
        if not self.values:
            return [f"a {self.kind} parameter needs `values`, but {self.name!r} has none"]
        if self.low is not None or self.high is not None or self.step is not None:
            problems.append(
                f"`low`, `high` and `step` do not belong to the {self.kind} parameter {self.name!r}"
            )
        if len(set(map(str, self.values))) < len(self.values) or len(set(self.values)) < len(self.values):
            problems.append(f"`values` must differ, but got {list(self.values)} for {self.name!r}")
        if self.kind == "discrete":
            bad = [v for v in self.values if isinstance(v, str) or not math.isfinite(v)]
            if bad:
                problems.append(
                    f"`values` of a discrete parameter must be finite numbers, but {self.name!r} has {bad}"
                )
            elif list(self.values) != sorted(self.values):  # type: ignore[type-var]
                problems.append(
                    f"`values` of a discrete parameter must rise, but got {list(self.values)} for {self.name!r}"
                )
        if self.default is not None and self.default not in self.values:
            problems.append(
                f"`default` must be one of {list(self.values)}, but got {self.default!r} for {self.name!r}"
            )
        return problems

    def _range_problems(self) -> list[str]:
        problems = []
        if self.values is not None:
            problems.append(f"`values` does not belong to the {self.kind} parameter {self.name!r}")
        if self.low is None or self.high is None:
            return [*problems, f"a {self.kind} parameter needs `low` and `high`, but {self.name!r} lacks one"]
        low, high = self.low, self.high
        if not (math.isfinite(low) and math.isfinite(high)):
            return [
                *problems,
                f"`low` and `high` must be finite, but got low={low}, high={high} for {self.name!r}",
            ]
        if not low <= high:
            problems.append(f"`low <= high` must hold for {self.name!r}, but got low={low}, high={high}")
        if self.scale == "log" and low <= 0:
            problems.append(f"`low > 0` must hold on a log scale, but got low={low} for {self.name!r}")
        if self.step is not None and not (math.isfinite(self.step) and self.step > 0):
            problems.append(f"`step > 0` must hold, but got step={self.step} for {self.name!r}")
        if self.kind == "integer":
            whole = {
                "low": low,
                "high": high,
                **({"step": self.step} if self.step and self.scale == "linear" else {}),
            }
            bad = {key: number for key, number in whole.items() if number != int(number)}
            if bad:
                problems.append(f"an integer parameter has whole bounds, but got {bad} for {self.name!r}")
            far = {key: number for key, number in whole.items() if abs(number) > EXACT}
            if far or high - low > EXACT:
                problems.append(
                    f"an integer parameter lies within -2^53 … 2^53 and spans 2^53 at most, since beyond it not every whole "
                    f"number can be told from the next, but got low={low:.17g}, high={high:.17g} for {self.name!r}: "
                    "tune its logarithm, or a part of the range"
                )
        if self.default is not None:
            if isinstance(self.default, str):
                problems.append(f"`default` must be a number, but got {self.default!r} for {self.name!r}")
            elif not low <= self.default <= high:
                problems.append(
                    f"`low <= default <= high` must hold, but got default={self.default}, "
                    f"low={low}, high={high} for {self.name!r}"
                )
        return problems or self._level_problems(low, high)

    def _level_problems(self, low: float, high: float) -> list[str]:
        """Refuse a step that leaves one level, and levels that are equal after rounding.

        Trials at equal levels would be the same, and `level` could not invert `value`.
        """
        if not math.isfinite(high - low):
            return [f"`low` and `high` are too far apart for {self.name!r}: got low={low}, high={high}"]
        if self.step is not None and low < high and self._span / self.step + 1e-9 < 1:
            span = f"`high` - `low`{' in log10' if self.scale == 'log' else ''}, {self._span:g}"
            return [
                f"`step` must be at most {span}, or {self.name!r} would always be {low:g}, but got step={self.step:g}: "
                "lower it, or set the one value outside of the search"
            ]
        if low == high or (self.kind == "integer" and (self.scale == "linear" or self.step is None)):
            return []
        if self.kind == "integer":
            too_close = self._grid < 1 and low * (10**self._grid - 1) < 1
        elif self.scale == "log":
            too_close = self._grid <= 10.0 ** (1 - _DIGITS)
        else:  # one unit in the last of the six digits of the largest value; 1e-300 where that underflows to 0
            largest = max(abs(low), abs(high)) * (1 - 1e-9)
            digit = math.floor(math.log10(largest)) + 1 - _DIGITS
            too_close = self._grid <= max(10.0**digit, 1e-300)
        if not too_close:
            return []
        return [
            f"levels of {self.name!r} are too close to be told apart, "
            f"but got low={low}, high={high}, step={self.step}: widen the range or raise `step`"
        ]

    @property
    def ordered(self) -> bool:
        """Whether neighbouring levels are close to each other (all kinds but `categorical`)."""
        return self.kind != "categorical"

    @property
    def levels(self) -> int:
        """How many different values this parameter can take."""
        if self.values is not None:
            return len(self.values)
        if self.kind == "integer" and self.scale == "log" and self.step is None:
            return int(self._high - self._low) + 1
        return math.floor(self._span / self._grid + 1e-9) + 1 if self._span > 0 else 1

    def value(self, level: int) -> Value:
        """Return the value at `level`, counted from 0.

        Raises:
            IndexError: if the level is not in ``0 .. levels - 1``.

        """
        if not 0 <= level < self.levels:
            raise IndexError(f"`0 <= level < {self.levels}` must hold for {self.name!r}, but got {level}")
        if self.values is not None:
            return self.values[level]
        if self.kind == "integer":
            if self.scale == "log" and self.step is not None:
                return round(self._low * 10 ** (level * self._grid))
            return round(self._low + level * (self._grid if self.scale == "linear" else 1))
        if self.scale == "log":
            return min(max(tidy(10 ** (math.log10(self._low) + level * self._grid)), self._low), self._high)
        return min(max(tidy(self._low + level * self._grid), self._low), self._high)

    def level(self, value: Value) -> int:
        """Return the level nearest to `value`; values outside the range go to the nearer end.

        Raises:
            ValueError: if `value` is not a number, or not in the list of a categorical parameter.

        """
        if self.kind == "categorical":
            for index, known in enumerate(self.values or ()):
                if str(known) == str(value):
                    return index
            raise ValueError(f"{self.name!r} must be one of {list(self.values or ())}, but got {value!r}")
        number = float(value)
        if not math.isfinite(number):
            raise ValueError(f"{self.name!r} must be a finite number, but got {value!r}")
        if self.values is not None:
            return min(range(len(self.values)), key=lambda k: abs(float(self.values[k]) - number))  # type: ignore[index]
        number = min(max(number, self._low), self._high)
        if self.kind == "integer" and self.scale == "log" and self.step is None:
            position = number - self._low
        elif self.scale == "log":
            position = (math.log10(number) - math.log10(self._low)) / self._grid
        else:
            position = (number - self._low) / self._grid if self._grid else 0.0
        return min(max(round(position), 0), self.levels - 1)

    def contains(self, value: Value) -> bool:
        """Return whether `value` is in the range (not necessarily on a level)."""
        if self.kind == "categorical":
            return str(value) in map(str, self.values or ())
        try:
            number = float(value)
        except ValueError:
            return False
        return number in self.values if self.values is not None else self._low <= number <= self._high

    def unit(self, level: int) -> float:
        """Return the place of `level` between 0 (first) and 1 (last), on the parameter's own scale."""
        if self.levels == 1:
            return 0.5
        if self.kind == "integer" and self.scale == "log" and self.step is None:
            return math.log(float(self.value(level)) / self._low) / math.log(self._high / self._low)
        return level / (self.levels - 1)

    def from_unit(self, place: float) -> int:
        """Return the level at `place` in [0, 1]; the inverse of `unit` up to rounding.

        Each level owns an equal share of the interval, so that uniform places give uniform levels. Only integers on a
        log scale, whose levels are all whole numbers, are spaced unevenly.
        """
        place = min(max(place, 0.0), 1.0)
        if self.kind == "integer" and self.scale == "log" and self.step is None:
            return self.level(self._low * (self._high / self._low) ** place)
        return min(int(place * self.levels), self.levels - 1)

    @property
    def _low(self) -> float:
        assert self.low is not None
        return self.low

    @property
    def _high(self) -> float:
        assert self.high is not None
        return self.high

    @property
    def _span(self) -> float:
        return _span(self._low, self._high, self.scale)

    @property
    def _grid(self) -> float:
        """The distance of two levels: in log10 on a log scale, else in the parameter's own unit."""
        return _grid(self.kind, self._low, self._high, self.scale, self.step)


# A search with a long history asks for these a million times. They are not cached in the model: pydantic would serialize the
# model's numbers in another way then, and the digests of studies would depend on what was asked before.
@lru_cache(maxsize=10_000)
def _span(low: float, high: float, scale: Scale) -> float:
    return math.log10(high) - math.log10(low) if scale == "log" else high - low


@lru_cache(maxsize=10_000)
def _grid(kind: Kind, low: float, high: float, scale: Scale, step: float | None) -> float:
    if step is not None:
        return step
    span = _span(low, high, scale)
    if kind == "integer" or span == 0:
        return 1.0
    if scale == "log":  # the largest step up to LOG10_GRID that makes both bounds levels
        return span / max(1, math.ceil(span / LOG10_GRID - 1e-9))
    return span / LINEAR_LEVELS


def _joined(value: Any) -> Any:
    """Return a list of names as one text, joined by commas: the value of a categorical parameter is a single text."""
    if isinstance(value, list | tuple) and value and all(isinstance(item, str) for item in value):
        return ",".join(value)
    return value


class Space(BaseModel):
    """The parameters of a study, in a fixed order.

    Raises:
        pydantic.ValidationError: if two parameters share a name, or there is none.

    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    parameters: tuple[Parameter, ...]

    @model_validator(mode="after")
    def _check(self) -> Space:
        names = self.names
        if not names:
            raise ValueError("a space needs at least one parameter, but got none")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"parameter names must differ, but duplicates are {twice}")
        if problems := [
            text for index, p in enumerate(self.parameters) for text in self._condition_problems(index, p)
        ]:
            raise ValueError("; ".join(problems))
        return self

    def _condition_problems(self, place: int, parameter: Parameter) -> list[str]:
        problems = []
        before = {p.name: p for p in self.parameters[:place]}
        for name, values in (parameter.when or {}).items():
            parent = before.get(name)
            if parent is None or parent.values is None:
                lists = [p.name for p in before.values() if p.values is not None]
                problems.append(
                    f"`when` of {parameter.name!r} names discrete or categorical parameters before it, {lists}, but got {name!r}"
                )
            elif wrong := [value for value in values if not parent.contains(value)]:
                problems.append(
                    f"`when` of {parameter.name!r}: {name!r} has {list(parent.values)}, but not {wrong}"
                )
        return problems

    @property
    def conditional(self) -> bool:
        """Whether a parameter depends on others."""
        return any(parameter.when for parameter in self.parameters)

    def active(self, levels: Sequence[int]) -> list[bool]:
        """Return for each parameter whether its condition holds at a point, so that it varies there."""
        settled = self.settle(levels)
        return [self._condition_holds(parameter, settled) for parameter in self.parameters]

    def settle(self, levels: Sequence[int]) -> tuple[int, ...]:
        """Return the levels with every inactive parameter at its default.

        Parameters are visited in order, and each comes after its parents: where a parent is inactive, the condition is
        tested on the parent's default.
        """
        settled = list(levels)
        for index, parameter in enumerate(self.parameters):
            if parameter.when and not self._condition_holds(parameter, settled):
                assert parameter.default is not None
                settled[index] = parameter.level(parameter.default)
        return tuple(settled)

    def _condition_holds(self, parameter: Parameter, levels: Sequence[int]) -> bool:
        for name, values in (parameter.when or {}).items():
            parent = self[name]
            level = levels[self.names.index(name)]
            if level not in {parent.level(value) for value in values}:
                return False
        return True

    @property
    def names(self) -> list[str]:
        """The names, in order."""
        return [parameter.name for parameter in self.parameters]

    @property
    def size(self) -> int:
        """How many different points the space holds."""
        if not self.conditional:
            return math.prod(parameter.levels for parameter in self.parameters)
        # For each combination of the parents' levels, the other parameters that are active there vary freely
        parents = {name for parameter in self.parameters for name in parameter.when or ()}
        ranges = [range(p.levels) if p.name in parents else (0,) for p in self.parameters]
        combinations = {self.settle(levels) for levels in itertools.product(*ranges)}
        return sum(
            math.prod(
                p.levels
                for p, active in zip(self.parameters, self.active(levels), strict=True)
                if active and p.name not in parents
            )
            for levels in combinations
        )

    def __getitem__(self, name: str) -> Parameter:
        return next(parameter for parameter in self.parameters if parameter.name == name)

    def default(self) -> Assignment | None:
        """Return the default setting exactly as given, or None if a parameter has no default.

        It may lie between two levels: what people compare with must be the number they know, not its neighbour.
        """
        if any(parameter.default is None for parameter in self.parameters):
            return None
        return {p.name: p.default for p in self.parameters if p.default is not None}

    def encode(self, assignment: Mapping[str, Value]) -> tuple[int, ...]:
        """Return the levels of an assignment, one integer per parameter, snapped to the nearest level.

        Raises:
            KeyError: if a parameter is missing.
            ValueError: if a value is no number, or an unknown category.

        """
        missing = [name for name in self.names if name not in assignment]
        if missing:
            raise KeyError(f"the assignment lacks {missing}")
        return self.settle([parameter.level(assignment[parameter.name]) for parameter in self.parameters])

    def decode(self, levels: Sequence[int]) -> Assignment:
        """Return the assignment at `levels`; the inverse of `encode`."""
        settled = self.settle(levels)
        return {p.name: p.value(level) for p, level in zip(self.parameters, settled, strict=True)}

    def snap(self, assignment: Mapping[str, Value]) -> Assignment:
        """Return the nearest assignment on the grid."""
        return self.decode(self.encode(assignment))

    def contains(self, assignment: Mapping[str, Value]) -> bool:
        """Return whether every parameter has a value within its range."""
        return all(p.name in assignment and p.contains(assignment[p.name]) for p in self.parameters)

    def to_unit(self, levels: Sequence[int]) -> list[float]:
        """Return the point of the unit cube for `levels`, each parameter on its own scale."""
        return [p.unit(level) for p, level in zip(self.parameters, levels, strict=True)]

    def from_unit(self, places: Sequence[float]) -> tuple[int, ...]:
        """Return the levels for a point of the unit cube."""
        return self.settle([p.from_unit(place) for p, place in zip(self.parameters, places, strict=True)])


def tribes2024() -> Space:
    """Return the space of Tribes et al. 2024, Table 3: rank, dropout, alpha and learning rate.

    Rank is 2^(r+1) for r in 1..8. The dropout rule as printed, 10^(6-d), contradicts the table's own default
    (d = 5 stands for 0.1); it is read as 10^(d-6). Its last level, d = 6, would be a dropout of 1.0, which
    drops every activation and trains nothing; it is left out.
    """
    return Space(
        parameters=(
            Parameter(name="rank", kind="discrete", values=(4, 8, 16, 32, 64, 128, 256, 512), default=8),
            Parameter(name="dropout", kind="discrete", values=(0.0, 1e-4, 1e-3, 1e-2, 1e-1), default=0.1),
            Parameter(name="alpha", kind="integer", low=1, high=64, default=32),
            Parameter(name="learning_rate", kind="real", low=1e-6, high=1e-3, scale="log", default=1e-5),
        )
    )


def davouse2024() -> Space:
    """Return the space of Davouse 2024 (slides, "Search Space"): learning rate, rank, alpha, dropout, weight decay.

    The slides name no default; the one here is the PEFT default of Tribes et al. with AdamW's weight decay of 0.01.
    """
    return Space(
        parameters=(
            Parameter(name="learning_rate", kind="real", low=1e-10, high=1e-1, scale="log", default=1e-5),
            Parameter(name="rank", kind="integer", low=2, high=512, default=8),
            Parameter(name="alpha", kind="integer", low=1, high=64, default=32),
            Parameter(name="dropout", kind="real", low=0.0, high=0.5, default=0.1),
            Parameter(name="weight_decay", kind="real", low=1e-5, high=1e-1, scale="log", default=1e-2),
        )
    )


PRESETS = {"tribes2024": tribes2024, "davouse2024": davouse2024}
