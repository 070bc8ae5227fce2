"""The second example as its header says: real Alpaca and Dolly files by path, a small base, a few trials."""

import json
import os
from pathlib import Path

import pytest
from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.data]
DATA = Path(os.environ.get("RETUNE_DATA", ROOT.parent / "shared/data"))
ALPACA = DATA / "alpaca/alpagasus_random_9k.json"
DOLLY = DATA / "dolly/databricks-dolly-15k.rebuilt.jsonl.gz"


@pytest.mark.skipif(
    not (ALPACA.exists() and DOLLY.exists()), reason=f"needs real data in {DATA} (or $RETUNE_DATA)"
)
def test_runs_on_the_real_files(retune, tmp_path):
    words = [
        "name=alpaca-dolly-small", f"model.base={ROOT}/examples/base/tiny", "model.revision=null", "model.dtype=float32",
        f"data.sources.0.uri={ALPACA}", f"data.sources.1.uri={DOLLY}", "data.train=54", "data.validation=13",
        "data.max_length=256", "training.epochs=1", "search.trials=2", "search.repeats=0", "benchmark.tasks=[]",
    ]  # fmt: skip
    process = retune("run", str(ROOT / "examples/02-alpaca-dolly/study.yaml"), *words, "--json")
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    outcome = json.loads(out)
    assert outcome["trials"] == 2
    (mix,) = (tmp_path / "artifacts/alpaca-dolly-small").glob("data-*/mix.json")
    sources = json.loads(mix.read_text())["sources"]
    assert {s["format"]: s["splits"]["train"]["records"] for s in sources} == {"alpaca": 38, "dolly": 16}
