"""A whole study whose data comes from S3 and whose artifacts go there."""

import json

import pytest

from tests.conftest import DEMO, ROOT, SMALL

pytestmark = pytest.mark.slow
pytest_plugins = ["tests.s3_server"]


def test_data_from_s3_and_artifacts_to_s3(retune, s3, tmp_path):
    from retune import store

    for name in ("alpaca-demo.json", "dolly-demo.jsonl"):
        store.upload(ROOT / "examples/data" / name, f"{s3}/data/{name}")
    words = [
        f"data.sources.0.uri={s3}/data/alpaca-demo.json", f"data.sources.1.uri={s3}/data/dolly-demo.jsonl",
        f"artifacts.uri={s3}/artifacts", "search.trials=3",
    ]  # fmt: skip
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    out, err = retune("run", str(DEMO), *SMALL, *words, "--json", **cache).communicate(timeout=400)
    outcome = json.loads(out) if out else pytest.fail(err)
    assert outcome["gate"]["decision"] == "promote"
    assert outcome["report"].startswith(s3)
    assert b"<html" in store.read(outcome["report"])
    names = store.listing(f"{outcome['folder']}/trials")
    assert {f"trial-00{k}/trial.json" for k in range(4)} <= set(names)
    assert "trial-001/adapter/adapter_model.safetensors" in names
    again = retune("run", str(DEMO), *SMALL, *words, **cache)
    _, err = again.communicate(timeout=200)
    assert err.count("up to date") == 7, err
