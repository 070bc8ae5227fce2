"""Matrix products with frozen weights: torch's own (MKL) against oneDNN's, as `retune.training.products` calls it.

Prints GFLOP/s in CPU time for sizes of the demo's base, best of five, then what it makes of training: steps of trials side by
side on the demo's base, by turns with one library and the other and with the base in bfloat16, in CPU microseconds a token; and
how far bfloat16's losses are from float32's. Last, products of larger bases in float32 and bfloat16.

    python benchmarks/bench_products.py --threads 1
    python benchmarks/bench_products.py --threads 1 --trials 4 --steps 6 --width 1024    # on a larger base
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from retune.models import quiet
from retune.records import versions
from retune.steps import mix
from retune.study import Study, load
from retune.training import products
from retune.training.resident import ResidentBase
from retune.trials.side_by_side import SideBySide
from retune.trials.task import TrialTask

ROOT = Path(__file__).resolve().parents[1]
ROWS = (64, 250, 1000, 4000)
SIZES = ((128, 128), (128, 352), (352, 128))
BASE = ROOT / "examples/base/tiny"
WIDTHS = (512, 1024, 2048)
TAKES = {"torch": lambda: False, "onednn": lambda: True}


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Print both comparisons and return the median microseconds a token of each library."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=16, help="side by side")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--width", type=int, help="train on 4 random layers of this width, not the demo's base"
    )
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
        found = _training(options.trials, options.steps, Path(folder), options.width)
    for width in WIDTHS:
        print(
            f" 1000 x {width} x {width}  {_speed('onednn', 1000, width, width)}  {_in_bfloat16(1000, width)}"
        )
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


def _in_bfloat16(rows: int, width: int) -> str:
    x, weight = (torch.randn(size, width).bfloat16() for size in (rows, width))
    times = max(3, int(5e8 / (rows * width * width)))
    best = min(_seconds(lambda: torch.nn.functional.linear(x, weight), times) for _ in range(5))
    return f"bfloat16 {2 * rows * width * width * times / best / 1e9:4.0f} GFLOP/s"


def _seconds(act: Callable[[], object], times: int) -> float:
    act()
    before = time.process_time()
    for _ in range(times):
        act()
    return time.process_time() - before


def _training(trials: int, steps: int, folder: Path, width: int | None) -> dict[str, list[float]]:
    os.chdir(folder)
    study = load(
        ROOT / "examples/01-first-study/study.yaml",
        [
            f"data.train={4 * (steps + 8)}",
            "data.validation=8",
            "training.epochs=1",
            f"model.base={_random_base(width, folder / 'base') if width else BASE}",
        ],
    )
    recipe = mix.recipe(study)
    mix.mix(recipe)
    packs = {name: _pack(study, recipe.folder, trials, folder / name) for name in TAKES}
    low = study.model_copy(update={"model": study.model.model_copy(update={"dtype": "bfloat16"})})
    packs["bfloat16"] = _pack(low, recipe.folder, trials, folder / "bfloat16")
    found: dict[str, list[float]] = {name: [] for name in packs}
    for step in range(steps):
        for name, pack in packs.items():
            products.by_onednn = TAKES.get(name, TAKES["torch"])  # type: ignore[assignment]
            tokens = sum(trial.loop.tokens(trial.loop.records()) for trial in pack.running)
            before = time.process_time()
            pack.step()
            if step >= 2:  # the first ones make oneDNN's kernels
                found[name].append((time.process_time() - before) / tokens * 1e6)
    losses = {
        name: [x for trial in pack.running for x in trial.loop.state.losses] for name, pack in packs.items()
    }
    far = [abs(a - b) for a, b in zip(losses["torch"], losses["bfloat16"], strict=True)]
    print(
        f"losses of bfloat16: {statistics.mean(far):.1e} from float32's in the mean, {max(far):.1e} at most"
    )
    return found


def _random_base(width: int, folder: Path) -> Path:
    from transformers import AutoConfig, LlamaForCausalLM

    shutil.copytree(BASE, folder)
    config = AutoConfig.from_pretrained(BASE)
    config.update(
        {"hidden_size": width, "intermediate_size": 11 * width // 4, "num_hidden_layers": 4, "head_dim": 64}
    )
    config.num_attention_heads = config.num_key_value_heads = width // 64
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _pack(study: Study, data: str, trials: int, folder: Path) -> SideBySide:
    pack = SideBySide(study, data, ResidentBase(study.model))
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
    return pack


if __name__ == "__main__":
    main()
