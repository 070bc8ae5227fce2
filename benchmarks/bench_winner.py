"""Measure how to choose the winner of a search: by the lowest loss, or by the best expected loss.

    python benchmarks/bench_winner.py                    the whole comparison
    python benchmarks/bench_winner.py --seeds 2 --surfaces valley --out winner.json

Searches of 25 and 50 noisy trials on the surfaces of functions.py; the regret is the true value of the named winner less the
surface's lowest value. `lowest` names the trial that measured best, `expected` the one that the model of all trials expects
most of (`retune.selection.expected`), `repeated` the same once the best three have been measured twice more, and `lowest of
means` spends those six trials on the three that measured best and takes the lowest mean: what repeating gives without a model.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

from functions import names, surface
from landscape import Surface
from retune import search
from retune.records import TrialRecord, now, versions
from retune.search import Objective, Observation
from retune.selection.expected import expected
from retune.selection.ranking import candidates
from retune.study import Objective as Goal

HERE = Path(__file__).parent
WAYS, MARKS = ("lowest", "expected", "repeated", "lowest of means"), (25, 50)
FINALISTS, REPEATS = 3, 2


def record(number: int, given: Any, value: float | None, seed: int = 0) -> TrialRecord:
    """Return the record of a trial."""
    return TrialRecord(
        trial=f"trial-{number:03d}" + (f"-seed-{seed}" if seed else ""), number=number, assignment=given, seed=seed,
        role="repeat" if seed else "search", status="failed" if value is None else "completed",
        values={} if value is None else {"validation_loss": value},
    )  # fmt: skip


def winners(found: Surface, trials: list[TrialRecord], rng: np.random.Generator) -> dict[str, float]:
    """Return the regret of the winner by each way."""
    goal = Goal()

    def regret(trial: TrialRecord) -> float:
        return found.true(trial.assignment) - found.best

    def again(chosen: list[TrialRecord]) -> list[TrialRecord]:
        return [
            record(t.number, t.assignment, found.measure(t.assignment, rng), seed)
            for t in chosen
            for seed in range(1, REPEATS + 1)
        ]

    ranked = candidates(trials, goal)
    values = expected(trials, goal, found.space)
    hoped = sorted(ranked, key=lambda t: values[t.trial])
    more = expected([*trials, *again(hoped[:FINALISTS])], goal, found.space)
    final = min(hoped, key=lambda t: more[t.trial])
    repeats = again(ranked[:FINALISTS])
    means = {
        t.trial: np.mean([e.values["validation_loss"] for e in (t, *repeats) if e.number == t.number])
        for t in ranked[:FINALISTS]
    }
    mean = min(ranked[:FINALISTS], key=lambda t: means[t.trial])
    return dict(zip(WAYS, map(regret, (ranked[0], hoped[0], final, mean)), strict=True))


def searched(name: str, algorithm: str, seed: int) -> dict[int, dict[str, float]]:
    """Return the regrets of the winners after each mark of one search."""
    found, rng = surface(name), np.random.default_rng(7919 * seed + 13)
    history: list[Observation] = []
    trials: list[TrialRecord] = []
    regrets = {}
    for mark in MARKS:
        while len(trials) < mark:
            count = min(8, mark - len(trials))
            for given in search.suggest(algorithm, found.space, Objective(), {}, history, count, seed):
                value = found.measure(given, rng)
                trials.append(record(len(trials) + 1, given, value))
                status: Any = "failed" if value is None else "completed"
                history.append(Observation(given, status, trials[-1].values, number=len(history)))
        regrets[mark] = winners(found, trials, np.random.default_rng([seed, mark]))
    return regrets


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--surfaces", nargs="+", default=[n for n in names() if n != "davouse-512"])
    parser.add_argument("--algorithms", nargs="+", default=["mads-global", "random"])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "winner.json")
    given = parser.parse_args()
    rows = []
    for algorithm in given.algorithms:
        for name in given.surfaces:
            runs = [searched(name, algorithm, seed) for seed in range(given.seeds)]
            for mark in MARKS:
                regrets = {way: [round(run[mark][way], 6) for run in runs] for way in WAYS}
                rows.append({"algorithm": algorithm, "surface": name, "trials": mark, "regret": regrets})
            print(algorithm, name, flush=True)
    content: dict[str, Any] = {"measured": now(), "versions": versions("numpy", "scipy"), "seeds": given.seeds,
                               "rows": rows, "summary": []}  # fmt: skip
    print(
        "algorithm     trials  way               median of mean regret ratios to `lowest`   p better   p worse"
    )
    for algorithm in given.algorithms:
        for mark in MARKS:
            mine = [row for row in rows if (row["algorithm"], row["trials"]) == (algorithm, mark)]
            for way in WAYS[1:]:
                ratios = [np.mean(r["regret"][way]) / max(np.mean(r["regret"]["lowest"]), 1e-9) for r in mine]
                unit = [max(np.mean(r["regret"]["lowest"]), 1e-9) for r in mine]
                off = np.concatenate(
                    [
                        (np.array(r["regret"][way]) - np.array(r["regret"]["lowest"])) / u
                        for r, u in zip(mine, unit, strict=True)
                    ]
                )
                better, worse = (
                    float(wilcoxon(off, alternative=side).pvalue) if off.any() else 1.0
                    for side in ("less", "greater")
                )
                content["summary"].append(
                    {"algorithm": algorithm, "trials": mark, "way": way, "ratio": round(float(np.median(ratios)), 3),
                     "worst": round(float(max(ratios)), 3), "p_better": round(better, 5), "p_worse": round(worse, 5)}
                )  # fmt: skip
                gained = f"{np.median(ratios):8.2f} (worst {max(ratios):.2f})"
                print(f"{algorithm:12} {mark:6}  {way:16} {gained} {better:24.4f} {worse:9.4f}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
