"""The local engine's client: it returns what the functions return, over gRPC and through kills of the service."""

import random
import signal
import threading
import time

import pytest
from katib_requests import Service

from retune import search
from retune.errors import InputError
from retune.search import Objective, Observation
from retune.study import parse
from retune.suggestion.client import SuggestionClient

PARAMETERS = [
    {"name": "rank", "kind": "integer", "low": 1, "high": 64, "scale": "log", "default": 8},
    {"name": "alpha", "kind": "integer", "low": 4, "high": 64, "step": 4, "default": 32},
    {"name": "dropout", "kind": "discrete", "values": [0.0, 0.0001, 0.1], "default": 0.1},
    {
        "name": "learning_rate",
        "kind": "real",
        "low": 1e-6,
        "high": 1e-3,
        "scale": "log",
        "step": 0.05,
        "default": 1e-5,
    },
]


def study(**searching):
    return parse(
        {
            "name": "s",
            "seed": 11,
            "model": {"base": "m"},
            "data": {"sources": [{"format": "alpaca", "uri": "a", "share": 1}], "train": 10, "validation": 5},
            "search": {
                "parameters": PARAMETERS,
                "constraints": [{"metric": "adapter_mib", "max": 60}],
                **searching,
            },
            "promote": {"model": "m"},
        }
    )


def measured(assignment):
    near = (assignment["learning_rate"] - 1e-4) ** 2 * 1e7 + (assignment["alpha"] - 20) ** 2 / 1e3
    return {"validation_loss": 1.5 + near, "adapter_mib": float(assignment["rank"])}


def run(study_, suggest, trials=24, batch=3):
    """A study with running and failed trials, in the way of the local engine."""
    rng, history = random.Random(3), []
    while len(history) < trials:
        for assignment in suggest(history, batch):
            failed = rng.random() < 0.2
            status = "failed" if failed else "completed"
            history.append(
                Observation(
                    assignment, status, {} if failed else measured(assignment), f"trial-{len(history):03d}"
                )
            )
        last = history[-1]
        shown = [*history[:-1], Observation(last.assignment, "running", {}, last.name)]
        history = history if rng.random() < 0.5 else [*shown[:-1], last]
    return history


@pytest.mark.parametrize("algorithm", sorted(search.ALGORITHMS))
def test_the_wire_changes_nothing(service, algorithm):
    study_ = study(algorithm=algorithm)
    objective = Objective(constraints=tuple(study_.search.constraints))
    with SuggestionClient(service.address) as client:
        through = run(study_, lambda history, count: client.suggest(study_, history, count))
    direct = run(
        study_,
        lambda history, count: search.suggest(
            algorithm, study_.search.space, objective, {}, history, count, 11
        ),
    )
    assert through == direct


@pytest.mark.slow
def test_a_kill_between_any_two_calls_changes_nothing():
    """Batches of eight, a fifth of the trials fail, and every call meets a new service."""
    study_, services = study(), []

    def suggest(history, count):
        services.append(Service())
        with SuggestionClient(services[-1].address) as client:
            try:
                return client.suggest(study_, history, count)
            finally:
                services[-1].kill()
                services[-1].close()

    restarted = run(study_, suggest, trials=40, batch=8)
    one = Service()
    with SuggestionClient(one.address) as client:
        undisturbed = run(
            study_, lambda history, count: client.suggest(study_, history, count), trials=40, batch=8
        )
    one.close()
    assert restarted == undisturbed
    assert len(services) == 5


@pytest.mark.slow
def test_a_service_that_comes_back_in_time_is_waited_for():
    first = Service()
    first.kill()
    first.close()
    started = []
    timer = threading.Timer(0.5, lambda: started.append(Service(first.port)))
    timer.start()
    with SuggestionClient(first.address, patience=30) as client:
        assert len(client.suggest(study(), [], 2)) == 2
    timer.join()
    started[0].close()


def test_a_service_that_stays_away_is_said_in_a_sentence():
    gone = Service()
    gone.kill()
    gone.close()
    begun = time.monotonic()
    with (
        SuggestionClient(gone.address, patience=1) as client,
        pytest.raises(ConnectionError, match=gone.address),
    ):
        client.suggest(study(), [], 1)
    assert time.monotonic() - begun < 10


def test_a_service_killed_under_the_call_is_a_lost_connection():
    service = Service()
    history = [Observation(ROW, "completed", measured(ROW), number=0)]
    timer = threading.Timer(0.3, service.kill)
    with SuggestionClient(service.address, patience=0.5) as client:
        assert client.validate(study(algorithm="gp")) == []
        # However fast it is, the call is under way when it is killed
        service.process.send_signal(signal.SIGSTOP)
        timer.start()
        with pytest.raises(ConnectionError):
            client.suggest(study(algorithm="gp"), history * 50, 2000)
    timer.join()
    service.close()


ROW = {"rank": 8, "alpha": 32, "dropout": 0.1, "learning_rate": 1e-5}


@pytest.mark.slow
def test_problems_come_back_one_by_one(service):
    with SuggestionClient(service.address) as client:
        assert client.validate(study()) == []
        problems = client.validate(study(settings={"LH_SEARCH": -1, "VERBOSE": 3}))
        assert len(problems) == 2
        with pytest.raises(InputError, match="2 problems"):
            client.suggest(study(settings={"LH_SEARCH": -1, "VERBOSE": 3}), [], 1)
