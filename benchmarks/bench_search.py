"""Compare search algorithms on the surfaces of functions.py: regret of the best trial so far.

    python benchmarks/bench_search.py                              a small run: 5 seeds, 50 trials, batches of 1 and 8
    python benchmarks/bench_search.py --seeds 20 --trials 100 --batches 1 4 8

Each run is a study: points are asked for in batches, measured with noise, and some fail. The regret of a run after t
trials is the true value of the trial that measured best so far, less the surface's lowest value. Printed are medians
over the seeds, the mean over the surfaces, and the mean number of failed trials; the JSON holds quartiles of every
surface. ``hyperopt``, ``optuna`` and ``optuna-multivariate`` are those libraries run directly, failed trials told as
failed; ``nomad-optimize`` is NOMAD's own sequential run with the same number of start points.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import json
import math
import platform
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from functions import Surface, names, surface
from retune import search
from retune.records import now, versions
from retune.search import Objective, Observation
from retune.space import Assignment

MARKS = (15, 25, 30, 50, 100)
Ask = Callable[[int], list[Assignment]]
Tell = Callable[[Assignment, float | None], None]


class Study:
    """One run on a surface: measures, and keeps the regret after each trial."""

    def __init__(self, surface: Surface, trials: int, seed: int) -> None:
        self.surface, self.trials = surface, trials
        self.rng = np.random.default_rng(7919 * seed + 13)
        self.regrets: list[float] = []
        self.failed, self.lowest = 0, math.inf

    def measure(self, assignment: Assignment) -> float | None:
        """Return a measurement and note the regret; None for a failed trial."""
        value = self.surface.measure(assignment, self.rng)
        regret = self.regrets[-1] if self.regrets else math.inf
        if value is None:
            self.failed += 1
        elif value < self.lowest:
            self.lowest, regret = value, self.surface.true(assignment) - self.surface.best
        self.regrets.append(regret)
        return value

    @property
    def left(self) -> int:
        """How many trials are still to be made."""
        return self.trials - len(self.regrets)


def ours(study: Study, algorithm: str, batch: int, seed: int) -> None:
    """Run one of retune's algorithms."""
    history: list[Observation] = []
    while study.left:
        for given in search.suggest(
            algorithm, study.surface.space, Objective(), {}, history, min(batch, study.left), seed
        ):
            value = study.measure(given)
            values = {} if value is None else {"validation_loss": value}
            history.append(
                Observation(given, "completed" if values else "failed", values, number=len(history))
            )


def optuna_tpe(study: Study, multivariate: bool, batch: int, seed: int) -> None:
    """Run Optuna's TPE as its users do: ask a batch, tell the results; the default setting is enqueued first."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=multivariate, constant_liar=batch > 1)
    run, space = optuna.create_study(sampler=sampler), study.surface.space
    default = space.default()
    assert default is not None
    run.enqueue_trial(
        {p.name: level for p, level in zip(space.parameters, space.encode(default), strict=True)}
    )
    while study.left:
        asked = [run.ask() for _ in range(min(batch, study.left))]
        for trial in asked:
            levels = [
                trial.suggest_int(p.name, 0, p.levels - 1)
                if p.ordered
                else trial.suggest_categorical(p.name, list(range(p.levels)))
                for p in space.parameters
            ]
            value = study.measure(space.decode(levels))
            trial.set_user_attr("value", value)
        for trial in asked:
            value = trial.user_attrs["value"]
            run.tell(trial, value, state=optuna.trial.TrialState.FAIL if value is None else None)


def hyperopt_tpe(study: Study, batch: int, seed: int) -> None:
    """Run hyperopt's TPE; as Katib's `tpe` does, failed trials are not told."""
    import hyperopt
    from hyperopt import hp

    space = study.surface.space
    choices = {
        p.name: hp.quniform(p.name, -0.5, p.levels - 0.5, 1) if p.ordered else hp.randint(p.name, p.levels)
        for p in space.parameters
    }
    trials = hyperopt.Trials()
    domain = hyperopt.Domain(lambda given: 0.0, choices)
    rng = np.random.default_rng(seed)
    default = space.default()
    while study.left:
        count = min(batch, study.left)
        documents = hyperopt.tpe.suggest(
            trials.new_trial_ids(count), domain, trials, int(rng.integers(2**31 - 1))
        )
        for k, document in enumerate(documents):
            picked = document["misc"]["vals"]
            levels = [min(max(round(float(picked[p.name][0])), 0), p.levels - 1) for p in space.parameters]
            given = default if default is not None and not study.regrets and k == 0 else space.decode(levels)
            value = study.measure(given)
            if value is None:
                continue
            for p, level in zip(space.parameters, space.encode(given), strict=True):
                picked[p.name] = [level]
            document["state"], document["result"] = hyperopt.JOB_STATE_DONE, {"loss": value, "status": "ok"}
            trials.insert_trial_docs([document])
        trials.refresh()


def nomad_optimize(study: Study, seed: int) -> None:
    """Run NOMAD's own sequential `optimize` on the levels, from the default and 8 Latin-hypercube points."""
    import PyNomad

    space = study.surface.space
    default, tops = space.default(), [p.levels - 1 for p in space.parameters]
    assert default is not None

    def evaluate(point: object) -> int:
        if not study.left:
            return 0
        levels = [round(point.get_coord(i)) for i in range(point.size())]  # type: ignore[attr-defined]
        value = study.measure(space.decode(levels))
        if value is None:
            return 0
        point.setBBO(repr(value).encode())  # type: ignore[attr-defined]
        return 1

    settings = [
        "DISPLAY_DEGREE 0", f"BB_INPUT_TYPE ( {' '.join('I' * len(tops))} )", "BB_OUTPUT_TYPE OBJ",
        f"MAX_BB_EVAL {study.trials}", "LH_SEARCH 8 0", f"SEED {seed + 1}",
    ]  # fmt: skip
    PyNomad.optimize(evaluate, list(space.encode(default)), [0] * len(tops), tops, settings)
    study.regrets += study.regrets[-1:] * study.left


def run(job: tuple[str, str, int, int, int]) -> tuple[list[float], int]:
    """Make one run; return its regrets and its failed trials."""
    algorithm, name, batch, trials, seed = job
    warnings.filterwarnings("ignore")
    study = Study(surface(name), trials, seed)
    if algorithm in search.ALGORITHMS:
        ours(study, algorithm, batch, seed)
    elif algorithm.startswith("optuna"):
        optuna_tpe(study, algorithm == "optuna-multivariate", batch, seed)
    elif algorithm == "hyperopt":
        hyperopt_tpe(study, batch, seed)
    else:
        with get_context("spawn").Pool(1) as pool:  # NOMAD's state is the process's
            return pool.apply(_optimized, (name, trials, seed))
    return study.regrets, study.failed


def _optimized(name: str, trials: int, seed: int) -> tuple[list[float], int]:
    study = Study(surface(name), trials, seed)
    nomad_optimize(study, seed)
    return study.regrets, study.failed


def summary(runs: list[tuple[list[float], int]], marks: list[int]) -> dict[str, object]:
    """Return quartiles of the regret at the marks, and the mean number of failed trials."""
    regrets = np.array([regret for regret, _ in runs])
    quartiles = {
        str(mark): np.percentile(regrets[:, mark - 1], [25, 50, 75]).round(5).tolist() for mark in marks
    }
    return {"regret": quartiles, "failed": float(np.mean([failed for _, failed in runs]))}


def main() -> None:
    """Run, print and write."""
    others = ["optuna", "optuna-multivariate", "hyperopt", "nomad-optimize"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--algorithms", nargs="+", default=[*search.ALGORITHMS, *others])
    parser.add_argument("--surfaces", nargs="+", default=names())
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=max((os.cpu_count() or 2) // 2, 1))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "search.json")
    given = parser.parse_args()
    marks = [mark for mark in MARKS if mark <= given.trials]
    rows = []
    with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool:
        for batch in given.batches:
            for algorithm in given.algorithms:
                if algorithm == "nomad-optimize" and batch > 1:
                    continue
                jobs = [
                    (algorithm, name, batch, given.trials, seed)
                    for name in given.surfaces
                    for seed in range(given.seeds)
                ]
                results = list(pool.map(run, jobs))
                found = {}
                for place, name in enumerate(given.surfaces):
                    found[name] = summary(results[place * given.seeds : (place + 1) * given.seeds], marks)
                rows.append({"algorithm": algorithm, "batch": batch, "surfaces": found})
                _print(rows[-1], marks)
    machine = {"machine": platform.machine(), "cores": os.cpu_count()}
    settings = {"trials": given.trials, "seeds": given.seeds}
    packages = versions("numpy", "scipy", "optuna", "hyperopt", "PyNomadBBO", "scikit-learn")
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(
        json.dumps({"measured": now(), **machine, **settings, "versions": packages, "rows": rows}, indent=1)
        + "\n"
    )


def _print(row: dict[str, object], marks: list[int]) -> None:
    found: dict[str, dict[str, dict[str, list[float]]]] = row["surfaces"]  # type: ignore[assignment]
    means = [np.mean([1000 * one["regret"][str(mark)][1] for one in found.values()]) for mark in marks]
    failed = np.mean([float(one["failed"]) for one in found.values()])  # type: ignore[arg-type]
    numbers = " ".join(f"{mean:6.1f}" for mean in means)
    each = "  ".join(f"{name} {1000 * one['regret'][str(marks[-1])][1]:.0f}" for name, one in found.items())
    print(
        f"batch {row['batch']}  {row['algorithm']:20} {numbers}   failed {failed:4.1f}   {each}", flush=True
    )


if __name__ == "__main__":
    main()
