"""The registry as the chart installs it: MLflow on PostgreSQL, with its artifacts on S3."""

import json
import os
import random

import pytest

from retune import store
from retune.registry.aliases import Aliases, aliases
from retune.registry.promotion import promote, rollback
from retune.registry.versions import download_adapter, register
from retune.tracking import Tracker
from tests.mlflow_server import Server
from tests.selection.test_choice import bench
from tests.tracking.studies import TAGS, Held, expect_whole, record, tell

pytest_plugins = ["tests.mlflow_server", "tests.postgres_server", "tests.s3_server"]
pytestmark = pytest.mark.slow


@pytest.fixture
def server(postgres, s3, tmp_path, monkeypatch):
    """An MLflow server without local state. Clients need no credentials, since it proxies artifacts."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", os.environ["AWS_ENDPOINT_URL"])
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server", postgres, f"{s3}/mlflow")
    server.start()
    yield server
    server.kill()


def adapter(folder, seed):
    """An adapter whose weights are larger than one part of an upload."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": 8, "seed": seed}))
    (folder / "adapter_model.safetensors").write_bytes(random.Random(seed).randbytes(9 << 20))
    return folder


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_study_its_adapters_and_its_champion_outlive_the_server(server, postgres, s3, tmp_path):
    tracker = Tracker(server.uri, "demo", tmp_path / "spool", TAGS)
    tell(tracker)
    assert tracker.close(180) == 0
    assert tracker.refused == []
    made = [adapter(tmp_path / f"adapter-{number}", number) for number in (1, 2)]
    for number, folder in enumerate(made, 1):
        trial = record(f"trial-00{number}", adapter_digest=f"digest-{number}")
        more = {
            "study": "demo",
            "search_digest": TAGS["search_digest"],
            "scores": [bench(number, "mmlu", 0.4)],
        }
        assert register(server.uri, "m", trial, folder, **more) == str(number)
        assert register(server.uri, "m", trial, folder, **more) == str(number)
    assert promote(server.uri, "m", "1", None) == Aliases("1", None, "2")
    assert promote(server.uri, "m", "2", "1") == Aliases("2", "1", "2")

    for number, folder in enumerate(made, 1):
        fetched = download_adapter(server.uri, "m", str(number), tmp_path / f"fetched-{number}")
        assert content(fetched) == content(folder)
    assert rollback(server.uri, "m") == Aliases("1", "2", "2")

    server.kill()  # nothing was on its own disk or in its memory
    expect_whole(Held(postgres, "demo"))
    assert aliases(postgres, "m") == Aliases("1", "2", "2")
    assert os.listdir(server.folder) == ["log"]
    weights = [name for name in store.listing(f"{s3}/mlflow") if name.endswith("adapter_model.safetensors")]
    assert len(weights) == 2
