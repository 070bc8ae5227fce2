"""The quality gate of `nomad`: after 50 trials in batches of 8, better than chance and than what Katib calls `tpe`."""

import statistics
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

SURFACES, SEEDS, TRIALS = ("valley", "ridge"), range(12), 50  # of 4 seeds the ratio may be off by half


def regret(algorithm, batch):
    """The mean over surfaces of the median regret over seeds."""
    import search_runs

    medians = []
    for name in SURFACES:
        runs = [search_runs.run((algorithm, name, batch, TRIALS, seed)) for seed in SEEDS]
        medians.append(statistics.median(regrets[-1] for regrets, _ in runs))
    return statistics.fmean(medians)


@pytest.mark.slow
def test_nomad_is_better_than_chance_and_katibs_tpe():
    pytest.importorskip("sklearn")
    ours = regret("nomad", 8)
    assert ours < 0.6 * regret("random", 8)
    pytest.importorskip("hyperopt")
    assert ours < regret("hyperopt", 1)
