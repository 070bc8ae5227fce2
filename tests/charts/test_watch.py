"""The watch page on a cluster, its ServiceMonitor, and the dashboard, whose panels query metrics that the page exports."""

import json
import re
import shutil
import socket
import subprocess
import threading
from contextlib import suppress
from urllib.parse import urlencode

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from retune.records import GateRecord
from retune.report import board
from tests.charts.helm import find, pods
from tests.conftest import ROOT, wait_for
from tests.report.test_board import fill, get
from tests.test_docs import unknown

pytest_plugins = ["tests.charts.helm"]
DASHBOARD = json.loads((ROOT / "charts/retune/files/dashboard.json").read_text())
QUERIES = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The address of a page with a study in every state."""
    folder = tmp_path_factory.mktemp("artifacts")
    from tests.report.synthetic import trials

    records = trials()
    records[-1] = records[-1].model_copy(update={"values": {**records[-1].values, "peak_gpu_gib": 2.0}})
    fill(folder, records, GateRecord(model="m", challenger="1", champion=None, decision="promote"))
    server = board.serve(str(folder), "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def exported(served):
    """Labels by the name of each metric of that page."""
    families = text_string_to_metric_families(get(f"{served}/metrics"))
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_each_panel_asks_for_a_metric_and_labels_that_there_are(exported, title, query):
    names = re.findall(r"\bretune_\w+", query)
    assert names
    assert set(names) <= set(exported), title
    for name, selector in re.findall(r"(retune_\w+)\{([^}]*)\}", query):
        assert set(re.findall(r"(\w+)\s*=", selector)) <= exported[name], title
    grouped = {
        label.strip() for part in re.findall(r"(?:by|on)\s*\(([\w, ]+)\)", query) for label in part.split(",")
    }
    assert all(grouped <= exported[name] for name in names), title
    states = re.findall(r'state(?:=|=~)"([^"]+)"', query)
    assert {state for part in states for state in part.split("|")} <= set(board.STATES)


def test_every_metric_is_on_the_dashboard(exported):
    asked = {name for _, query in QUERIES for name in re.findall(r"\bretune_\w+", query)}
    assert asked == set(exported)


@pytest.fixture(scope="module")
def answers(tmp_path_factory, served):
    """What a real Prometheus that scrapes the page answers to a query."""
    if not (prometheus := shutil.which("prometheus")):
        pytest.skip("prometheus is missing: apt-get install prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    scraped = {"job_name": "retune", "static_configs": [{"targets": [served.removeprefix("http://")]}]}
    # A scrape may take as long as the interval, or what it would have brought is gone
    config = {"global": {"scrape_interval": "2s"}, "scrape_configs": [scraped]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    process = subprocess.Popen([prometheus, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ask(query):
        address = f"http://127.0.0.1:{port}/api/v1/query?" + urlencode({"query": query})
        with suppress(OSError):
            return json.loads(get(address))["data"]["result"]

    wait_for(lambda: ask("retune_up"), 60)
    yield ask
    process.terminate()
    process.wait(30)


@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_a_prometheus_that_scrapes_the_page_has_an_answer_for_each_panel(answers, title, query):
    found = answers(query.replace("$study", ".*"))
    assert found, title
    assert all(float(one["value"][1]) >= 0 for one in found)


def test_panels_have_places_of_their_own():
    seen = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & seen, panel["title"]
        seen |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_it_is_off_by_default_and_the_monitor_finds_the_service(rendered, helm):
    assert not [d for d in rendered["defaults"] if d["metadata"]["name"].endswith(("-watch", "-dashboard"))]
    documents = rendered["production"]
    (monitor,) = [d for d in documents if d["kind"] == "ServiceMonitor"]
    service, deployment = (find(documents, kind, "retune-watch") for kind in ("Service", "Deployment"))
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    ((_, meta, spec),) = pods([deployment])
    assert service["spec"]["selector"].items() <= meta["labels"].items()
    (container,) = spec["containers"]
    assert unknown(container["command"]) == []
    assert "s3://ml-retune/team-a" in container["command"]
    assert json.loads(find(documents, "ConfigMap", "retune-dashboard")["data"]["retune.json"]) == DASHBOARD
    refused = helm.template("--set", "monitoring.serviceMonitor.enabled=true")
    assert "needs `watch.enabled`" in refused.stderr


def test_only_those_who_are_named_call_it(rendered):
    policy = find(rendered["production"], "NetworkPolicy", "retune-watch")
    (rule,) = policy["spec"]["ingress"]
    names = [
        peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        for peer in rule["from"]
        if "namespaceSelector" in peer
    ]
    assert names == ["ingress-nginx", "monitoring"]
    assert [port["port"] for port in rule["ports"]] == [8008]
