"""The speed comparison itself, at a size where only its honesty can be checked."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.conftest import make_base, make_data

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_both_train_the_same_and_the_numbers_follow_from_the_times(tmp_path):
    base, data = make_base(tmp_path / "base"), make_data(tmp_path / "data", train=30)
    command = [
        sys.executable,
        ROOT / "benchmarks" / "bench_trial.py",
        "--model",
        base,
        "--data",
        data,
        "--steps",
        "7",
        "--repeats",
        "2",
        "--threads",
        "1",
        "--max-length",
        "256",
        "--json",
        tmp_path / "out.json",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    ours, theirs = result["ours"]["losses"], result["trainer"]["losses"]
    assert len(ours) == len(theirs) == 7
    assert ours[0] != ours[-1]
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert result["max_loss_difference"] == max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    seconds = sorted(result["ours"]["seconds"])
    assert result["ours"]["samples_per_second"] == pytest.approx(4 * 4 / (sum(seconds) / 2))
    assert result["ratio"] > 0
    assert "largest difference over all steps" in done.stdout
    assert result["data"]["padded_per_real"] > 1


@pytest.mark.slow
def test_too_few_records_are_refused(tmp_path):
    base, data = make_base(tmp_path / "base"), make_data(tmp_path / "data")
    command = [
        sys.executable,
        ROOT / "benchmarks" / "bench_trial.py",
        "--model",
        base,
        "--data",
        data,
        "--steps",
        "9",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 1
    assert "9 steps of 4 records need 36, but there are 22" in done.stderr
