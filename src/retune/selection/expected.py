"""What a setting can be expected to give, from the noisy results of all trials.

The lowest of many noisy losses is lucky more often than it is best. So settings are ranked by the mean of a Gaussian process
over every trial, repeats with other seeds among them: a value that no neighbour confirms counts less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from retune.records import TrialRecord, canonical
from retune.space import Space
from retune.study import Objective

_FEWEST = 5  # different settings; with fewer there is nothing to model: each has the mean of its own trials
_MODELLED = 400  # trials in the model at most: the best ones


def expected(trials: Sequence[TrialRecord], objective: Objective, space: Space) -> dict[str, float]:
    """Return the expected objective of each completed trial of a trained setting, by the trial's name."""
    sign = 1.0 if objective.goal == "minimize" else -1.0
    found = [
        (sign * value, trial.number, trial)
        for trial in trials
        if trial.role != "base"
        and (value := trial.objective(objective.metric)) is not None
        and space.contains(trial.assignment)
    ]
    found.sort(key=lambda entry: (entry[0], entry[1], entry[2].seed))
    kept = [(value, trial) for value, _, trial in found][:_MODELLED]
    if len({canonical(trial.assignment) for _, trial in kept}) < _FEWEST:
        return _means([trial for _, trial in kept], objective)

    import numpy as np

    from retune.search.gaussian import fit
    from retune.search.lattice import Lattice
    from retune.search.squashing import squashed, unsquashed

    lattice = Lattice(space)
    places = lattice.features([space.encode(trial.assignment) for _, trial in kept])
    values = np.array([min(max(value, -1e100), 1e100) for value, _ in kept])
    mean, _ = fit(places, squashed(values), lattice.groups).predict(places)
    levels = sign * unsquashed(mean, values)
    return {trial.trial: float(level) for (_, trial), level in zip(kept, levels, strict=True)}


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
    """Return trials, ranked by their own value, in the order of the expected one; those without one are last."""
    sign = 1.0 if objective.goal == "minimize" else -1.0
    return sorted(ranking, key=lambda trial: sign * values.get(trial.trial, sign * math.inf))
