"""Compare search algorithms on the surfaces of functions.py, and judge retune's goals.

    python benchmarks/bench_search.py                 the whole comparison: about 40 minutes of one core
    python benchmarks/bench_search.py --half          25 trials of the default against 50 of each rival, on real surfaces
    python benchmarks/bench_search.py --seeds 2 --trials 25 --surfaces valley --out search.json --page search.md

Each run is a study: points are asked for in batches, measured with noise, and some fail (`search_runs.py`). Every
finished run appends a line to `--lines`; run again to carry on: a run whose line is there, and whose code has not changed
since, is not made again. `--report` makes none and takes what has all its seeds; the errors of the fits, which take minutes,
it keeps from the results that it replaces. Without `--algorithms` and `--batches` the comparison is `PLAN`. Written are the
regrets of every run at the marks as JSON, and the page (`search_page.py`) with medians, quartiles and what `search_goals.py`
says of the goals.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # threads slow down small matrices
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

import fitted
import measuring
import search_goals
import search_page
from functions import names, surface
from retune import search
from retune.records import digest, now, versions
from search_runs import RIVALS, SEPARATE_ENVIRONMENT, Job, run

HERE = Path(__file__).parent
MARKS = (10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100)
ALL, FAILING = "*", ("ridge", "cliff")
PLAN = (
    *((name, batch, ALL) for batch in (8, 1) for name in ("mads-global", "optuna-multivariate")),
    *(("hyperopt", batch, (*search_goals.REAL, *FAILING)) for batch in (8, 1)),
    ("nomad", 8, ALL),
    ("nomad-optimize", 1, ALL),
    *((name, 4, ALL) for name in ("mads-global", "optuna-multivariate")),
    ("hyperopt", 4, (*search_goals.REAL, *FAILING)),
    *(("nomad", batch, search_goals.REAL) for batch in (4, 1)),
    *(
        (name, 8, ALL)
        for name in ("hyperopt-katib", "optuna-gp", "optuna", "gp", "tpe", "bamsoo", "soo", "lhs", "random")
    ),
)
"""Algorithms, batches and surfaces: what the goals speak of, in the order of their weight, then the rest."""
HALF = (
    *(
        (name, 8)
        for name in (
            "mads-global",
            "random",
            "hyperopt-katib",
            "optuna-multivariate",
            "hyperopt",
            "nni",
            "optuna",
        )
    ),
    *((name, 1) for name in ("mads-global", "nni", "hyperopt", "optuna-multivariate", "optuna")),
    *((name, batch) for batch in (8, 1) for name in ("optuna-gp", "smac", "botorch", "hebo")),
)
"""Algorithms and batches of `--half`, the cheap ones first; those that were not finished are left out of the page."""


def plan(given: argparse.Namespace) -> list[Job]:
    """Return the runs."""
    cells: list[tuple[str, int, str | tuple[str, ...]]] = [
        (name, batch, ALL)
        for name in given.algorithms or (*search.ALGORITHMS, *RIVALS)
        for batch in ((1,) if name == "nomad-optimize" else given.batches or (8,))
    ]
    if not given.algorithms and not given.batches:
        cells = [(name, batch, ALL) for name, batch in HALF] if given.half else list(PLAN)
    return [
        Job(algorithm, name, batch, 25 if given.half and algorithm == "mads-global" else given.trials, seed)
        for algorithm, batch, where in cells
        for seed in range(given.first_seed, given.first_seed + given.seeds)
        for name in given.surfaces
        if where == ALL or name in where
    ]


def key(job: Job) -> str:
    """Return what a run depends on: the job, and the code of the algorithm and of the surface."""
    patterns = ["benchmarks/search_runs.py", "benchmarks/functions.py", "benchmarks/landscape.py"]
    if job.surface in fitted.names():
        patterns.append("benchmarks/fitted.py")
    if job.surface in fitted.OWN:
        patterns.append(f"benchmarks/surfaces/{fitted.file(job.surface).name}")
    if job.algorithm in SEPARATE_ENVIRONMENT:
        patterns.append("benchmarks/rivals/ask.py")
    if job.algorithm not in RIVALS:
        patterns.append("src/retune/search/*.py")
    return digest([*job, *map(_content, patterns)])


@cache
def _content(pattern: str) -> str:
    return digest([digest(path.read_bytes()) for path in sorted(HERE.parent.glob(pattern))])


def measured(lines: Path) -> dict[str, tuple[list[float], int]]:
    """Return the finished runs in a file of JSON lines, by key."""
    found = {}
    for line in lines.read_text().splitlines() if lines.exists() else ():
        if not line.endswith("}"):  # a line cut by a kill is measured again
            continue
        row = json.loads(line)
        regrets: list[float] = []
        for until, regret in row["regrets"]:  # only the changes are written
            regrets += [regret] * (until - len(regrets))
        found[row["key"]] = regrets, row["failed"]
    return found


def write_line(lines: Path, job: Job, regrets: Sequence[float], failed: int) -> None:
    """Append a finished run."""
    ends = [t for t in range(1, len(regrets) + 1) if t == len(regrets) or regrets[t] != regrets[t - 1]]
    row = {"key": key(job), **job._asdict(), "regrets": [(t, round(regrets[t - 1], 6)) for t in ends]}
    with lines.open("a") as file:
        file.write("\n" + json.dumps(row | {"failed": failed}))  # first the end of a line that a kill cut


def rows(jobs: Sequence[Job], known: dict[str, tuple[list[float], int]]) -> list[dict[str, Any]]:
    """Return one row per algorithm, surface and batch: the regrets at the marks, one number per seed."""
    cells: dict[tuple[str, str, int], list[tuple[list[float], int] | None]] = {}
    for job in jobs:
        cells.setdefault((job.surface, job.algorithm, job.batch), []).append(known.get(key(job)))
    found, lacking = [], []
    for (name, algorithm, batch), results in sorted(cells.items()):
        runs = [result for result in results if result is not None]
        if len(runs) < len(results):
            lacking.append(f"{algorithm} in batches of {batch} on {name}")
            continue
        best = surface(name).best
        regret = {
            str(mark): [round(regrets[mark - 1], 5) for regrets, _ in runs]
            for mark in MARKS
            if mark <= len(runs[0][0])
        }
        quartiles = {
            mark: np.percentile(values, [25, 50, 75]).round(5).tolist() for mark, values in regret.items()
        }
        found.append(
            {
                "surface": name,
                "algorithm": algorithm,
                "batch": batch,
                "regret_quartiles": quartiles,
                "best_so_far_quartiles": {m: [round(v + best, 5) for v in q] for m, q in quartiles.items()},
                "failed": [failed for _, failed in runs],
                "regret": regret,
            }
        )
    if lacking:
        print(f"left out, since some seeds lack: {', '.join(lacking)}")
    return found


def fits(surfaces: Sequence[str], before: Path | None) -> dict[str, str]:
    """Return the errors of the fitted surfaces in words, those that the results `before` have as they are: they take minutes."""
    known: dict[str, str] = json.loads(before.read_text())["fits"] if before and before.exists() else {}
    return {
        name: known.get(name) or f"{fitted.error(name)}; {fitted.spread(name)}"
        for name in surfaces
        if name in fitted.names()
    }


def main() -> None:
    """Run, judge, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--algorithms", nargs="+", choices=[*search.ALGORITHMS, *RIVALS])
    parser.add_argument(
        "--surfaces", nargs="+", default=[n for n in names() if n not in search_goals.UNINFORMATIVE]
    )
    parser.add_argument("--batches", nargs="+", type=int)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--half", action="store_true", help="the goal of 25 trials: seeds 500 to 519 and the real surfaces"
    )
    parser.add_argument("--report", action="store_true", help="only judge and write what is measured")
    parser.add_argument("--lines", type=Path, default=HERE.parent / "build" / "search.jsonl")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "search.json")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "results" / "search.md")
    half = {
        "surfaces": search_goals.SIX, "trials": 50, "first_seed": 500,
        "out": HERE / "results" / "search-half.json", "page": HERE.parent / "docs" / "results" / "search-half.md",
    }  # fmt: skip
    if parser.parse_args().half:
        parser.set_defaults(**half)
    given = parser.parse_args()
    for path in (given.lines, given.out, given.page):
        path.parent.mkdir(parents=True, exist_ok=True)
    jobs = list(plan(given))
    known = measured(given.lines)
    todo = [job for job in jobs if key(job) not in known and not given.report]
    with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool:
        for done, (job, (regrets, failed)) in enumerate(zip(todo, pool.map(run, todo), strict=True), 1):
            write_line(given.lines, job, regrets, failed)
            print(f"{done}/{len(todo)}", *job, f"{regrets[-1]:.4f}", flush=True)
    content = {
        "measured": now(),
        "machine": f"{measuring.processor()}, {os.cpu_count()} cores",
        "versions": versions("numpy", "scipy", "optuna", "hyperopt", "PyNomadBBO", "scikit-learn"),
        "trials": given.trials,
        "seeds": [given.first_seed, given.first_seed + given.seeds - 1],
        "lowest": {name: round(surface(name).best, 5) for name in given.surfaces},
        "fits": fits(given.surfaces, given.out if given.report else None),
        "rows": rows(jobs, measured(given.lines)),
    }
    given.out.write_text(search_page.compact(content))
    search_page.write(content, given.page)
    for goal in search_goals.judge(content["rows"]):
        print(f"{'HOLDS' if goal.holds else 'FAILS'}  {goal.name}: {goal.summary}")


if __name__ == "__main__":
    main()
