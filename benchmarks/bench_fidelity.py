"""Real trials of a small base: stopping, proxy and `language-bo` beside `mads-global` and `random`, at equal training.

Every arm may train as many optimiser steps as `--whole` trainings of the default length take, its own default setting not
counted, and gives the best setting that it trained whole. All trials are real trainings on the base of examples/01-first-study.
Each seed draws other records. The arms are the engine's own pieces in one process: jobs, rules, ledger, `run_trial`.

    python benchmarks/bench_fidelity.py --seeds 5 --out benchmarks/results/fidelity.json
    python benchmarks/bench_fidelity.py --out benchmarks/results/fidelity.json --show     # the table of docs/benchmarks.md

A cell that is in the file is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from retune import search as searches
from retune.engines.jobs import Jobs
from retune.records import TrialRecord, versions
from retune.selection.association import associate
from retune.steps import mix
from retune.study import Study, load
from retune.training.resident import ResidentBase
from retune.trials.run_trial import run_trial
from retune.trials.task import TrialTask
from retune.workspace.ledger import Ledger

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "data.train=32", "data.validation=24", "training.epochs=1", "search.repeats=0", "search.parallel=1", "search.trials=1000",
    "benchmark.tasks=[]", "benchmark.data={}", "select.weights={}",
]  # fmt: skip
MODEL = "search.settings={LH_SEARCH: 4}"
ARMS = {
    "random": ["search.algorithm=random"],
    "mads-global": ["search.algorithm=mads-global", MODEL],
    "mads-global, asha": [
        "search.algorithm=mads-global",
        MODEL,
        "search.stopping={kind: asha, reduction: 3}",
    ],
    "mads-global, proxy": ["search.algorithm=mads-global", MODEL, "search.proxy={share: 0.25, full: 3}"],
    "language-bo": ["search.algorithm=language-bo", "search.settings={LH_SEARCH: 4, candidates: 32}"],
}


class Arm:
    """One search within a budget of optimiser steps."""

    def __init__(self, study: Study, base: ResidentBase, data: str, folder: Path, whole: int) -> None:
        self.study, self.base, self.data = study, base, data
        self.ledger = Ledger(str(folder))
        self.left = float(whole)
        self.trial_cpu = self.search_cpu = 0.0

    def run(self) -> dict[str, Any]:
        """Search until the budget is spent and return what came out."""
        search, jobs = self.study.search, Jobs(self.study.search, self.ledger)
        reserved = search.proxy.full if search.proxy else 0
        part = search.proxy.share if search.proxy else 1.0
        while self.left - reserved > 1e-9:
            job = jobs.next()
            if job is None:
                break
            known = self.ledger.records.get(jobs.name(job.trial))
            cost = (job.share - (known.share if known else 0.0)) * part
            if job.trial > 1 and cost > self.left - reserved + 1e-9:
                break
            self.left -= cost if job.trial > 1 else 0.0
            begun = self.ledger.tasks.get(jobs.name(job.trial))
            assignment = begun.assignment if begun else self._setting(jobs, job)
            task = self.ledger.issue(job.trial, jobs.role(job.trial), assignment, self.study.seed)
            self._train(task.model_copy(update={"until": job.share, "rungs": jobs.rungs(job)}))
        if search.proxy:
            for task in self.ledger.issue_whole(self.study):
                self._train(task)
        return self._outcome()

    def _setting(self, jobs: Jobs, job: Any) -> Any:
        start = time.process_time()
        history, study = jobs.history(job), self.study
        found = searches.suggest(
            study.search.algorithm, study.search.space, searches.Objective.of(study.search), study.search_settings,
            history, 1, study.seed,
        )  # fmt: skip
        self.search_cpu += time.process_time() - start
        return found[0] if job.trial > 1 else study.search.space.default()

    def _train(self, task: TrialTask) -> None:
        start = time.process_time()
        record = run_trial(self.study, self.data, task, self.base)
        self.trial_cpu += time.process_time() - start
        self.ledger.finish(record)

    def _outcome(self) -> dict[str, Any]:
        whole = [
            r
            for r in self.ledger.records.values()
            if r.role in ("default", "search") and r.status == "completed"
        ]
        best = min(whole, key=lambda record: record.values["validation_loss"])
        default = self.ledger.records["trial-001"].values["validation_loss"]
        tried = self.ledger.searched(self.study.search)
        return {
            "best": best.values["validation_loss"], "default": default, "settings": len(tried) - 1, "whole": len(whole) - 1,
            "pairs": _pairs(self.ledger.records), "trial_cpu": self.trial_cpu, "search_cpu": self.search_cpu,
        }  # fmt: skip


def _pairs(records: dict[str, TrialRecord]) -> list[tuple[float, float]]:
    parts = {r.number: r for r in records.values() if r.role == "proxy" and r.status == "completed"}
    whole = [r for r in records.values() if r.role in ("default", "search") and r.status == "completed"]
    return [
        (parts[r.number].values["validation_loss"], r.values["validation_loss"])
        for r in whole
        if r.number in parts
    ]


def cell(arm: str, seed: int, whole: int, base: ResidentBase) -> dict[str, Any]:
    """Run one arm with one seed on a loaded base."""
    with tempfile.TemporaryDirectory() as place:
        before = Path.cwd()
        os.chdir(place)
        try:
            study = load(ROOT / "examples/01-first-study/study.yaml", [*SMALL, *ARMS[arm], f"seed={seed}"])
            recipe = mix.recipe(study)
            mix.mix(recipe)
            found = Arm(study, base, recipe.folder, Path(place) / "search", whole).run()
        finally:
            os.chdir(before)
    return {"arm": arm, "seed": seed, "budget": whole, **found}


def table(cells: list[dict[str, Any]]) -> str:
    """Return the table of docs/benchmarks.md: each arm over its own seeds, beside others over the seeds that both have."""
    by = {(c["arm"], c["seed"]): c for c in cells}
    seeds = {arm: sorted(seed for name, seed in by if name == arm) for arm in ARMS}
    lines = [
        "| arm | seeds | settings tried | trained whole | gain over the default, median (least, most) | better than `random` | "
        "than `mads-global` | CPU seconds: trials | search |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for arm in ARMS:
        own = [by[arm, seed] for seed in seeds[arm]]
        if not own:
            lines.append(f"| {arm} | 0 | – | – | – | – | – | – | – |")
            continue
        gains = [c["default"] - c["best"] for c in own]
        beats = {}
        for other in ("random", "mads-global"):
            both = [seed for seed in seeds[arm] if seed in seeds[other]]
            won = sum(by[arm, s]["best"] < by[other, s]["best"] for s in both)
            beats[other] = "–" if arm == other or not both else f"{won} of {len(both)}"
        lines.append(
            f"| {arm} | {len(own)} | {_mean(own, 'settings'):.0f} | {_mean(own, 'whole'):.0f} | "
            f"{statistics.median(gains):.3f} ({min(gains):.3f}, {max(gains):.3f}) | {beats['random']} | "
            f"{beats['mads-global']} | {_mean(own, 'trial_cpu'):.1f} | {_mean(own, 'search_cpu'):.1f} |"
        )
    lines.append("")
    for seed in seeds["mads-global, proxy"]:
        pairs = by["mads-global, proxy", seed]["pairs"]
        found = associate([p for p, _ in pairs], [w for _, w in pairs])
        if found:
            limits = "" if found.low is None else f", 95 % interval {found.low:.2f} to {found.high:.2f}"
            lines.append(
                f"- `proxy`, seed {seed}: Spearman {found.spearman:.2f} over {found.n} settings{limits}"
            )
    return "\n".join(lines)


def _mean(cells: list[dict[str, Any]], key: str) -> float:
    return statistics.fmean(c[key] for c in cells)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--whole", type=int, default=8, help="whole trainings of each arm, besides the default setting"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--show", action="store_true", help="run nothing")
    args = parser.parse_args()
    content = json.loads(args.out.read_text()) if args.out.exists() else {"cells": []}
    cells = content["cells"]
    base = ResidentBase(load(ROOT / "examples/01-first-study/study.yaml", SMALL).model)
    for arms in (list(ARMS)[:-1], list(ARMS)[-1:]):  # language-bo takes longest: last
        for seed, arm in itertools.product(range(args.seeds), arms) if not args.show else ():
            if any((c["arm"], c["seed"], c["budget"]) == (arm, seed, args.whole) for c in cells):
                continue
            cells.append(cell(arm, seed, args.whole, base))
            content |= {
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread",
                "versions": versions("torch", "transformers", "peft", "scipy"),
            }
            args.out.write_text(json.dumps(content, indent=1) + "\n")
            print(seed, arm, cells[-1]["best"], cells[-1]["default"], flush=True)
    print(table(cells))


if __name__ == "__main__":
    main()
