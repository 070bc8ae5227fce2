"""Surfaces to compare search algorithms on: mixed test functions with noise and failures, and fits to measured trials.

The synthetic ones are shaped like the loss of a LoRA trial over rank, dropout, alpha and learning rate
(`retune.space.tribes2024`): a valley in the learning rate, a weak effect of the rank, noise between seeds, and trials
that diverge. `fitted.py` has the surfaces that are fitted to real trials.

    python benchmarks/functions.py    prints each surface's lowest value, and the errors of the fitted ones
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import fitted
from landscape import Surface, lowest
from retune.space import Assignment, Parameter, Space, tribes2024


def _parts(a: Assignment) -> tuple[float, float, float, float]:
    """Return log2 of the rank, the dropout's place, alpha and log10 of the learning rate."""
    rank, dropout = math.log2(float(a["rank"])), [0.0, 1e-4, 1e-3, 1e-2, 1e-1].index(float(a["dropout"]))
    return rank, dropout / 4, float(a["alpha"]), math.log10(float(a["learning_rate"]))


def valley(a: Assignment) -> float:
    """A valley in the learning rate, a weak gain with rank, and a tilt with alpha over rank."""
    rank, dropout, alpha, rate = _parts(a)
    return (
        0.25 * (rate + 3.7) ** 2
        + 0.004 * (rank - 6) ** 2
        + 0.02 * math.log2(alpha / 2**rank * 2) ** 2 / 4
        + 0.02 * dropout
    )


def ridge(a: Assignment) -> float:
    """What counts is learning rate times alpha over the root of the rank; above a limit training diverges."""
    rank, dropout, alpha, rate = _parts(a)
    push = rate + math.log10(alpha) - 0.15 * rank
    if push > -2.2:
        return math.inf
    return 0.3 * (push + 3.1) ** 2 + 0.006 * (rank - 7) ** 2 + 0.03 * (dropout - 0.5) ** 2


def cliff(a: Assignment) -> float:
    """A plateau at small learning rates, a narrow valley, and failures right next to it."""
    rank, dropout, alpha, rate = _parts(a)
    if rate > -3.45 - 0.02 * (alpha / 32 - 1):
        return math.inf
    return (
        0.5 / (1 + math.exp(-(4.6 + rate) * -6))
        + 0.6 * max(rate + 3.9, 0) ** 2
        + 0.004 * (rank - 5) ** 2
        + 0.01 * dropout
    )


def two_basins(a: Assignment) -> float:
    """Two valleys; the default setting is in the wider and worse one."""
    rank, dropout, alpha, rate = _parts(a)
    wide = 0.2 + 0.15 * (rate + 5.1) ** 2 + 0.003 * (rank - 3) ** 2
    deep = 0.9 * (rate + 3.6) ** 2 + 0.012 * (rank - 7) ** 2 + ((alpha - 14) / 40) ** 2
    return min(wide, deep) + 0.02 * dropout


def shallow(a: Assignment) -> float:
    """Hardly any slope and much noise."""
    rank, dropout, alpha, rate = _parts(a)
    return (
        0.05 * (rate + 4.0) ** 2 + 0.003 * (rank - 6) ** 2 + 0.03 * ((alpha - 40) / 32) ** 2 + 0.02 * dropout
    )


def schedule(a: Assignment) -> float:
    """A mixed space with a category that shifts the valley."""
    shift = {"linear": 0.0, "cosine": 0.3, "constant": -0.4}[str(a["schedule"])]
    extra = {"linear": 0.05, "cosine": 0.0, "constant": 0.12}[str(a["schedule"])]
    rate, decay = math.log10(float(a["learning_rate"])), math.log10(float(a["weight_decay"]))
    rank = math.log2(float(a["rank"]))
    return extra + 0.3 * (rate + 3.8 - shift) ** 2 + 0.02 * (decay + 2) ** 2 + 0.005 * (rank - 5) ** 2


def _schedule_space() -> Space:
    return Space(
        parameters=(
            Parameter(
                name="schedule",
                kind="categorical",
                values=("linear", "cosine", "constant"),
                default="constant",
            ),
            Parameter(name="learning_rate", kind="real", low=1e-6, high=1e-2, scale="log", default=1e-5),
            Parameter(name="weight_decay", kind="real", low=1e-5, high=1e-1, scale="log", default=1e-3),
            Parameter(name="rank", kind="integer", low=1, high=256, scale="log", default=8),
        )
    )


_SYNTHETIC = {
    "valley": 0.01,
    "ridge": 0.01,
    "cliff": 0.01,
    "two_basins": 0.01,
    "shallow": 0.03,
    "schedule": 0.01,
}


def names() -> list[str]:
    """Return the names of the surfaces; of those fitted to measured trials the ones whose data is here."""
    return [*_SYNTHETIC, *fitted.names()]


@cache
def surface(name: str) -> Surface:
    """Return a surface by name, created at its first use."""
    if name not in _SYNTHETIC:
        return fitted.surface(name)
    space = _schedule_space() if name == "schedule" else tribes2024()
    true: Callable[[Assignment], float] = globals()[name]
    return Surface(name, space, true, lambda _: _SYNTHETIC[name], lowest(space, true))


def _report() -> None:
    """Print each surface's lowest value and its value at the default, and the errors of the fitted ones."""
    for name in names():
        found = surface(name)
        default = found.space.default()
        assert default is not None
        print(f"{name:16} best {found.best:.4f}  default {found.true(default):.4f}")
    for name in fitted.names():
        print(f"{name:16} {fitted.error(name)}")


if __name__ == "__main__":
    _report()
