"""Fixture for tests that need PostgreSQL: `postgres` is the URI of an empty database on a server of our own.

Use: `pytest_plugins = ["tests.postgres_server"]`. The server runs on a free port, in a folder of its own, and as
another user where the tests run as root, which PostgreSQL refuses.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

_USER = "nobody"


def _program(name: str) -> str:
    """Return the path of one of PostgreSQL's programs; Debian keeps them out of PATH."""
    places = [str(place) for place in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    found = shutil.which(name, path=os.pathsep.join([*places, os.environ.get("PATH", "")]))
    if found is None:
        pytest.skip(f"{name} is missing; install it with: apt-get install postgresql")
    return found


@pytest.fixture(scope="session")
def _postgres():
    initdb, server, ready = _program("initdb"), _program("postgres"), _program("pg_isready")
    who = {"user": _USER, "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
    with tempfile.TemporaryDirectory() as name:  # pytest's folders are closed to other users
        folder = Path(name)
        data, log = folder / "data", folder / "log"
        if who:
            shutil.chown(folder, _USER)
        command = [initdb, "--pgdata", str(data), "--username", "retune", "--auth", "trust", "--no-sync"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, **who)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [server, "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", str(folder), "-F"]
        with log.open("wb") as output:
            process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, **who)
        try:
            asked = [ready, "--host", "127.0.0.1", "--port", str(port), "--timeout", "1"]
            for _ in range(120):
                if process.poll() is not None or subprocess.run(asked, capture_output=True).returncode == 0:
                    break
            else:
                pytest.fail("PostgreSQL did not start: " + log.read_text())
            assert process.poll() is None, log.read_text()
            yield f"127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGINT)  # SIGTERM would wait for clients to go
            process.wait(60)


@pytest.fixture
def postgres(_postgres):
    import psycopg

    name = f"mlflow_{os.urandom(4).hex()}"
    with psycopg.connect(f"postgresql://retune@{_postgres}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"postgresql+psycopg://retune@{_postgres}/{name}"
