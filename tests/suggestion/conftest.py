"""A running service, and a channel to it."""

import pytest
from katib_requests import Service


@pytest.fixture(scope="module")
def service():
    running = Service()
    yield running
    running.close()


@pytest.fixture
def channel(service):
    import grpc

    from retune.suggestion.service import UNLIMITED

    with grpc.insecure_channel(service.address, options=UNLIMITED) as open_channel:
        yield open_channel
