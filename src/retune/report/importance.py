"""How much of the differences between trials each hyper-parameter explains."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import Any

from retune.records import TrialRecord
from retune.selection.ranking import rank
from retune.space import Space
from retune.study import Objective

MIN_TRIALS, MOST_TRIALS = 10, 256


def settings(trials: Sequence[TrialRecord], space: Space, objective: Objective) -> list[TrialRecord]:
    """Return the completed settings of the space, best first: no base, no repeats."""
    ranked = rank(trials, objective)
    return [t for t in ranked if t.role in ("default", "search") and space.contains(t.assignment)]


def importances(trials: Sequence[TrialRecord], space: Space, objective: Objective) -> dict[str, float] | None:
    """Return each hyper-parameter's share of the objective's variance, largest first.

    Functional ANOVA (Hutter, Hoos, Leyton-Brown 2014) over a random forest, as Optuna implements it, on the
    levels of the parameters. Its time grows with the settings: of more than `MOST_TRIALS`, so many drawn at random tell.

    Returns:
        None below `MIN_TRIALS` completed settings, or where nothing varied: it would be noise.

    """
    done = settings(trials, space, objective)
    values = {t.objective(objective.metric) for t in done}
    points = {space.encode(t.assignment) for t in done}
    if len(done) < MIN_TRIALS or len(values) < 2 or len(points) < 2:
        return None
    done.sort(key=lambda t: t.number)
    if len(done) > MOST_TRIALS:
        drawn = sorted(random.Random(0).sample(range(len(done)), MOST_TRIALS))
        done = [done[place] for place in drawn]
    measured = tuple((space.encode(t.assignment), t.objective(objective.metric)) for t in done)
    levels = tuple((p.name, p.levels) for p in space.parameters)
    found = _shares(levels, measured, objective.goal)
    return dict(sorted(found.items(), key=lambda entry: -entry[1]))


@functools.lru_cache(maxsize=4)
def _shares(
    levels: tuple[tuple[str, int], ...],
    measured: tuple[tuple[tuple[int, ...], float | None], ...],
    goal: str,
) -> dict[str, float]:
    """Return each parameter's share, computed once in a process: the page and the files for MLflow both show it."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction=goal)
    distributions: dict[str, Any] = {
        name: optuna.distributions.IntDistribution(0, max(count - 1, 1)) for name, count in levels
    }
    for point, value in measured:
        params = dict(zip(distributions, point, strict=True))
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(found.get(name, 0.0)) for name in distributions}
