"""The retunings of a study: numbered records in its folder, which are lock, account and memory at once.

``<artifacts>/<study>/retunings/0007.json`` is created by exactly one process (`store.create`), which rewrites it while
it works: each rewriting is a heartbeat, and adds the GPU hours so far. The newest record tells who is at work.

* take: create the next number, if the newest record has ended.
* the owner died: whoever has seen the same heartbeat for `DEAD_AFTER` heartbeats of its own clock creates the next
  number. Of several only one can. What the dead one spent stays in its record, and counts.
* an owner that was only slow sees the next number at its next heartbeat, and stops.

No clocks of two machines are compared. An owner that stands still for longer than that and then goes on may work beside
the next one until its next heartbeat; moving the champion has a lock of its own (`retune.registry.lock`).
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Literal, Self

from pydantic import Field

from retune import store
from retune.errors import Interrupted, RetuneError
from retune.records import Record, now, parse

FOLDER = "retunings"
BEAT_SECONDS = 10.0
DEAD_AFTER = 6
_LOOK_SECONDS = 0.2


class Retuning(Record):
    """One retuning.

    Attributes:
        number: counted from 1. owner: host and process. beat: counts its heartbeats, `beat_seconds` apart.
        state: ``running``; ``done``; ``stopped``, to be carried on; ``failed``.
        inputs: digests of what it was made from (`retune.retuning.changes`). reasons: why it began.
        gpu_hours: held so far: the hours times `gpus`, a CPU-only machine counted as one.
        decision: the gate's, with the versions it is about. promoted: whether the champion moved.
        pull_request: its address. problem: why it failed or stopped.

    """

    number: int
    owner: str = ""
    started: str = ""
    updated: str = ""
    beat: int = 0
    beat_seconds: float = BEAT_SECONDS
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


class Busy(Interrupted):
    """Another retuning of the study is at work."""


class Book:
    """The records of a study's retunings.

    Args:
        root: the study's folder. beat_seconds: time between two heartbeats of those begun here.

    """

    def __init__(self, root: str, beat_seconds: float = BEAT_SECONDS) -> None:
        self.uri = store.join(root, FOLDER)
        self.beat_seconds = beat_seconds

    def entries(self) -> list[Retuning]:
        """Return all records, the oldest first."""
        found = store.contents(self.uri, lambda name: name.endswith(".json") and "/" not in name)
        return [
            parse(Retuning, content, store.join(self.uri, name)) for name, content in sorted(found.items())
        ]

    def spent(self, days: float, entries: list[Retuning] | None = None) -> float:
        """Return the GPU hours of retunings that were at work in the last `days`; of one that died, with its last beat."""
        since = datetime.now(UTC) - timedelta(days=days)
        hours = 0.0
        for entry in self.entries() if entries is None else entries:
            if entry.updated and datetime.fromisoformat(entry.updated) >= since:
                unseen = entry.beat_seconds / 3600 * entry.gpus if entry.state == "running" else 0.0
                hours += entry.gpu_hours + unseen
        return hours

    def take(self, gpus: int, inputs: dict[str, str], reasons: list[str]) -> Held:
        """Begin the next retuning.

        Raises:
            Busy: if another one is at work.
        """
        newest = self._newest()
        if newest is not None and newest.state == "running":
            self._wait_for_life(newest)
        entry = Retuning(
            number=1 if newest is None else newest.number + 1, owner=f"{socket.gethostname()}, process {os.getpid()}",
            started=now(), updated=now(), beat_seconds=self.beat_seconds, gpus=gpus, inputs=inputs, reasons=reasons,
        )  # fmt: skip
        if not store.create(self.path(entry.number), entry.to_json()):
            raise Busy(f"another retuning of the study has just begun: {self.path(entry.number)}")
        return Held(self, entry)

    def path(self, number: int) -> str:
        """Return the URI of a record."""
        return store.join(self.uri, f"{number:04d}.json")

    def _newest(self) -> Retuning | None:
        found = self.entries()
        return found[-1] if found else None

    def _wait_for_life(self, entry: Retuning) -> None:
        """Return once the owner of a record is known to be dead, or has ended.

        Raises:
            Busy: as soon as it shows a sign of life.
        """
        end = time.monotonic() + DEAD_AFTER * entry.beat_seconds
        while time.monotonic() < end:
            time.sleep(min(_LOOK_SECONDS, entry.beat_seconds))
            seen = parse(Retuning, store.read(self.path(entry.number)), self.path(entry.number))
            if seen.state != "running":
                return
            if seen.beat != entry.beat:
                raise Busy(
                    f"retuning {entry.number} is at work since {entry.started} ({entry.owner}): {self.path(entry.number)}; "
                    "run again when it has ended"
                )


class Held:
    """A retuning that is at work here: a thread writes its heartbeats until the block ends.

    An error that leaves the block is noted in the record: `Interrupted` as stopped, any other as failed.
    """

    def __init__(self, book: Book, entry: Retuning) -> None:
        self.entry = entry
        self._book = book
        self._began = time.monotonic()
        self._over = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
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
        """Whether another retuning has taken over, as this one seemed dead."""
        return self._lost

    def _beat(self) -> None:
        while not self._over.wait(self._book.beat_seconds):
            try:
                if store.exists(self._book.path(self.entry.number + 1)):
                    self._lost = True
                    return
                self._write()
            except (RetuneError, OSError):
                continue  # storage that is away for a while: the next beat tells whether others went on

    def _write(self) -> None:
        self.entry.beat += 1
        self.entry.gpu_hours = round(self.gpu_hours, 6)
        self.entry.updated = now()
        store.write(self._book.path(self.entry.number), self.entry.to_json())


def stop_when(held: Held, left: float | None, asked: Callable[[], int]) -> Callable[[], int]:
    """Return what `retune.launch.local.run` asks several times a second: how often a stop was asked for.

    Args:
        held: ends at once when it was taken over. left: GPU hours of the budget. A minute before its end running trials are
            asked for a checkpoint, five seconds before it all is ended; of a small budget half and a tenth. asked: stops by
            signals.
    """

    def stops() -> int:
        if held.lost:
            return 2
        if left is None:
            return asked()
        rest, gpus = left - held.gpu_hours, held.entry.gpus
        if rest <= min(left / 10, gpus * 5 / 3600):
            return 2
        return max(asked(), int(rest <= min(left / 2, gpus * 60 / 3600)))

    return stops
