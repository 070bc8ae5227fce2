"""The engine `katib` against the simulator, as fixtures; see `pytest_plugins`."""

import json
import threading
from datetime import UTC, datetime, timedelta

import pytest

from tests.conftest import DEMO, ROOT, SMALL
from tests.engine_run import EngineRun
from tests.katib_simulator.cluster import NAMESPACE, Cluster


class Run(EngineRun):
    """One run of the engine on a cluster with what it reported."""

    def __init__(self, study, folder, data_uri=None, stop=lambda run: False, poll=0.02):
        from retune.engines.katib.engine import KatibEngine

        self.events, self.study, self.later = [], study, timedelta()
        data = data_uri or f"{folder.parent}/data"
        self.engine = KatibEngine(
            study, data, str(folder), self._observe, lambda: stop(self), poll, 5.0, self._clock
        )

    def _clock(self):
        return datetime.now(UTC) + self.later

    def _observe(self, event):
        if event.kind != "polled":
            self.events.append(event)

    @property
    def finished(self):
        return [event.trial for event in self.events if event.kind == "finished"]

    @property
    def records(self):
        return {record.trial: record for record in self.outcome.records}

    @property
    def searched(self):
        """The records of default and search trials by number."""
        return {r.number: r for r in self.outcome.records if r.role in ("default", "search")}


@pytest.fixture
def make_cluster(tmp_path, monkeypatch):
    """Return a function that starts a cluster, the one that $KUBECONFIG then means."""
    started = []

    def start(**options):
        folder = tmp_path / f"cluster-{len(started)}"
        folder.mkdir()
        started.append(Cluster(folder, **options))
        monkeypatch.setenv("KUBECONFIG", started[-1].kubeconfig())
        return started[-1]

    yield start
    for cluster in started:
        cluster.close()


@pytest.fixture
def cluster(make_cluster):
    """A cluster whose trials take milliseconds."""
    return make_cluster()


@pytest.fixture
def on_katib(tmp_path, monkeypatch):
    """Return a function that loads the demo study, made small, for Katib; its pods can see tmp_path and the repository."""
    from retune.study import load

    monkeypatch.chdir(tmp_path)
    mounts = [{"claim": "work", "mount": str(tmp_path)}, {"claim": "repo", "mount": str(ROOT)}]
    katib = [
        "engine.kind=katib", "cluster.images.train=registry.example/retune-train:1", "cluster.gpus=0",
        f"cluster.volumes={json.dumps(mounts)}",
    ]  # fmt: skip
    short = [*SMALL, *katib, "search.algorithm=lhs", "search.trials=6"]
    return lambda *overrides, file=None: load(file or DEMO, [*(katib if file else short), *overrides])


@pytest.fixture
def run_on(tmp_path, on_katib):
    """Return a function that runs a study to its end, in the search folder `name`."""

    def run(*overrides, name="search-0123456789abcdef", stop=lambda run: False):
        return Run(on_katib(*overrides), tmp_path / name, stop=stop).go()

    return run


def wrong(cluster, **what):
    """Make the stand-in for training fail, see `fast_trial`."""
    cluster.pods.env["SIMULATED"] = json.dumps(what)


def in_background(function):
    """Run a function in a thread; joining the returned handle gives its result or raises its error."""
    box = {}

    def call():
        try:
            box["result"] = function()
        except BaseException as error:
            box["error"] = error

    thread = threading.Thread(target=call, daemon=True)
    thread.start()

    def join(seconds=120):
        thread.join(seconds)
        assert not thread.is_alive(), "it did not end"
        if "error" in box:
            raise box["error"]
        return box["result"]

    return join


def experiments(cluster):
    """The Experiments on the cluster."""
    return cluster.objects.list("experiments", NAMESPACE)
