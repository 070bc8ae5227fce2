"""Surfaces fitted to measured LoRA trials: our own, and those of Davouse and Talbi where their result files are.

`alpaca-dolly`, `dolly`, `rasbt` and `alpaca-demo` are fitted to surfaces/<name>-tiny-llama.json (`surfaces/measure.py`):
nets for the logarithm of the validation loss above its lowest, since the losses of diverged trials are hundreds of times
as far from the best as good trials are from each other. `davouse-512` and `davouse-64` are the error rates on HellaSwag
of the runs with ranks up to 512 and 64, `davouse-64-mmlu` those on MMLU, fitted by extremely randomised trees (Geurts et
al. 2006), the noise being the benchmark's standard error.
No fit is a Gaussian process, which would favour the algorithms with that model. `python benchmarks/functions.py`
prints the cross-validated errors.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from landscape import Surface, descended
from retune.space import Assignment, Parameter, Space, davouse2024

OWN = ("alpaca-dolly", "dolly", "rasbt", "alpaca-demo")
_64 = ("bo_bis", "lhs_bis", "soo_bis", "bamsoo_bis")
# Runs, highest rank, benchmark, standard error of the benchmark
_DAVOUSE = {
    "davouse-512": (("bo", "lhs", "soo"), 512, "hellaswag", 0.005),
    "davouse-64": (_64, 64, "hellaswag", 0.005),
    "davouse-64-mmlu": (_64, 64, "mmlu", 0.004),
}
_NEAREST = 3  # repeated settings whose spread over seeds makes the noise at a point


@dataclass(frozen=True)
class Measured:
    """Measured trials: inputs in the unit cube, shape (n, d), and values, shape (n,).

    `noise` is the standard deviation of a trial, given its setting and its true value.
    """

    space: Space
    inputs: np.ndarray
    values: np.ndarray
    noise: Callable[[Assignment, float], float]


def names() -> list[str]:
    """Return the names of the surfaces whose data is on this machine."""
    return [*(name for name in OWN if file(name).exists()), *(_DAVOUSE if _davouse_folder() else ())]


def file(name: str) -> Path:
    """Return the file with the trials of one of our own surfaces."""
    return Path(__file__).parent / "surfaces" / f"{name}-tiny-llama.json"


def surface(name: str) -> Surface:
    """Return a fitted surface."""
    measured = _measured(name)
    model = _model(name).fit(measured.inputs, measured.values)
    known: dict[tuple[int, ...], float] = {}

    def true(assignment: Assignment) -> float:
        levels = measured.space.encode(assignment)
        if levels not in known:
            known[levels] = float(model.predict(np.array([measured.space.to_unit(levels)]))[0])
        return known[levels]

    places = np.random.default_rng(0).random((20_000, measured.inputs.shape[1]))
    places = np.vstack([places, measured.inputs])
    starts = places[np.argsort(model.predict(places))[:5]]
    best = min(descended(measured.space, true, measured.space.from_unit(row.tolist())) for row in starts)
    return Surface(name, measured.space, true, lambda a: measured.noise(a, true(a)), best)


def error(name: str) -> str:
    """Return the error of the fit, cross-validated by settings, in words."""
    from sklearn.model_selection import GroupKFold

    measured = _measured(name)
    settings = np.unique(measured.inputs, axis=0, return_inverse=True)[1]
    guessed = np.zeros(len(measured.values))
    for fitted, left in GroupKFold(10).split(measured.inputs, groups=settings):
        model = _model(name).fit(measured.inputs[fitted], measured.values[fitted])
        guessed[left] = model.predict(measured.inputs[left])
    default = measured.space.default()
    assert default is not None
    bound = surface(name).true(default) if name in OWN else math.inf
    parts = []
    for words, kept in (
        ("all", measured.values < math.inf),
        ("better than the default", measured.values < bound),
    ):
        off, values = (guessed - measured.values)[kept], measured.values[kept]
        parts.append(
            f"{words}: {len(values)} trials, error {np.sqrt(np.mean(off**2)):.4f} (median {np.median(abs(off)):.4f}), "
            f"their spread {values.std():.4f}"
        )
    return "; ".join(parts if name in OWN else parts[:1])


def spread(name: str) -> str:
    """Return the noise in words: over seeds at the repeated settings, from the lowest mean to the highest."""
    if name not in OWN:
        return f"noise {_DAVOUSE[name][3]:g}"
    measured = _own(name)
    found: dict[bytes, list[float]] = defaultdict(list)
    for row, value in zip(measured.inputs, measured.values, strict=True):
        found[row.tobytes()].append(value)
    repeated = sorted((float(np.mean(v)), float(np.std(v, ddof=1))) for v in found.values() if len(v) > 2)
    return "noise over seeds: " + ", ".join(f"{sd:.4f} at {mean:.3f}" for mean, sd in repeated)


def _measured(name: str) -> Measured:
    return _own(name) if name in OWN else _davouse(name)


def _model(name: str) -> Nets | Trees:
    return Nets() if name in OWN else Trees()


class Trees:
    """Extremely randomised trees. scikit-learn's own `predict` takes milliseconds for one point."""

    def fit(self, inputs: np.ndarray, values: np.ndarray) -> Trees:
        """Fit, and return itself."""
        from sklearn.ensemble import ExtraTreesRegressor

        forest = ExtraTreesRegressor(100, min_samples_leaf=2, random_state=0).fit(inputs, values)
        self.trees = [tree.tree_ for tree in forest.estimators_]
        return self

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Return the mean of the trees."""
        rows = inputs.astype(np.float32)
        return np.mean([tree.predict(rows)[:, 0] for tree in self.trees], axis=0)


class Nets:
    """The mean of ten small neural networks with different initial weights, for log(value - lowest + margin)."""

    def fit(self, inputs: np.ndarray, values: np.ndarray) -> Nets:
        """Fit, and return itself."""
        from sklearn.neural_network import MLPRegressor

        warnings.filterwarnings("ignore", "lbfgs failed to converge")  # stopping early is part of the model
        self.base = _base(values)
        logs = np.log(values - self.base)
        self.shift, self.scale = logs.mean(), logs.std()
        self.layers = []
        for seed in range(10):
            net = MLPRegressor(
                hidden_layer_sizes=(32, 32), activation="tanh", solver="lbfgs", alpha=0.3, max_iter=500,
                random_state=seed,
            ).fit(_centred(inputs), (logs - self.shift) / self.scale)  # fmt: skip
            self.layers.append(list(zip(net.coefs_, net.intercepts_, strict=True)))
        return self

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Return the values of the networks' mean."""
        total = np.zeros(len(inputs))
        for (w1, b1), (w2, b2), (w3, b3) in self.layers:
            total += (np.tanh(np.tanh(_centred(inputs) @ w1 + b1) @ w2 + b2) @ w3 + b3)[:, 0]
        return self.base + np.exp(self.shift + self.scale * total / len(self.layers))


def _base(values: np.ndarray) -> float:
    """Return a value below all others by half of how far the median is above the lowest."""
    return float(values.min() - 0.5 * (np.median(values) - values.min()))


def _centred(inputs: np.ndarray) -> np.ndarray:
    return (inputs - 0.5) * math.sqrt(12)


def _own(name: str) -> Measured:
    content = json.loads(file(name).read_text())
    space = Space.model_validate(content["space"])
    columns = content["columns"]
    value, rate = columns.index("validation_loss"), columns.index("learning_rate")
    trials = [trial for trial in content["trials"] if trial[value] is not None]
    given = [dict(zip(space.names, trial, strict=False)) for trial in trials]
    inputs = np.array([space.to_unit(space.encode(one)) for one in given])
    values = np.array([trial[value] for trial in trials])
    again: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for trial in trials:
        again[tuple(trial[: len(space.names)])].append(trial[value])
    base = _base(values)
    spreads = [
        (math.log10(key[rate]), math.log(np.mean(found) - base), math.log(np.std(found, ddof=1)))
        for key, found in again.items()
        if len(found) > 1
    ]

    def noise(assignment: Assignment, loss: float) -> float:
        """The spread over seeds (geometric mean) of the repeated settings most like this one in rate and loss."""
        place = math.log10(float(assignment["learning_rate"])), math.log(loss - base)
        nearest = sorted(spreads, key=lambda spread: math.dist(spread[:2], place))[:_NEAREST]
        return math.exp(sum(spread for _, _, spread in nearest) / len(nearest))

    return Measured(space, inputs, values, noise)


def _davouse_folder() -> Path | None:
    """Return the folder of Davouse and Talbi's trials, None if it is not here."""
    root = os.environ.get("RETUNE_DATA")
    folder = Path(root) if root else Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = folder / "davouse"
    return folder if folder.is_dir() else None


def _davouse(name: str) -> Measured:
    folder = _davouse_folder()
    assert folder is not None
    runs, highest, benchmark, standard_error = _DAVOUSE[name]
    rank = Parameter(name="rank", kind="integer", low=2, high=highest, default=8)
    space = Space(parameters=tuple(rank if p.name == "rank" else p for p in davouse2024().parameters))
    columns = ("rank", "alpha", "dropout", "learning_rate", "weight_decay")
    inputs, values = [], []
    for run in runs:
        for line in (folder / f"{run}.json").read_text().splitlines():
            row = json.loads(line) if line.strip() else {}
            score = (row.get("score") or {}).get(benchmark) or {}
            if "acc,none" in score:
                given = dict(zip(columns, row["solution"]["converted_values"], strict=True))
                inputs.append(space.to_unit(space.encode(given)))
                values.append(1 - score["acc,none"])
    return Measured(space, np.array(inputs), np.array(values), lambda *_: standard_error)
