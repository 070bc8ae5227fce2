"""A function to minimise, and the search for its lowest value, by which regrets are measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from retune.space import Assignment, Space


@dataclass(frozen=True)
class Surface:
    """A function to minimise.

    Attributes:
        true: the noise-free value; infinite where a trial fails.
        noise: standard deviation of a measurement there.
        best: the lowest true value, or a close bound of it.
    """

    name: str
    space: Space
    true: Callable[[Assignment], float]
    noise: Callable[[Assignment], float]
    best: float

    def measure(self, assignment: Assignment, rng: np.random.Generator) -> float | None:
        """Return one noisy measurement, None for a failed trial."""
        value = self.true(assignment)
        return None if math.isinf(value) else value + self.noise(assignment) * rng.standard_normal()


def lowest(space: Space, true: Callable[[Assignment], float]) -> float:
    """Return the lowest value that random points and descent on the lattice find."""
    rng = np.random.default_rng(0)
    rows = [space.from_unit(rng.random(len(space.names)).tolist()) for _ in range(3000)]
    ranked = sorted(rows, key=lambda levels: true(space.decode(levels)))
    return min(descended(space, true, levels) for levels in ranked[:8])


def descended(space: Space, true: Callable[[Assignment], float], levels: tuple[int, ...]) -> float:
    """Return the value where steps along single parameters from `levels` no longer help."""
    value, step_found = true(space.decode(levels)), True
    while step_found:
        step_found = False
        for axis, parameter in enumerate(space.parameters):
            for step in (-50, -20, -10, -5, -2, -1, 1, 2, 5, 10, 20, 50):
                level = min(max(levels[axis] + step, 0), parameter.levels - 1)
                moved = (*levels[:axis], level, *levels[axis + 1 :])
                if (found := true(space.decode(moved))) < value - 1e-12:
                    levels, value, step_found = moved, found, True
    return value
