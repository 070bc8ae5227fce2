"""The expected objective of each setting, estimated from the noisy results of all trials.

The lowest of many noisy losses is more often lucky than best (the winner's curse). So settings are ranked by the posterior
mean of a Gaussian process over all trials, repeats included: a value that its neighbours do not confirm counts less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from retune.records import TrialRecord, canonical
from retune.space import Space
from retune.study import Objective

_MIN_SETTINGS = 5  # with fewer there is nothing to model: the mean of each setting's own trials is returned
_MAX_TRIALS = 400  # in the model, the best ones: its time grows with the cube


def expected(trials: Sequence[TrialRecord], objective: Objective, space: Space) -> dict[str, float]:
    """Return the expected objective of each completed, trained trial in the space, by the trial's name.

    Of more than 400 trials only the best 400 are modelled and returned.
    """
    sign = 1.0 if objective.goal == "minimize" else -1.0
    measured = [
        (sign * value, trial.number, trial)
        for trial in trials
        if trial.role != "base"
        and (value := trial.objective(objective.metric)) is not None
        and space.contains(trial.assignment)
    ]
    measured.sort(key=lambda entry: (entry[0], entry[1], entry[2].seed))
    kept = [(value, trial) for value, _, trial in measured][:_MAX_TRIALS]
    if len({canonical(trial.assignment) for _, trial in kept}) < _MIN_SETTINGS:
        return _means([trial for _, trial in kept], objective)

    import numpy as np

    from retune.search.gaussian import fit
    from retune.search.lattice import Lattice
    from retune.search.linear_algebra import one_thread
    from retune.search.squashing import squashed, unsquashed

    lattice = Lattice(space)
    places = lattice.features([space.encode(trial.assignment) for _, trial in kept])
    values = np.array([min(max(value, -1e100), 1e100) for value, _ in kept])  # finite when they are squared
    with one_thread():
        mean, _ = fit(places, squashed(values), lattice.groups).predict(places)
    expectations = sign * unsquashed(mean, values)
    return {trial.trial: float(value) for (_, trial), value in zip(kept, expectations, strict=True)}


def _means(trials: Sequence[TrialRecord], objective: Objective) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for trial in trials:
        value = trial.objective(objective.metric)
        assert value is not None
        values.setdefault(canonical(trial.assignment), []).append(value)
    return {t.trial: math.fsum(v) / len(v) for t in trials if (v := values[canonical(t.assignment)])}


def by_expectation(
    ranking: Sequence[TrialRecord], values: dict[str, float], objective: Objective
) -> list[TrialRecord]:
    """Return ranked trials in the order of their expected value; those without one are last, in their old order."""
    sign = 1.0 if objective.goal == "minimize" else -1.0
    return sorted(ranking, key=lambda trial: sign * values.get(trial.trial, sign * math.inf))
