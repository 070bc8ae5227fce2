"""The suggestion service of a local study: a separate process, called over gRPC on loopback as Katib would call it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

from retune.errors import RetuneError

START_SECONDS = 60
COMMAND = [sys.executable, "-m", "retune", "serve", "--port", "0", "--host", "127.0.0.1", "--die-with-parent"]
"""Starts the service on a free port of this machine, which its first line of output names; it ends with its parent."""


class SuggestionProcess:
    """Keeps one `retune serve` running on a free port; `address` starts it again if it has died.

    That is safe at any time, since the service has no state.

    Args:
        log: file for the service's messages.

    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        self._address = ""

    def address(self) -> str:
        """Return ``host:port`` of the running service; start it if necessary."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        return self._address

    def _start(self) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("a") as log:
            self._process = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._process.stdout is not None
        line = _first_line(self._process.stdout)
        prefix, _, address = line.strip().rpartition(" ")
        if prefix != "serving on":
            self.close()
            raise RetuneError(
                f"the suggestion service did not start; its first line was {line!r}; see {self._log}"
            )
        self._address = address

    @property
    def pid(self) -> int | None:
        """The process id of the service, if one was started."""
        return self._process.pid if self._process else None

    def close(self) -> None:
        """End the service."""
        if self._process is None:
            return
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._process = None


def _first_line(stream: IO[str]) -> str:
    """Return the first line that a process prints, empty if it ends without one."""
    ready, _, _ = select.select([stream], [], [], START_SECONDS)
    return stream.readline() if ready else f"nothing in {START_SECONDS} s"
