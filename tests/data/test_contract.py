"""Our own data formats pass the contract for those of other packages."""

import json

import pytest

from retune.testing.formats import FormatContract
from tests.conftest import ROOT

DATA = ROOT / "examples/data"


class TestAlpaca(FormatContract):
    name, data = "alpaca", DATA / "alpaca-demo.json"
    records = len(json.loads(data.read_text()))


class TestDolly(FormatContract):
    name, data = "dolly", DATA / "dolly-demo.jsonl"
    records = len(data.read_text().splitlines())


class TestMessages(FormatContract):
    name, records = "messages", 2

    @pytest.fixture(autouse=True)
    def _written(self, tmp_path_factory):
        path = tmp_path_factory.mktemp("data") / "talks.jsonl"
        turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]
        path.write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(self.records)))
        type(self).data = path
