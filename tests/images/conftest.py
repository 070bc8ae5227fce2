"""The images, built once a session."""

import functools

import pytest

from tests.images.containers import Containers, missing


@pytest.fixture(scope="session")
def containers():
    if reason := missing():
        pytest.skip(reason)
    return Containers.in_cache()


@pytest.fixture(scope="session")
def built(containers):
    """Return a function that builds an image at its first call; returns what `make images` printed."""
    return functools.cache(containers.make)
