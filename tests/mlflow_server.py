"""Fixtures for tests that need MLflow. Use: `pytest_plugins = ["tests.mlflow_server"]`.

`database` is the URI of a new SQLite database, `mlflow_server` a real server that can be killed, stopped and
started.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory) -> Path:
    """An MLflow database without a run: making one takes seconds, copying it does not."""
    from retune.tracking.runs import connect

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    connect(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def database(empty_database, tmp_path, monkeypatch) -> str:
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


class Server:
    """`mlflow server` on a port of this machine, in a process group of its own."""

    def __init__(self, folder: Path, database: str, artifacts: str, *options: str, **env: str) -> None:
        self.folder, self.database, self.artifacts = folder, database, artifacts
        self.options, self.env = options, env
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        if self._process is not None:
            return
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--backend-store-uri", self.database, "--artifacts-destination", self.artifacts]
        command += ["--host", "127.0.0.1", "--port", str(self.port), *self.options]
        log = (self.folder / "log").open("a")
        self._process = subprocess.Popen(
            command, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **self.env},
        )  # fmt: skip
        end = time.monotonic() + 240
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < end, "the MLflow server did not start"
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def signal(self, number: int) -> None:
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="session")
def _one_server(tmp_path_factory, empty_database):
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder / "server.db")
    server = Server(folder, f"sqlite:///{folder}/server.db", str(folder / "artifacts"))
    yield server
    server.kill()


@pytest.fixture
def mlflow_server(_one_server, monkeypatch) -> Server:
    """The session's server; a test that stops it need not start it again."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    _one_server.start()
    return _one_server
