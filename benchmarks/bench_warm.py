"""Measure the effect of a warm start: a study that knows the trials of an earlier one, and the same study without them.

    python benchmarks/bench_warm.py                    the whole comparison
    python benchmarks/bench_warm.py --seeds 2 --surfaces valley --lines warm.jsonl --out warm.json

The earlier study is 50 trials of `mads-global` on another surface than the one that is then searched:

* `shifted`: the same with all values times 1.6 plus 0.7, as by another data set or number of epochs;
* `moved`: that, and every setting moved by a twentieth of each ordered parameter's range, so that the optimum lies elsewhere;
* `unlike`: that with each ordered parameter's range turned round: what was good is bad.

`cold` knows nothing, `warm` is told by `search.warm_start`, `raw` compares the earlier values as they are and keeps its start
design, as retune did before. The goal: warm must not be behind cold by more than a tenth of the cold study's regret at
any mark, in the median over surfaces, on `shifted` and `moved` and `unlike` alike. Runs already in `--lines` are not made again.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import wilcoxon

from functions import names, surface
from landscape import Surface
from retune import search
from retune.records import now, versions
from retune.search import SAME, Objective, Observation
from search_runs import Study

HERE = Path(__file__).parent
KINDS, ARMS, MARKS = ("shifted", "moved", "unlike"), ("cold", "warm", "raw"), (5, 10, 15, 25)
MARGIN = 0.1


class Job(NamedTuple):
    """One study: how it begins, on which surface, after which earlier study."""

    arm: str
    kind: str
    surface: str
    algorithm: str
    batch: int
    seed: int


def earlier(name: str, kind: str, seed: int, trials: int = 50) -> list[Observation]:
    """Return the trials of an earlier study."""
    known = surface(name)
    space = known.space

    def true(given: Any) -> float:
        levels = list(space.encode(given))
        for axis, parameter in enumerate(space.parameters):
            top = parameter.levels - 1
            if parameter.ordered and kind == "moved":
                levels[axis] = min(max(levels[axis] + round(top / 20), 0), top)
            if parameter.ordered and kind == "unlike":
                levels[axis] = top - levels[axis]
        return 1.6 * known.true(space.decode(levels)) + 0.7

    other = Surface(name, space, true, known.noise, 0.0)
    history: list[Observation] = []
    rng = np.random.default_rng(seed)
    while len(history) < trials:
        for given in search.suggest("mads-global", space, Objective(), {}, history, 10, 1000 + seed):
            value = other.measure(given, rng)
            values = {} if value is None else {"validation_loss": value}
            history.append(
                Observation(given, "completed" if values else "failed", values, number=len(history))
            )
    return history


def run(job: Job) -> list[float]:
    """Return the regret after each trial."""
    study = Study(surface(job.surface), MARKS[-1], job.seed)
    history: list[Observation] = []
    if job.arm != "cold":
        source = "before" if job.arm == "warm" else SAME
        history = [
            Observation(e.assignment, e.status, e.values, f"w{e.number}", warm=True, source=source)
            for e in earlier(job.surface, job.kind, job.seed)
        ]
    told = len(history)
    while study.left:
        count = min(job.batch, study.left)
        for given in search.suggest(
            job.algorithm, study.surface.space, Objective(), {}, history, count, job.seed
        ):
            value = study.measure(given)
            values = {} if value is None else {"validation_loss": value}
            status: Any = "completed" if values else "failed"
            history.append(Observation(given, status, values, number=len(history) - told))
    return study.regrets


def summary(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, for each kind, algorithm, batch and mark: the medians' ratio to cold's, and Wilcoxon's test over the pairs."""
    regrets: dict[tuple[Any, ...], list[float]] = {
        tuple(line["job"]): [math.inf if r is None else r for r in line["regrets"]] for line in lines
    }
    rows = []
    cells = sorted({(j[1], j[3], j[4]) for j in regrets if j[0] != "cold"})
    for kind, algorithm, batch in cells:
        for arm in ("warm", "raw"):
            for mark in MARKS:
                ratios, differences = [], []
                for name in sorted({j[2] for j in regrets}):
                    pairs = [
                        (found[mark - 1], regrets[cold][mark - 1])
                        for j, found in regrets.items()
                        if j[:5] == (arm, kind, name, algorithm, batch)
                        and (cold := ("cold", "", name, algorithm, batch, j[5])) in regrets
                    ]
                    if pairs:
                        ours, theirs = np.median(np.array(pairs), axis=0)
                        ratios.append(float(ours / max(theirs, 1e-9)))
                        differences += [(a - b) / max(theirs, 1e-9) for a, b in pairs if math.isfinite(a - b)]
                if not ratios:
                    continue
                some = any(differences)
                behind = float(wilcoxon(differences, alternative="greater").pvalue) if some else 1.0
                ahead = float(wilcoxon(differences, alternative="less").pvalue) if some else 1.0
                rows.append(
                    {
                        "earlier": kind, "algorithm": algorithm, "batch": batch, "arm": arm, "trials": mark,
                        "surfaces": len(ratios), "pairs": len(differences), "ratio": round(float(np.median(ratios)), 3),
                        "worst": round(max(ratios), 3), "p_behind": round(behind, 4), "p_ahead": round(ahead, 4),
                        "holds": float(np.median(ratios)) <= 1 + MARGIN,
                    }
                )  # fmt: skip
    return rows


def main() -> None:
    """Run what is missing, print the summary and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--surfaces", nargs="+", default=[n for n in names() if n != "davouse-512"])
    parser.add_argument("--algorithms", nargs="+", default=["mads-global"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument(
        "--first-seed", type=int, default=0, help="others than those that a rule was chosen by"
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--lines", type=Path, default=HERE.parent / "build" / "warm.jsonl")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "warm.json")
    given = parser.parse_args()
    given.lines.parent.mkdir(parents=True, exist_ok=True)
    jobs = [
        Job(arm, kind if arm != "cold" else "", name, algorithm, given.batch, seed)
        for seed in range(given.first_seed, given.first_seed + given.seeds)
        for name in given.surfaces
        for algorithm in given.algorithms
        for kind in KINDS
        for arm in given.arms
    ]
    jobs = list(dict.fromkeys(jobs))
    lines = (
        [json.loads(line) for line in given.lines.read_text().splitlines()] if given.lines.exists() else []
    )
    done = {tuple(line["job"]) for line in lines}
    todo = [job for job in jobs if tuple(job) not in done]
    with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool:
        for job, regrets in zip(todo, pool.map(run, todo), strict=True):
            line = {"job": job, "regrets": [round(r, 6) if math.isfinite(r) else None for r in regrets]}
            lines.append(json.loads(json.dumps(line)))
            with given.lines.open("a") as file:
                file.write(json.dumps(line) + "\n")
    wanted = {tuple(job) for job in jobs}
    rows = summary([line for line in lines if tuple(line["job"]) in wanted])
    content = {
        "measured": now(),
        "versions": versions("numpy", "scipy"),
        "seeds": [given.first_seed, given.first_seed + given.seeds - 1],
        "margin": MARGIN,
        "surfaces": given.surfaces,
        "rows": rows,
    }
    given.out.write_text(json.dumps(content, indent=1) + "\n")
    print(
        "earlier   algorithm    batch  arm   trials  median ratio to cold (worst surface)  p behind  p ahead"
    )
    for row in rows:
        print(
            f"{row['earlier']:9} {row['algorithm']:12} {row['batch']:5}  {row['arm']:5} {row['trials']:6}  "
            f"{row['ratio']:8.2f} ({row['worst']:.2f}) {row['p_behind']:20.4f} {row['p_ahead']:9.4f}"
            + ("" if row["holds"] else "  BEHIND")
        )


if __name__ == "__main__":
    main()
