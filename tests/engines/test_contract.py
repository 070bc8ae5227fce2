"""The engine `local` holds what we ask of the engines of other packages."""

import pytest

from retune.testing.engines import EngineContract


@pytest.mark.slow
class TestLocal(EngineContract):
    name = "local"
