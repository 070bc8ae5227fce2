"""Matrix products with frozen weights: torch's own (MKL) against oneDNN's, as `retune.training.products` calls it.

Prints GFLOP/s in CPU time for sizes of the demo's base, best of five, then what it makes of training: steps of trials side by
side on the demo's base, by turns with one library and the other, in CPU microseconds a token.

    python benchmarks/bench_products.py --threads 1
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from retune.models import quiet
from retune.records import versions
from retune.steps import mix
from retune.study import load
from retune.training import products
from retune.training.resident import ResidentBase
from retune.training.run_trial import TrialTask
from retune.training.side_by_side import SideBySide

ROOT = Path(__file__).resolve().parents[1]
ROWS = (64, 250, 1000, 4000)
SIZES = ((128, 128), (128, 352), (352, 128))
TAKES = {"torch": lambda: False, "onednn": lambda: True}


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Print both comparisons and return the median microseconds a token of each library."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=16, help="side by side")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    quiet()
    torch.set_num_threads(options.threads)
    print(
        f"torch {versions('torch')['torch']}, load {os.getloadavg()[0]:.1f}, used here: {products.by_onednn()}"
    )
    for rows in ROWS:
        for inner, outer in SIZES:
            print(
                f"{rows:5d} x {inner} x {outer}  "
                + "  ".join(_speed(name, rows, inner, outer) for name in TAKES)
            )
    with tempfile.TemporaryDirectory() as folder:
        found = _training(options.trials, options.steps, Path(folder))
    for name, each in found.items():
        print(
            f"{options.trials} trials, {name}: {statistics.median(each):.1f} us a token, least {min(each):.1f}, {len(each)} steps"
        )
    return {name: statistics.median(each) for name, each in found.items()}


def _speed(name: str, rows: int, inner: int, outer: int) -> str:
    products.by_onednn = TAKES[name]  # type: ignore[assignment]
    x, weight = products.empty(rows, inner, torch.empty(0)).normal_(), torch.randn(outer, inner)
    times = max(3, int(5e8 / (rows * inner * outer)))
    best = min(_seconds(lambda: products.linear(x, weight), times) for _ in range(5))
    return f"{name} {2 * rows * inner * outer * times / best / 1e9:4.0f} GFLOP/s"


def _seconds(act: Callable[[], object], times: int) -> float:
    act()
    before = time.process_time()
    for _ in range(times):
        act()
    return time.process_time() - before


def _training(trials: int, steps: int, folder: Path) -> dict[str, list[float]]:
    os.chdir(folder)
    study = load(
        ROOT / "examples/01-first-study/study.yaml",
        [
            f"data.train={4 * (steps + 8)}",
            "data.validation=8",
            "training.epochs=1",
            f"model.base={ROOT}/examples/base/tiny",
        ],
    )
    recipe = mix.recipe(study)
    mix.mix(recipe)
    pack = SideBySide(study, recipe.folder, ResidentBase(study.model))
    for seed in range(trials):
        values = {"rank": 8, "alpha": 32.0, "dropout": 0.0, "learning_rate": 1e-4 * (seed + 1)}
        task = TrialTask(
            trial=f"trial-{seed:03d}",
            number=seed,
            role="search",
            seed=seed,
            folder=str(folder / str(seed)),
            assignment=values,
        )
        pack.start(task)
    found: dict[str, list[float]] = {name: [] for name in TAKES}
    for step in range(steps + 4):
        name = list(TAKES)[step % 2]
        products.by_onednn = TAKES[name]  # type: ignore[assignment]
        tokens = sum(trial.loop.tokens(trial.loop.records()) for trial in pack.running)
        before = time.process_time()
        pack.step()
        if step >= 4:  # the first ones make oneDNN's kernels
            found[name].append((time.process_time() - before) / tokens * 1e6)
    return found


if __name__ == "__main__":
    main()
