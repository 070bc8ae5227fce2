"""What the processes of a study share: they end when the one that started them ends, however it ended."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PARENT = "RETUNE_PARENT_PID"
"""Environment variable naming the process to end with, where it is not the direct parent (a shell is in between)."""


@contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """Yield a function that counts the SIGINT and SIGTERM so far; both do nothing else inside the block.

    For programs: a library function must not take signals away from whoever calls it. Outside of the main thread
    Python allows no handlers, and none is set.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    seen: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda number, frame: seen.append(number)) for number in numbers]
    try:
        yield lambda: len(seen)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def uncollected() -> Iterator[None]:
    """Let Python look for no garbage inside the block: where much is made that stays, such as by imports, it costs a third."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def die_with_parent(poll_seconds: float = 0.5) -> None:
    """End this process soon after its parent is gone, SIGKILL of the parent included.

    Polls: Linux's PR_SET_PDEATHSIG would fire when the *thread* that started this process ends, and macOS has
    nothing like it.
    """
    parent = os.getppid()
    _end_when(lambda: os.getppid() != parent, poll_seconds)


def die_with_run(poll_seconds: float = 0.5) -> Callable[[], None]:
    """End this process soon after the process named by ``RETUNE_PARENT_PID`` is gone; without the variable do nothing.

    Returns a function that ends the watch, and its thread.
    """
    if PARENT not in os.environ:
        return lambda: None
    pid = int(os.environ[PARENT])
    return _end_when(lambda: not alive(pid), poll_seconds)


def alive(pid: int) -> bool:
    """Return whether the process runs; one that ended but was not waited for (a zombie) does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except (PermissionError, FileNotFoundError):  # another user's, or no /proc on this system
        return True


def _end_when(over: Callable[[], bool], poll_seconds: float) -> Callable[[], None]:
    enough = threading.Event()

    def watch() -> None:
        while not over():
            if enough.wait(poll_seconds):
                return
        os._exit(1)

    thread = threading.Thread(target=watch, name="end-with-the-run", daemon=True)
    thread.start()

    def stop() -> None:
        enough.set()
        thread.join()

    return stop
