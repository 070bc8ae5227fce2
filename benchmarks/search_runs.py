"""One run of one algorithm on one surface: retune's own, and the rivals run directly as their users run them.

``hyperopt``, ``optuna``, ``optuna-multivariate`` and ``optuna-gp`` (its GPSampler) are those libraries; failed trials are told as
failed, which both TPEs leave out of their estimates. ``hyperopt-katib`` is hyperopt's TPE as Katib calls it: one seed for all
points of a request, so that they are the same, and the number of points of the request as the number of random first points.
``nomad-optimize`` is NOMAD's own sequential run from retune's start design. ``botorch``, ``hebo``, ``nni`` and ``smac`` run in
environments of their own (`rivals/ask.py`): ``$RETUNE_RIVALS/<name>/bin/python``, installed as benchmarks/rivals/README.md says.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from functions import surface
from landscape import Surface
from retune import search
from retune.search import Objective, Observation

SEPARATE_ENVIRONMENT = ("botorch", "hebo", "nni", "smac")
RIVALS = (
    "hyperopt",
    "hyperopt-katib",
    "optuna",
    "optuna-multivariate",
    "optuna-gp",
    "nomad-optimize",
    *SEPARATE_ENVIRONMENT,
)
SECONDS = 120.0  # for NOMAD's own run, which may spin near convergence or end its process


class Job(NamedTuple):
    """What to run."""

    algorithm: str
    surface: str
    batch: int
    trials: int
    seed: int


class Study:
    """One run on a surface: measures, and keeps the regret after each trial.

    The regret is the true value of the trial that measured best so far, less the surface's lowest value.
    """

    def __init__(self, surface: Surface, trials: int, seed: int) -> None:
        self.surface, self.trials = surface, trials
        self.rng = np.random.default_rng(7919 * seed + 13)
        self.regrets: list[float] = []
        self.failed, self.lowest = 0, math.inf

    def measure(self, assignment: Any) -> float | None:
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
        """The number of trials left."""
        return self.trials - len(self.regrets)


def run(job: Job | tuple[str, str, int, int, int]) -> tuple[list[float], int]:
    """Run one job; return its regret after each trial, and the number of failed trials."""
    job = Job(*job)
    warnings.filterwarnings("ignore")
    study = Study(surface(job.surface), job.trials, job.seed)
    if job.algorithm == "nomad-optimize":
        _apart(study, job.seed)
    else:
        _LOOPS.get(job.algorithm, ours)(study, job)
    return study.regrets, study.failed


def ours(study: Study, job: Job) -> None:
    """Run one of retune's algorithms."""
    history: list[Observation] = []
    space = study.surface.space
    while study.left:
        count = min(job.batch, study.left)
        for given in search.suggest(job.algorithm, space, Objective(), {}, history, count, job.seed):
            value = study.measure(given)
            values = {} if value is None else {"validation_loss": value}
            history.append(
                Observation(given, "completed" if values else "failed", values, number=len(history))
            )


def optuna_tpe(study: Study, job: Job) -> None:
    """Run Optuna's TPE: ask a batch, tell the results; the default setting is enqueued first."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler: Any = optuna.samplers.TPESampler(
        seed=job.seed, multivariate=job.algorithm == "optuna-multivariate", constant_liar=job.batch > 1
    )
    if job.algorithm == "optuna-gp":
        sampler = optuna.samplers.GPSampler(seed=job.seed)
    asking, space = optuna.create_study(sampler=sampler), study.surface.space
    default = space.default()
    assert default is not None
    asking.enqueue_trial(dict(zip(space.names, space.encode(default), strict=True)))
    while study.left:
        asked = [asking.ask() for _ in range(min(job.batch, study.left))]
        told = []
        for trial in asked:
            levels = [
                trial.suggest_int(p.name, 0, p.levels - 1)
                if p.ordered
                else trial.suggest_categorical(p.name, list(range(p.levels)))
                for p in space.parameters
            ]
            told.append(study.measure(space.decode(levels)))
        for trial, value in zip(asked, told, strict=True):
            asking.tell(trial, value, state=optuna.trial.TrialState.FAIL if value is None else None)


def hyperopt_tpe(study: Study, job: Job) -> None:
    """Run hyperopt's TPE with its defaults, as Katib's `tpe` does: failed trials are not reported.

    Katib asks for a batch with one seed, and so gets the same point several times; `hyperopt` here has one a point.
    """
    import hyperopt
    from hyperopt import hp

    space = study.surface.space
    choices = {
        p.name: hp.quniform(p.name, -0.5, p.levels - 0.5, 1) if p.ordered else hp.randint(p.name, p.levels)
        for p in space.parameters
    }
    trials = hyperopt.Trials()
    domain = hyperopt.Domain(lambda given: 0.0, choices)
    rng = np.random.default_rng(job.seed)
    default = space.default()
    while study.left:
        done = []
        count = min(job.batch, study.left)
        as_katib = {"n_startup_jobs": count} if job.algorithm == "hyperopt-katib" else {}
        seed = int(rng.integers(2**31 - 1))
        for place in range(count):
            if place and not as_katib:
                seed = int(rng.integers(2**31 - 1))
            [document] = hyperopt.tpe.suggest(
                trials.new_trial_ids(1), domain, trials, seed, verbose=False, **as_katib
            )
            picked = document["misc"]["vals"]
            levels = [min(max(round(float(picked[p.name][0])), 0), p.levels - 1) for p in space.parameters]
            given = default if default is not None and not study.regrets else space.decode(levels)
            value = study.measure(given)
            if value is None:
                continue
            for p, level in zip(space.parameters, space.encode(given), strict=True):
                picked[p.name] = [level]
            document["state"], document["result"] = hyperopt.JOB_STATE_DONE, {"loss": value, "status": "ok"}
            done.append(document)
        if done:
            trials.insert_trial_docs(done)
            trials.refresh()


def apart(study: Study, job: Job) -> None:
    """Run a rival that lives in an environment of its own."""
    home = Path(os.environ.get("RETUNE_RIVALS", Path(__file__).parents[1] / "build" / "rivals"))
    command = [str(home / job.algorithm / "bin" / "python"), str(Path(__file__).parent / "rivals" / "ask.py")]
    space = study.surface.space
    default = space.default()
    assert default is not None
    setup = {
        "levels": [p.levels for p in space.parameters], "ordered": [p.ordered for p in space.parameters],
        "default": space.encode(default), "seed": job.seed, "trials": job.trials,
    }  # fmt: skip
    with subprocess.Popen(
        [*command, job.algorithm],
        env={**os.environ, "PYTHONHASHSEED": "0"},  # SMAC3's answers depend on it, beside the seed
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        bufsize=1,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps(setup) + "\n")
        while study.left:
            child.stdin.write(json.dumps({"ask": min(job.batch, study.left)}) + "\n")
            points = json.loads(child.stdout.readline())
            results = [(point, study.measure(space.decode(point))) for point in points]
            child.stdin.write(json.dumps({"tell": results}) + "\n")


_LOOPS: dict[str, Callable[[Study, Job], None]] = {
    "optuna": optuna_tpe,
    "optuna-multivariate": optuna_tpe,
    "optuna-gp": optuna_tpe,
    "hyperopt": hyperopt_tpe,
    "hyperopt-katib": hyperopt_tpe,
    **dict.fromkeys(SEPARATE_ENVIRONMENT, apart),
}


def _apart(study: Study, seed: int) -> None:
    """Run `nomad_optimize` in a process of its own, and keep what it measured even if that ends badly."""
    here, there = get_context("fork").Pipe(duplex=False)
    child = get_context("fork").Process(target=nomad_optimize, args=(study, seed, there))
    child.start()
    there.close()
    try:
        while here.poll(SECONDS):
            study.regrets, study.failed = here.recv()
    except EOFError:
        pass
    child.kill()
    child.join()
    study.regrets += study.regrets[-1:] * study.left


def nomad_optimize(study: Study, seed: int, answer: Connection) -> None:
    """Run NOMAD's own `optimize` on the levels, from the same points as retune's `nomad`."""
    import PyNomad

    space = study.surface.space
    tops = [p.levels - 1 for p in space.parameters]

    def evaluate(point: Any) -> int:
        if not study.left:
            return 0
        levels = [round(point.get_coord(i)) for i in range(point.size())]
        value = study.measure(space.decode(levels))
        answer.send((study.regrets, study.failed))
        if value is None:
            return 0
        point.setBBO(repr(value).encode())
        return 1

    start = search.suggest("nomad", space, Objective(), {}, [], 9, seed)
    settings = [
        "DISPLAY_DEGREE 0", f"BB_INPUT_TYPE ( {' '.join('I' * len(tops))} )", "BB_OUTPUT_TYPE OBJ",
        f"MAX_BB_EVAL {study.trials}", f"SEED {seed + 1}", "X0 start.txt",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        with open("start.txt", "w") as file:  # the only way to give NOMAD several points
            file.writelines(f"{' '.join(map(str, space.encode(given)))}\n" for given in start)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # NOMAD prints at any display degree
        PyNomad.optimize(evaluate, [], [0] * len(tops), tops, settings)
    answer.close()
    os._exit(0)
