"""All studies of an artifacts folder: the list, each study's live page, and the metrics for Prometheus."""

import json
import re
import threading
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from retune import store
from retune.records import GateRecord
from retune.report import board
from tests.report.synthetic import study, trial, trials

pytest_plugins = ["tests.s3_server"]


def fill(root, records=None, gate=None):
    """Two studies below `root`: one in the middle of its search, and one that only begins."""
    search = f"{root}/alpaca-dolly/search-0123456789abcdef"
    store.write(f"{search}/study.json", study().model_dump_json().encode())
    for record in trials() if records is None else records:
        store.write(f"{search}/trials/{record.trial}/assignment.json", b"{}")
        store.write(f"{search}/trials/{record.trial}/trial.json", record.to_json())
    for number in (90, 91):
        store.write(f"{search}/trials/trial-{number:03d}/assignment.json", b"{}")
    store.write(f"{root}/soon/search-ffff/study.json", b"{}")
    store.write(f"{root}/mlflow/1/abc/artifacts/search-1/study.json", b"{}")  # MLflow's, in the same bucket
    if gate:
        store.write(f"{search}/gate.json", gate.to_json())
        store.write(f"{search}/search.json", b"{}")
    return search


@pytest.fixture
def serve():
    """Return a function that serves an artifacts folder and returns the address."""
    servers = []

    def start(root, every=0.0):
        server = board.serve(str(root), "127.0.0.1", 0, every=every)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def get(url):
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.read().decode()


def samples(url):
    """What Prometheus' own parser reads: value by name and labels."""
    families = text_string_to_metric_families(get(f"{url}/metrics"))
    return {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}


def test_the_metrics_are_those_of_the_records(tmp_path, serve):
    fill(tmp_path)
    url, records = serve(tmp_path), trials()
    found, name = samples(url), ("study", "alpaca-dolly")
    states = {state: found["retune_trials", ("state", state), name] for state in board.STATES}
    completed = [r for r in records if r.status == "completed"]
    assert states["completed"] == len(completed)
    assert states["failed"] == sum(r.status == "failed" for r in records)
    assert states["running"] == 2
    metric = ("metric", "validation_loss")
    values = [r.objective("validation_loss") for r in completed if r.role in ("default", "search")]
    assert found["retune_best_value", metric, name] == min(values)
    assert found["retune_trial_seconds_total", name] == pytest.approx(sum(r.seconds for r in records))
    asked = study().search
    total = 1 + asked.trials + (1 + asked.finalists) * asked.repeats
    assert found["retune_trials_queued", metric, name] == max(0, total - len(records) - 2)
    assert found["retune_trials", ("state", "completed"), ("study", "soon")] == 0
    assert {key[-1][1] for key in found if key[0] == "retune_trials"} == {"alpaca-dolly", "soon"}
    assert found["retune_up",] == 1


def test_a_study_that_ended_has_no_queue_and_shows_its_gate_and_peak(tmp_path, serve):
    records = trials()
    records[-1] = records[-1].model_copy(update={"values": {**records[-1].values, "peak_gpu_gib": 2.0}})
    fill(tmp_path, records, GateRecord(model="m", challenger="1", champion=None, decision="promote"))
    found, name = samples(serve(tmp_path)), ("study", "alpaca-dolly")
    metric = ("metric", "validation_loss")
    assert found["retune_trials_queued", metric, name] == 0
    assert found["retune_trials", ("state", "running"), name] == 0
    assert found["retune_gate", ("decision", "promote"), name] == 1
    assert found["retune_peak_gpu_memory_bytes", metric, name] == 2 * 2**30


def test_the_best_value_is_of_trials_on_all_data_once_there_are_some(tmp_path, serve):
    part = [
        trial(number, "proxy", {}, loss).model_copy(update={"trial": f"p{number}"})
        for number, loss in [(1, 1.5), (2, 1.2)]
    ]
    key = ("retune_best_value", ("metric", "validation_loss"), ("study", "alpaca-dolly"))
    fill(tmp_path / "a", [trial(0, "base", {}, 2.9), *part])
    assert samples(serve(tmp_path / "a"))[key] == 1.2
    fill(
        tmp_path / "b",
        [trial(0, "base", {}, 2.9), *part, trial(1, "default", {}, 1.9), trial(2, "search", {}, 1.8)],
    )
    assert samples(serve(tmp_path / "b"))[key] == 1.8


def test_every_study_has_its_live_page(tmp_path, serve):
    fill(tmp_path)
    url = serve(tmp_path)
    assert 'href="study/alpaca-dolly/"' in get(f"{url}/")
    page = get(f"{url}/study/alpaca-dolly")  # without the slash one is led to the page
    assert 'EventSource("events")' in page  # relative: each study has its own stream
    assert not re.search(r'(?:src|href|EventSource|fetch)[=(]\s*"/', page)
    with urllib.request.urlopen(f"{url}/study/alpaca-dolly/events", timeout=20) as stream:
        assert json.loads(stream.readline().removeprefix(b"data: "))["study"] == "alpaca-dolly"
    assert get(f"{url}/healthz") == "ok"
    for path in ("study/none/", "study/../", "study/alpaca-dolly/other", "x", "study/alpaca-dolly/events/y"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(f"{url}/{path}")


@pytest.mark.slow
def test_studies_in_a_bucket_and_a_bucket_that_is_away(s3, serve, monkeypatch):
    fill(s3)
    url = serve(s3)
    assert samples(url)["retune_trials", ("state", "running"), ("study", "alpaca-dolly")] == 2
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    found = samples(url)
    assert found["retune_up",] == 0
    # The last that was known
    assert found["retune_trials", ("state", "running"), ("study", "alpaca-dolly")] == 2
    assert "cannot be read now" in get(f"{url}/")


def test_a_damaged_record_hides_no_other_study(tmp_path, serve):
    search = fill(tmp_path)
    store.write(f"{search}/trials/trial-002/trial.json", b"half")
    store.write(f"{tmp_path}/soon/search-ffff/study.json", study().model_dump_json().encode())
    found = samples(serve(tmp_path))
    assert found["retune_up",] == 1
    total = 1 + study().search.trials + (1 + study().search.finalists) * study().search.repeats
    assert found["retune_trials_queued", ("metric", "validation_loss"), ("study", "soon")] == total


def test_an_empty_folder_is_no_error(tmp_path, serve):
    url = serve(tmp_path)
    assert "There is no study here yet" in get(f"{url}/")
    assert samples(url)["retune_up",] == 1
