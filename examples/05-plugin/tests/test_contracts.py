"""What retune promises of each extension point, run on ours: `pytest` in this folder, with retune[testing] installed."""

from pathlib import Path

from retune.testing.algorithms import AlgorithmContract
from retune.testing.engines import EngineContract
from retune.testing.formats import FormatContract
from retune.testing.tasks import TaskContract

DATA = Path(__file__).parent / "data"


class TestHillClimbing(AlgorithmContract):
    name = "hill-climbing"
    valley = 0.6  # it has no model of the whole space


class TestArithmetic(TaskContract):
    name, data = "arithmetic", DATA / "sums.jsonl"


class TestTabPairs(FormatContract):
    name, data, records = "tab-pairs", DATA / "pairs.tsv", 24


class TestInline(EngineContract):
    name = "inline"
