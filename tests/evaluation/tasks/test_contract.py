"""Our own benchmarks pass the contract for those of other packages, on the data of the examples."""

import pytest

from retune.testing.tasks import TaskContract
from tests.conftest import ROOT

DATA = ROOT / "examples/data/benchmarks"


class TestMmlu(TaskContract):
    name, data = "mmlu", DATA / "mmlu"


class TestBbh(TaskContract):
    name, data = "bbh", DATA / "bbh"


class TestDrop(TaskContract):
    name, data = "drop", DATA / "drop.jsonl.gz"


@pytest.mark.slow
class TestHumanEval(TaskContract):
    """Its label is a name, and an answer is right if it passes the tests; the file contains a solution."""

    name, data = "humaneval", DATA / "humaneval.jsonl.gz"

    def right(self, question):
        return SOLUTIONS[question.id]


def _solutions():
    import gzip
    import json

    with gzip.open(DATA / "humaneval.jsonl.gz", "rt") as file:
        return {(entry := json.loads(line))["task_id"]: entry["canonical_solution"] for line in file}


SOLUTIONS = _solutions()
