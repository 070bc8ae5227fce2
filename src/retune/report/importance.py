"""How much of the differences between trials each hyper-parameter explains."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from retune.records import TrialRecord
from retune.selection.ranking import rank
from retune.space import Space
from retune.study import Objective

MIN_TRIALS = 10
_TREES = 64
Measured = tuple[tuple[int, ...], float]


def settings(trials: Sequence[TrialRecord], space: Space, objective: Objective) -> list[TrialRecord]:
    """Return the completed settings of the space, best first: no base, no repeats."""
    ranked = rank(trials, objective)
    return [t for t in ranked if t.role in ("default", "search") and space.contains(t.assignment)]


def importances(trials: Sequence[TrialRecord], space: Space, objective: Objective) -> dict[str, float] | None:
    """Return each hyper-parameter's share of the objective's variance, largest first.

    Functional ANOVA (Hutter, Hoos, Leyton-Brown 2014) over a random forest on the levels of the parameters: the main effects,
    which are scaled to a sum of 1.

    Returns:
        None below `MIN_TRIALS` completed settings, where it would be noise, or if nothing varied.

    """
    done = settings(trials, space, objective)
    done.sort(key=lambda t: t.number)
    measured = tuple(
        (space.encode(t.assignment), value)
        for t in done
        if (value := t.objective(objective.metric)) is not None
    )
    points, values = {point for point, _ in measured}, {value for _, value in measured}
    if len(measured) < MIN_TRIALS or len(values) < 2 or len(points) < 2:
        return None
    found = _shares(tuple(p.levels for p in space.parameters), measured)
    if found is None:
        return None
    named = zip(space.names, found, strict=True)
    return dict(sorted(named, key=lambda entry: -entry[1]))


@functools.lru_cache(maxsize=4)
def _shares(levels: tuple[int, ...], measured: tuple[Measured, ...]) -> list[float] | None:
    """Return each parameter's share, cached: the report and the files for MLflow both show it.

    The forest is that of `optuna.importance.FanovaImportanceEvaluator`, and so are the shares (a test compares them). Optuna
    traverses each tree once per split; here all leaves of all trees are summed at once, which takes a fiftieth of the time.
    """
    import numpy as np
    from sklearn.ensemble import RandomForestRegressor

    forest = RandomForestRegressor(_TREES, max_depth=64, random_state=0)
    forest.fit([point for point, _ in measured], [value for _, value in measured])
    spans = np.maximum(np.array(levels) - 1, 1)
    tree, value, low, high = _leaves([each.tree_ for each in forest.estimators_], spans)
    width = high - low
    volume = width.prod(axis=1)  # shares of the whole space: those of a tree's leaves sum to 1

    def per_tree(amounts: Any) -> Any:
        return np.bincount(tree, amounts, _TREES)

    mean = per_tree(volume * value)
    variance = per_tree(volume * (value - mean[tree]) ** 2)
    varied = variance > 0
    if not varied.any():
        return None
    shares = np.zeros(len(levels))
    for index in range(len(levels)):
        # The mean over all other parameters is piecewise constant, with steps at the borders of leaves: add each leaf's height
        # at its lower border, subtract it at the upper one, and the cumulative sum is the mean in each interval.
        borders = np.unique(np.concatenate([low[:, index], high[:, index]]))
        height = value * np.delete(width, index, axis=1).prod(axis=1)
        steps = np.zeros((_TREES, len(borders)))
        np.add.at(steps, (tree, np.searchsorted(borders, low[:, index])), height)
        np.add.at(steps, (tree, np.searchsorted(borders, high[:, index])), -height)
        marginal = steps.cumsum(axis=1)[:, :-1]
        effect = ((marginal - mean[:, None]) ** 2 * np.diff(borders)).sum(axis=1)
        shares[index] = (effect[varied] / variance[varied]).mean()
    total = shares.sum()
    if total < 1e-9:  # no main effects: the parameters matter only in combination
        return [1 / len(levels)] * len(levels)
    return [float(share) for share in shares / total]


def _leaves(trees: Sequence[Any], spans: Any) -> tuple[Any, Any, Any, Any]:
    """Return of all leaves the tree's number, the prediction, and both borders as shares of each parameter's span."""
    import numpy as np

    found = []
    for number, tree in enumerate(trees):
        low = np.zeros((tree.node_count, len(spans)))
        high = np.ones((tree.node_count, len(spans)))
        nodes = np.zeros(1, dtype=int)
        while len(nodes := nodes[tree.feature[nodes] >= 0]):  # one depth of the tree after the other
            left, right, split = tree.children_left[nodes], tree.children_right[nodes], tree.feature[nodes]
            for child in (left, right):
                low[child], high[child] = low[nodes], high[nodes]
            high[left, split] = low[right, split] = tree.threshold[nodes] / spans[split]
            nodes = np.concatenate([left, right])
        leaf = tree.feature < 0
        found.append((np.full(leaf.sum(), number), tree.value[leaf, 0, 0], low[leaf], high[leaf]))
    tree_of, value, low, high = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return tree_of, value, low, high
