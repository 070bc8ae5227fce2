"""Tree-structured Parzen estimator (Bergstra et al. 2011), by Optuna's `TPESampler`.

Multivariate (Falkner et al. 2018), with running trials as constant liars, so that a batch spreads. The Optuna
study is built from the history at every call. A failed trial counts as the worst result seen: Optuna would
leave it out and fail there again.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from retune.search.problem import Candidate, Levels, Point, Problem
from retune.search.settings import Settings
from retune.space import Parameter

_ASKS_PER_POINT = 10


class TpeSettings(Settings):
    """Settings of `tpe`, named as Optuna names them."""

    n_startup_trials: int = Field(
        10, ge=0, description="random points before the first estimate, the default included"
    )
    n_ei_candidates: int = Field(
        24, ge=1, description="points drawn from the estimate of the good ones, to pick from"
    )
    multivariate: bool = Field(True, description="one joint density instead of one a parameter")
    constant_liar: bool = Field(True, description="count running trials as bad, so that a batch spreads")


def propose(problem: Problem, count: int) -> list[Candidate]:
    """Return the default setting first, then what the estimate favours; asks again where a point is known."""
    import optuna

    settings = problem.settings
    assert isinstance(settings, TpeSettings)
    proposals: dict[Levels, str] = {}
    default = problem.space.default()
    if default is not None and problem.space.encode(default) not in problem.seen:
        proposals[problem.space.encode(default)] = "start: default"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(
        seed=problem.call_seed("tpe"),
        multivariate=settings.multivariate,
        constant_liar=settings.constant_liar,
        n_startup_trials=settings.n_startup_trials,
        n_ei_candidates=settings.n_ei_candidates,
        constraints_func=_constraints if problem.constraints else None,
    )
    study = optuna.create_study(sampler=sampler)
    distributions = {p.name: _distribution(p) for p in problem.space.parameters}
    study.add_trials(_trials(problem, distributions))
    learning = len(problem.ok) + len(problem.failed) >= settings.n_startup_trials
    for _ in range(_ASKS_PER_POINT * count):
        if len(proposals) >= count:
            break
        params = study.ask(distributions).params
        levels = problem.snap([_level(p, params[p.name]) for p in problem.space.parameters])
        if levels not in problem.seen:
            proposals.setdefault(levels, "Parzen estimate" if learning else "random start")
    return [Candidate(levels, origin) for levels, origin in proposals.items()]


def _distribution(parameter: Parameter) -> Any:
    """Return Optuna's distribution over levels, or over values where levels are not evenly spaced."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    if not parameter.ordered:
        return CategoricalDistribution(tuple(range(parameter.levels)))
    if _by_value(parameter):
        return IntDistribution(int(parameter.value(0)), int(parameter.value(parameter.levels - 1)), log=True)
    return IntDistribution(0, parameter.levels - 1)


def _by_value(parameter: Parameter) -> bool:
    return parameter.kind == "integer" and parameter.scale == "log" and parameter.step is None


def _level(parameter: Parameter, value: int) -> int:
    return parameter.level(value) if _by_value(parameter) else value


def _trials(problem: Problem, distributions: dict[str, Any]) -> list[Any]:
    from optuna.trial import TrialState, create_trial

    worst = max((point.value for point in problem.ok), default=0.0)
    trials = []
    for point in (*problem.warm, *problem.points):
        params = {
            p.name: p.value(level) if _by_value(p) else level
            for p, level in zip(problem.space.parameters, point.levels, strict=True)
        }
        running = point.outcome == "running"
        trials.append(
            create_trial(
                state=TrialState.RUNNING if running else TrialState.COMPLETE,
                params=params,
                distributions=distributions,
                value=None if running else point.value if point.outcome == "ok" else worst,
                system_attrs={"constraints": _excesses(point, problem.constraints)} if not running else {},
            )
        )
    return trials


def _excesses(point: Point, constraints: int) -> list[float]:
    return list(point.excesses) if point.outcome == "ok" else [1.0] * constraints


def _constraints(trial: Any) -> list[float]:
    """Never called for trials that are added with their constraints; Optuna wants a function."""
    return list(trial.system_attrs["constraints"])
