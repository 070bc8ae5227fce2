"""The lattice of a space as arrays: many points at once, for models."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retune.space import Parameter, Space

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# On a log scale the models see powers of the values: 0 would be the logarithm, 1 the value (Box and Cox 1964). What a parameter
# on a log scale does fades towards its small values: losses are flat over decades of small learning rates, steep over large ones.
_POWER = 0.2


class Lattice:
    """Levels and features of many points.

    Attributes:
        tops: the highest level of each parameter.
        ordered: whether each parameter is ordered.
        groups: for each feature column, the number of the length scale that it shares; one a parameter that
            varies.
    """

    def __init__(self, space: Space) -> None:
        self._parameters = space.parameters
        self.tops: Ints = np.array([p.levels - 1 for p in space.parameters], dtype=np.int64)
        self.ordered: NDArray[np.bool_] = np.array([p.ordered for p in space.parameters])
        groups: list[int] = []
        for parameter in self._varying():
            group = groups[-1] + 1 if groups else 0
            groups += [group] * (1 if parameter.ordered else parameter.levels)
        self.groups: Ints = np.array(groups, dtype=np.int64)
        self._conditions = [_condition(space, p) for p in space.parameters]

    def _varying(self) -> list[Parameter]:
        return [p for p in self._parameters if p.levels > 1]

    def settled(self, levels: Ints) -> Ints:
        """Return levels, shape (m, d), with each parameter whose condition does not hold at its default (`Space.settle`)."""
        if not any(self._conditions):
            return levels
        settled = levels.copy()
        for axis, condition in enumerate(self._conditions):
            if condition is not None:
                default, parents = condition
                holds = np.all([np.isin(settled[:, parent], allowed) for parent, allowed in parents], axis=0)
                settled[~holds, axis] = default
        return settled

    def levels(self, positions: Floats) -> Ints:
        """Return the levels, shape (m, d), at positions in the unit cube, shape (m, d)."""
        levels = np.minimum((positions * (self.tops + 1)).astype(np.int64), self.tops)
        for axis, parameter in enumerate(self._parameters):
            if _by_value(parameter):
                low, high = float(parameter.value(0)), float(parameter.value(parameter.levels - 1))
                levels[:, axis] = np.clip(
                    np.rint(low * (high / low) ** positions[:, axis] - low), 0, self.tops[axis]
                )
        return levels

    def positions(self, levels: Any) -> Floats:
        """Return the middle of the cell of each point in the unit cube, shape (m, d); the inverse of `levels`."""
        array = np.asarray(levels, dtype=np.float64).reshape(-1, len(self.tops))
        units = (array + 0.5) / (self.tops + 1)
        for axis, parameter in enumerate(self._parameters):
            if _by_value(parameter) and parameter.levels > 1:
                low, high = float(parameter.value(0)), float(parameter.value(parameter.levels - 1))
                units[:, axis] = np.log((array[:, axis] + low) / low) / np.log(high / low)
        return units

    def features(self, levels: Any) -> Floats:
        """Return model inputs, shape (m, columns): ordered parameters on [0, 1], others as one column a category."""
        array = self.settled(np.asarray(levels, dtype=np.int64).reshape(-1, len(self.tops)))
        units, columns = self.positions(array), []
        for axis, parameter in enumerate(self._parameters):
            if parameter.levels == 1:
                continue
            if parameter.ordered:
                columns.append(_bent(parameter, units[:, axis : axis + 1]))
            else:  # two different categories are as far apart as half the range
                columns.append(np.eye(parameter.levels)[array[:, axis]] * np.sqrt(0.125))
        return np.hstack(columns) if columns else np.zeros((len(array), 0))


def _condition(space: Space, parameter: Parameter) -> tuple[int, list[tuple[int, list[int]]]] | None:
    """Return the level of a conditional parameter's default, and the axis and the levels that each parent must have."""
    if not parameter.when:
        return None
    assert parameter.default is not None
    parents = [
        (space.names.index(name), [space[name].level(value) for value in values])
        for name, values in parameter.when.items()
    ]
    return parameter.level(parameter.default), parents


def _bent(parameter: Parameter, units: Floats) -> Floats:
    """Return positions on [0, 1] as the models see them."""
    if parameter.scale != "log":
        return units
    low, high = float(parameter.value(0)), float(parameter.value(parameter.levels - 1))
    rate = _POWER * (np.log(high) - np.log(low))
    bent: Floats = np.expm1(rate * units) / np.expm1(rate)
    return bent


def _by_value(parameter: Parameter) -> bool:
    return parameter.kind == "integer" and parameter.scale == "log" and parameter.step is None
