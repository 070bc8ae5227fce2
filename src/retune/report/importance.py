"""How much of the differences between trials each hyper-parameter explains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retune.records import TrialRecord
from retune.selection.ranking import rank
from retune.space import Space
from retune.study import Objective

MIN_TRIALS = 10


def settings(trials: Sequence[TrialRecord], space: Space, objective: Objective) -> list[TrialRecord]:
    """Return the completed settings of the space, best first: no base, no repeats."""
    ranked = rank(trials, objective)
    return [t for t in ranked if t.role in ("default", "search") and space.contains(t.assignment)]


def importances(trials: Sequence[TrialRecord], space: Space, objective: Objective) -> dict[str, float] | None:
    """Return each hyper-parameter's share of the objective's variance, largest first.

    Functional ANOVA (Hutter, Hoos, Leyton-Brown 2014) over a random forest, as Optuna implements it, on the
    levels of the parameters.

    Returns:
        None below `MIN_TRIALS` completed settings, or where nothing varied: it would be noise.

    """
    done = settings(trials, space, objective)
    values = {t.objective(objective.metric) for t in done}
    points = {space.encode(t.assignment) for t in done}
    if len(done) < MIN_TRIALS or len(values) < 2 or len(points) < 2:
        return None
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction=objective.goal)
    distributions: dict[str, Any] = {
        p.name: optuna.distributions.IntDistribution(0, max(p.levels - 1, 1)) for p in space.parameters
    }
    for trial in sorted(done, key=lambda t: t.number):
        levels = dict(zip(space.names, space.encode(trial.assignment), strict=True))
        value = trial.objective(objective.metric)
        study.add_trial(optuna.trial.create_trial(params=levels, distributions=distributions, value=value))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    shares = {name: float(found.get(name, 0.0)) for name in space.names}
    return dict(sorted(shares.items(), key=lambda entry: -entry[1]))
