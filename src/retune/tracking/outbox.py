"""The append-only file between a training and the tracking server.

    <spool>/outbox.jsonl   one operation per line, in the order of the calls; never rewritten
    <spool>/position.json  how much of it was sent, and the ids of the runs on the server
    <spool>/files/         copies of the files that operations name
    <spool>/refused.jsonl  operations that the server will never accept, with its reason
    <spool>/sender.lock    held (flock) by the one process that sends

Several processes may append to one outbox. A line that a crash truncated belongs to a call that never returned; readers skip it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Operation = dict[str, Any]


@dataclass
class Position:
    """How far the outbox has been sent: byte offset, experiment id, parent run id and run id by trial."""

    offset: int = 0
    experiment: str | None = None
    parent: str | None = None
    runs: dict[str, str] = field(default_factory=dict)


class Outbox:
    """The operations of one study, on disk.

    Args:
        folder: where the files lie; made if it is not there.

    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._path = folder / "outbox.jsonl"
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._lock = threading.Lock()
        self._unwritten: deque[bytes] = deque()  # appended while the disk was full
        self._synced = 0

    def append(self, operation: Operation) -> None:
        """Write one operation. Survives SIGKILL at once, and a power cut after the next `sync`.

        While the disk is full, operations wait in memory in their order, and go to disk with a later call.
        """
        line = json.dumps(operation, separators=(",", ":"), default=str, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            self._unwritten.append(line)
            self._write()

    def _write(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            size = os.fstat(self._file).st_size
            if size and os.pread(self._file, 1, size - 1) != b"\n":  # a killed writer left part of a line
                os.write(self._file, b"\n")
            while self._unwritten:
                size = os.fstat(self._file).st_size
                line = self._unwritten[0]
                if os.write(self._file, line) < len(line):
                    os.ftruncate(self._file, size)
                    return
                self._unwritten.popleft()
        except OSError:  # e.g. a full disk: the operations stay in `_unwritten`
            return
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def keep(self, data: bytes) -> Path:
        """Keep the content of a file beside the outbox until it is sent; return where."""
        path = self.folder / "files" / hashlib.sha256(data).hexdigest()
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
            temporary.write_bytes(data)
            os.replace(temporary, path)
        return path

    def sync(self) -> None:
        """Force what was appended to the disk."""
        with self._lock:
            if self._unwritten:
                self._write()
            size = os.fstat(self._file).st_size
            if size != self._synced:
                os.fsync(self._file)
                self._synced = size

    def read(self, offset: int, limit: int) -> list[tuple[Operation | None, int]]:
        """Return up to `limit` operations from byte `offset`, each with the offset after it; None for a broken line."""
        operations: list[tuple[Operation | None, int]] = []
        with self._path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n") or len(operations) == limit:
                    break
                offset += len(line)
                operations.append((_parse(line), offset))
        return operations

    def all(self) -> Iterator[Operation]:
        """Return every operation that was ever appended."""
        offset = 0
        while batch := self.read(offset, 1000):
            yield from (operation for operation, _ in batch if operation is not None)
            offset = batch[-1][1]

    def left(self) -> int:
        """Return how many operations have not been sent yet."""
        with self._path.open("rb") as file:
            file.seek(self.position().offset)
            return sum(1 for line in file if line.strip()) + len(self._unwritten)

    def position(self) -> Position:
        """Return how far the outbox has been sent, as last saved."""
        try:
            return Position(**json.loads((self.folder / "position.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return Position()  # sending everything again is safe: operations are idempotent

    def save(self, position: Position) -> None:
        """Save `position` atomically, but without fsync: losing it costs time, never data."""
        temporary = self.folder / "position.json.new"
        temporary.write_text(json.dumps(asdict(position)))
        os.replace(temporary, self.folder / "position.json")

    def refuse(self, operation: Operation, reason: str) -> None:
        """Set aside an operation that the server will never accept."""
        with (self.folder / "refused.jsonl").open("a") as file:
            file.write(json.dumps({"reason": reason, "operation": operation}, default=str) + "\n")

    def refused(self) -> list[dict[str, Any]]:
        """Return what was set aside: `reason` and `operation` of each."""
        try:
            lines = (self.folder / "refused.jsonl").read_bytes().splitlines()
        except OSError:
            return []
        return [entry for line in lines if (entry := _parse(line)) is not None]

    @contextmanager
    def sending(self) -> Iterator[bool]:
        """Hold the lock for sending; yields False if another process holds it."""
        lock = os.open(self.folder / "sender.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
            else:
                yield True
        finally:
            os.close(lock)  # which also unlocks

    def close(self) -> None:
        """Force everything to the disk and close the file."""
        self.sync()
        os.close(self._file)


def _parse(line: bytes) -> Operation | None:
    try:
        parsed = json.loads(line)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None
