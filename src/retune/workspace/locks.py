"""A lock file per study on this machine, so that only one run writes at a time; released however its owner ends (flock)."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retune.errors import RetuneError


@contextmanager
def only_writer(path: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock file while the block runs.

    Args:
        path: the lock file; created if missing, never deleted.
        wait_seconds: how long to wait for another owner, e.g. the children of a killed run, which end within a second.

    Raises:
        RetuneError: naming the owner, if it does not release the lock in time.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    file.seek(0)
                    owner = file.read().strip() or "unknown"
                    raise RetuneError(
                        f"one run at a time may write a study, but process {owner} holds {path}; wait for it or stop it"
                    ) from None
                time.sleep(0.1)
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield
