"""Compare the fronts of several objectives: `nomad` in batches, random points, and NOMAD's own DMulti-MADS.

    python benchmarks/bench_objectives.py    prints a table; writes results/objectives.json and docs/results/objectives.md

The functions are ZDT1 and ZDT2 (Zitzler, Deb and Thiele 2000) in three variables and DTLZ2 (Deb et al. 2002) with three
objectives in four, on 101 levels each. What counts is the hypervolume: the volume between the points tried so far and a
reference point. `nomad-dmultimads` is `PyNomad.optimize` with DMULTIMADS_OPTIMIZATION, sequential, from the same start
(the middle and 8 Latin-hypercube points); it cannot be asked for points, so no service can use it.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import json
import math
import platform
import statistics
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from retune import search
from retune.records import now, versions
from retune.search import Objective, Observation
from retune.space import Parameter, Space
from retune.study import Objective as Goal

HERE = Path(__file__).parent
MARKS = (30, 50, 80)
Row = tuple[float, ...]


def zdt1(x: Sequence[float]) -> Row:
    """Two objectives, a convex front."""
    g = 1 + 9 * sum(x[1:]) / (len(x) - 1)
    return x[0], g * (1 - math.sqrt(x[0] / g))


def zdt2(x: Sequence[float]) -> Row:
    """Two objectives, a concave front."""
    g = 1 + 9 * sum(x[1:]) / (len(x) - 1)
    return x[0], g * (1 - (x[0] / g) ** 2)


def dtlz2(x: Sequence[float]) -> Row:
    """Three objectives, the first octant of a sphere."""
    g = sum((v - 0.5) ** 2 for v in x[2:])
    a, b = x[0] * math.pi / 2, x[1] * math.pi / 2
    return (1 + g) * math.cos(a) * math.cos(b), (1 + g) * math.cos(a) * math.sin(b), (1 + g) * math.sin(a)


# function, number of variables, reference point
FUNCTIONS: dict[str, tuple[Callable[[Sequence[float]], Row], int, Row]] = {
    "zdt1": (zdt1, 3, (1.1, 6.0)),
    "zdt2": (zdt2, 3, (1.1, 6.0)),
    "dtlz2": (dtlz2, 4, (1.5, 1.5, 1.5)),
}


def hypervolume(points: Sequence[Row], reference: Row) -> float:
    """Return the volume that the points dominate below the reference, by slices along the last objective."""
    inside = [p for p in points if all(v < r for v, r in zip(p, reference, strict=True))]
    if len(reference) == 1:
        return max((reference[0] - p[0] for p in inside), default=0.0)
    heights = sorted({p[-1] for p in inside})
    total = 0.0
    for low, high in zip(heights, [*heights[1:], reference[-1]], strict=True):
        total += (high - low) * hypervolume([p[:-1] for p in inside if p[-1] <= low], reference[:-1])
    return total


def ours(algorithm: str, name: str, batch: int, seed: int) -> list[Row]:
    """Run one of retune's algorithms; return the values of its trials in order."""
    function, size, reference = FUNCTIONS[name]
    space = Space(
        parameters=tuple(
            Parameter(name=f"x{k}", kind="integer", low=0, high=100, default=50) for k in range(size)
        )
    )
    goals = tuple(Goal(metric=f"f{k}") for k in range(1, len(reference)))
    history: list[Observation] = []
    while len(history) < MARKS[-1]:
        for given in search.suggest(
            algorithm, space, Objective("f0", further=goals), {}, history, batch, seed
        ):
            values = function([float(given[key]) / 100 for key in space.names])
            named = {f"f{k}": v for k, v in enumerate(values)}
            history.append(Observation(given, "completed", named, number=len(history)))
    return [tuple(entry.values.values()) for entry in history]


def dmultimads(name: str, seed: int) -> list[Row]:
    """Run NOMAD's own DMulti-MADS; return the values of its trials in order."""
    import PyNomad

    function, size, reference = FUNCTIONS[name]
    found: list[Row] = []

    def evaluate(point: Any) -> int:
        values = function([round(point.get_coord(k)) / 100 for k in range(size)])
        found.append(values)
        point.setBBO(" ".join(map(repr, values)).encode())
        return 1

    settings = [
        "DISPLAY_DEGREE 0", f"BB_INPUT_TYPE ( {'I ' * size})", f"BB_OUTPUT_TYPE {'OBJ ' * len(reference)}",
        "DMULTIMADS_OPTIMIZATION yes", "DIRECTION_TYPE ORTHO 2N", f"MAX_BB_EVAL {MARKS[-1]}", "LH_SEARCH 8 0",
        f"SEED {seed + 1}",
    ]  # fmt: skip
    PyNomad.optimize(evaluate, [50] * size, [0] * size, [100] * size, settings)
    return found


def volumes(rows: Sequence[Row], name: str) -> list[float]:
    """Return the hypervolume after each mark."""
    return [hypervolume(rows[:mark], FUNCTIONS[name][2]) for mark in MARKS]


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "objectives.json")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "results" / "objectives.md")
    given = parser.parse_args()
    rows = []
    for name in FUNCTIONS:
        runs = {
            f"nomad, batches of {b}": [ours("nomad", name, b, s) for s in range(given.seeds)] for b in (1, 8)
        }
        runs["random"] = [ours("random", name, 8, s) for s in range(given.seeds)]
        with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:  # NOMAD's state is the process's
            runs["nomad-dmultimads"] = pool.starmap(
                dmultimads, [(name, s) for s in range(given.seeds)], chunksize=1
            )
        for algorithm, found in runs.items():
            columns = list(zip(*(volumes(run, name) for run in found), strict=True))
            quartiles = [statistics.quantiles(column, n=4, method="inclusive") for column in columns]
            rows.append({"function": name, "algorithm": algorithm, "volume": quartiles})
            print(f"{name:6} {algorithm:20}", *(f"{middle:.4f}" for _, middle, _ in quartiles), flush=True)
    content = {
        "measured": now(),
        "machine": platform.machine(),
        "seeds": given.seeds,
        "marks": MARKS,
        "versions": versions("PyNomadBBO", "numpy", "scipy"),
        "rows": rows,
    }
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(json.dumps(content, indent=1) + "\n")
    given.page.write_text(page(content))


def page(content: dict[str, Any]) -> str:
    """Return the results as a page."""
    packages = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    heads = [f"after {mark}" for mark in content["marks"]]
    text = [
        "# Several objectives: how much of the front is found",
        "",
        f"Written by `python benchmarks/bench_objectives.py` on {content['measured'][:10]}: hypervolume, more is better; "
        f"median (quartiles) over {content['seeds']} seeds. {packages}.",
        "",
        f"| function | algorithm | {' | '.join(heads)} |",
        f"|---|---|{'---|' * len(heads)}",
    ]
    for row in content["rows"]:
        cells = " | ".join(f"{middle:.3f} ({low:.3f}–{high:.3f})" for low, middle, high in row["volume"])
        text.append(f"| {row['function']} | {row['algorithm']} | {cells} |")
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    main()
