"""A history longer than any study of adapters: every algorithm answers within its time and memory, and the pod stays ready."""

import random
import threading
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from katib_requests import Service, add_trial, ask, call, experiment

from retune import search
from retune.engines.katib import registration
from retune.space import tribes2024
from retune.suggestion import messages as katib
from retune.suggestion.service import UNLIMITED

pytestmark = [pytest.mark.slow, pytest.mark.fresh]  # the memory of the service is its own
POINTS = 24  # more than any start design holds, so that the models are asked too
TRIALS = 8000  # Katib's own object with all suggestions reaches etcd's limit at some 14,500
LIMIT = registration.entries("image")[0]["resources"]["limits"]["memory"]


@pytest.fixture(scope="module")
def trials():
    """The trials of a request, whatever the algorithm."""
    space, chance = tribes2024(), random.Random(0)
    request = katib.GetSuggestionsRequest(experiment=experiment(space, "random"))
    for number in range(TRIALS):
        unit = [chance.random() for _ in space.names]
        loss = sum((u - 0.3) ** 2 for u in unit) if number % 7 else None
        condition = katib.FAILED if loss is None else katib.SUCCEEDED
        assignment = space.default() if number == 0 else space.decode(space.from_unit(unit))
        add_trial(request, assignment, condition, loss)
    return request.trials


@pytest.mark.parametrize("algorithm", sorted(search.ALGORITHMS))
def test_eight_thousand_trials(algorithm, trials):
    request = katib.GetSuggestionsRequest(experiment=experiment(tribes2024(), algorithm), trials=trials)
    service, health = Service(), []
    try:
        with grpc.insecure_channel(service.address, options=UNLIMITED) as channel:
            answered = threading.Event()
            kubelet = threading.Thread(target=probe, args=(service.address, answered, health))
            kubelet.start()
            try:
                reply = call(channel, "GetSuggestions", ask(request, POINTS), timeout=60)
            finally:
                answered.set()
                kubelet.join()
        peak = Path(f"/proc/{service.process.pid}/status").read_text().split("VmHWM:")[1].split()[0]
    finally:
        service.close()
    assert len(reply.parameter_assignments) == POINTS
    assert int(peak) / 2**20 < int(LIMIT.removesuffix("Gi"))
    assert "FFF" not in "".join(health), health  # three in a row, and the pod gets no requests any more
    assert "." in health


def probe(address, answered, health):
    """Probe as the kubelet does: by name, with a timeout of one second."""
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while not answered.wait(0.3):
            try:
                stub.Check(health_pb2.HealthCheckRequest(service="manager.v1beta1.Suggestion"), timeout=1)
                health.append(".")
            except grpc.RpcError:
                health.append("F")
