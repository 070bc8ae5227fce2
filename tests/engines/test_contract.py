"""The engine `local` passes the contract for engines of other packages."""

import pytest

from retune.testing.engines import EngineContract


@pytest.mark.slow
class TestLocal(EngineContract):
    name = "local"
