"""Measure whether tuning helps on the tiny base: untuned, and at several learning rates, three seeds each.

From the repository root::

    python -m examples.base.probe
    python -m examples.base.probe --rates 1e-5 1e-4 1e-2 --base DIR

Uses the first study's data and default setting; only the learning rate differs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

from retune.models import load_tokenizer
from retune.study import load
from retune.training.resident import ResidentBase
from retune.trials.run_trial import run_trial
from retune.trials.task import TrialTask

STUDY = Path(__file__).parents[1] / "01-first-study" / "study.yaml"


def main() -> None:
    """Train and print the losses."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-5, 1e-4, 1e-3, 1e-2])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--base", type=Path, default=Path(__file__).parent / "tiny")
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the study, e.g. data.train=800")
    given = parser.parse_args()
    torch.set_num_threads(1)
    study = load(STUDY, [f"model.base={given.base.resolve()}", *given.set])
    base = ResidentBase(study.model)
    from retune.data import mixing

    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/data"
        mixed = mixing.mix(study.data, study.seed, load_tokenizer(study.model), data)
        print({split: part.tokens for split, part in mixed.splits.items()}, "tokens")
        task = TrialTask(trial="base", number=0, role="base", folder=f"{folder}/base")
        untuned = run_trial(study, data, task, base)
        print(f"untuned base             {untuned.values['validation_loss']:.4f}   {untuned.seconds:.1f} s")
        default = study.search.space.default()
        assert default is not None
        for rate in given.rates:
            setting = default | {"learning_rate": rate}
            losses, seconds = [], []
            for seed in range(given.seeds):
                name = f"{rate}-{seed}"
                task = TrialTask(
                    trial=name,
                    number=1,
                    role="search",
                    assignment=setting,
                    seed=seed,
                    folder=f"{folder}/{name}",
                )
                record = run_trial(study, data, task, base)
                losses.append(record.values.get("validation_loss", float("nan")))
                seconds.append(record.seconds)
            spread = statistics.stdev(losses) if len(losses) > 1 else float("nan")
            print(
                f"learning rate {rate:<8g}   {statistics.mean(losses):.4f} +- {spread:.4f}"
                f"   {statistics.mean(seconds):.1f} s a trial",
                flush=True,
            )


if __name__ == "__main__":
    main()
