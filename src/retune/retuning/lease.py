"""The retunings of a study: numbered records in its folder, which are lock, account of GPU hours, and history at once.

``<artifacts>/<study>/retunings/0007.json`` is created by exactly one process (`store.create`), which rewrites it while
it runs: each write is a heartbeat that also adds the GPU hours so far. The newest record names the owner.

* Acquire: create the next number, if the retuning of the newest record has ended.
* The owner died: a process that sees no new heartbeat for `DEAD_AFTER` intervals, by its own clock, creates the next
  number. If several try, one succeeds. The hours of the dead owner stay in its record and count against the budget.
* The owner was only slow: at its next heartbeat it finds that the next number exists, and stops.

Clocks of two machines are never compared. There is no fencing token: an owner that was suspended for longer than that
may run beside the next one until its next heartbeat. Moving the champion has its own lock (`retune.registry.lock`).
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Literal, Self

from pydantic import Field

from retune import store
from retune.errors import Interrupted, RetuneError
from retune.records import Record, now, parse

FOLDER = "retunings"
HEARTBEAT_SECONDS = 10.0
DEAD_AFTER = 6  # missed heartbeats
_POLL_SECONDS = 0.2


class Retuning(Record):
    """One retuning.

    Attributes:
        number: counted from 1.
        owner: host and process.
        beat: number of heartbeats so far, `beat_seconds` apart.
        state: ``running``; ``done``; ``stopped``, to be resumed; ``failed``.
        inputs: digests of the study's inputs (`retune.retuning.changes`).
        reasons: why it started.
        gpu_hours: GPU hours held so far: hours times `gpus`; a machine without a GPU counts as one.
        decision: of the gate.
        challenger, champion: the versions that the gate compared.
        promoted: whether the champion changed.
        pull_request: its address.
        problem: why it failed or stopped.

    """

    number: int
    owner: str = ""
    started: str = ""
    updated: str = ""
    beat: int = 0
    beat_seconds: float = HEARTBEAT_SECONDS
    state: Literal["running", "done", "stopped", "failed"] = "running"
    inputs: dict[str, str] = Field(default_factory=dict)
    reasons: list[str] = Field(default_factory=list)
    gpus: int = 1
    gpu_hours: float = 0.0
    decision: str | None = None
    model: str = ""
    challenger: str | None = None
    champion: str | None = None
    promoted: bool = False
    pull_request: str | None = None
    problem: str | None = None


class AlreadyRunning(Interrupted):
    """Another retuning of the study is running."""


class Retunings:
    """The records of a study's retunings.

    Args:
        root: the study's folder.
        beat_seconds: seconds between two heartbeats of the retunings started here.

    """

    def __init__(self, root: str, beat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self.uri = store.join(root, FOLDER)
        self.beat_seconds = beat_seconds

    def entries(self) -> list[Retuning]:
        """Return all records, the oldest first."""
        contents = store.contents(self.uri, lambda name: name.endswith(".json") and "/" not in name)
        return [
            parse(Retuning, content, store.join(self.uri, name)) for name, content in sorted(contents.items())
        ]

    def spent(self, days: float, entries: list[Retuning] | None = None) -> float:
        """Return the GPU hours of the retunings that were running in the last `days`."""
        since = datetime.now(UTC) - timedelta(days=days)
        hours = 0.0
        for entry in self.entries() if entries is None else entries:
            if entry.updated and datetime.fromisoformat(entry.updated) >= since:
                # A dead owner may have run until just before its first missed heartbeat
                unseen = entry.beat_seconds / 3600 * entry.gpus if entry.state == "running" else 0.0
                hours += entry.gpu_hours + unseen
        return hours

    def acquire(self, gpus: int, inputs: dict[str, str], reasons: list[str]) -> Lease:
        """Start the next retuning.

        Raises:
            AlreadyRunning: if another one is running.
        """
        newest = self._newest()
        if newest is not None and newest.state == "running":
            self._wait_for_heartbeat(newest)
        entry = Retuning(
            number=1 if newest is None else newest.number + 1, owner=f"{socket.gethostname()}, process {os.getpid()}",
            started=now(), updated=now(), beat_seconds=self.beat_seconds, gpus=gpus, inputs=inputs, reasons=reasons,
        )  # fmt: skip
        if not store.create(self.path(entry.number), entry.to_json()):
            raise AlreadyRunning(f"another retuning of the study has just started: {self.path(entry.number)}")
        return Lease(self, entry)

    def path(self, number: int) -> str:
        """Return the URI of a record."""
        return store.join(self.uri, f"{number:04d}.json")

    def _newest(self) -> Retuning | None:
        entries = self.entries()
        return entries[-1] if entries else None

    def _wait_for_heartbeat(self, entry: Retuning) -> None:
        """Return once the owner of a record is known to be dead, or has ended; that takes up to `DEAD_AFTER` heartbeats.

        Raises:
            AlreadyRunning: as soon as a heartbeat shows that it is alive.
        """
        end = time.monotonic() + DEAD_AFTER * entry.beat_seconds
        while time.monotonic() < end:
            time.sleep(min(_POLL_SECONDS, entry.beat_seconds))
            seen = parse(Retuning, store.read(self.path(entry.number)), self.path(entry.number))
            if seen.state != "running":
                return
            if seen.beat != entry.beat:
                raise AlreadyRunning(
                    f"retuning {entry.number} has been running since {entry.started} ({entry.owner}): {self.path(entry.number)}; "
                    "run again when it has ended"
                )


class Lease:
    """A retuning that runs in this process: a thread writes its heartbeats until the block ends.

    An error that leaves the block is written to the record: `Interrupted` as stopped, any other as failed.
    """

    def __init__(self, retunings: Retunings, entry: Retuning) -> None:
        self.entry = entry
        self._retunings = retunings
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._keep_alive, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._lost:
            return
        if error is None:
            self.entry.state = "done"
        else:
            self.entry.state = "stopped" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed"
            self.entry.problem = str(error)[:2000] or type(error).__name__
        self._write()

    @property
    def gpu_hours(self) -> float:
        """GPU hours held so far."""
        return (time.monotonic() - self._began) / 3600 * self.entry.gpus

    @property
    def lost(self) -> bool:
        """Whether another retuning has taken over because this one missed its heartbeats."""
        return self._lost

    def _keep_alive(self) -> None:
        while not self._ended.wait(self._retunings.beat_seconds):
            # Storage may be unreachable for a while; the next heartbeat finds out whether another retuning took over
            with suppress(RetuneError, OSError):
                if store.exists(self._retunings.path(self.entry.number + 1)):
                    self._lost = True
                    return
                self._write()

    def _write(self) -> None:
        self.entry.beat += 1
        self.entry.gpu_hours = round(self.gpu_hours, 6)
        self.entry.updated = now()
        store.write(self._retunings.path(self.entry.number), self.entry.to_json())


def stop_when(lease: Lease, left: float | None, signals: Callable[[], int]) -> Callable[[], int]:
    """Return the function that `retune.launch.local.run` calls several times a second: how many stops were requested.

    One stop makes the running trials save a checkpoint; the second ends everything at once.

    Args:
        lease: everything ends at once when another retuning has taken it over.
        left: GPU hours left in the budget. The first stop comes a minute before they are used up, the second five
            seconds before; with a small budget when half and a tenth of it is left.
        signals: the stops requested by signals.
    """

    def stops() -> int:
        if lease.lost:
            return 2
        if left is None:
            return signals()
        rest, gpus = left - lease.gpu_hours, lease.entry.gpus
        if rest <= min(left / 10, gpus * 5 / 3600):
            return 2
        return max(signals(), int(rest <= min(left / 2, gpus * 60 / 3600)))

    return stops
