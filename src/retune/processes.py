"""The life of a study's processes: each ends when the process that started it has ended, however that happened."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PARENT = "RETUNE_PARENT_PID"
"""Environment variable with the id of the process to end with, where that is not the direct parent: a shell may be between."""


@contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """Yield a function that returns how many SIGINT and SIGTERM have arrived; inside the block they do nothing else.

    For programs only: a library function must not replace its caller's signal handlers. Outside of the main thread,
    where Python allows no handlers, it always returns 0.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    received: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda number, frame: received.append(number)) for number in numbers]
    try:
        yield lambda: len(received)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pause garbage collection inside the block; it takes a third of the time of large imports, whose objects all stay."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def die_with_parent(poll_seconds: float = 0.5) -> None:
    """End this process soon after its parent has ended, even by SIGKILL.

    It polls, since Linux's PR_SET_PDEATHSIG would fire when the *thread* that started this process ends (prctl(2)), and
    macOS has nothing similar.
    """
    parent = os.getppid()
    _end_when(lambda: os.getppid() != parent, poll_seconds)


def die_with_run(poll_seconds: float = 0.5) -> Callable[[], None]:
    """End this process soon after the process ``RETUNE_PARENT_PID`` has ended; without the variable do nothing.

    Returns:
        a function that stops watching and ends the thread that does.

    """
    if PARENT not in os.environ:
        return lambda: None
    pid = int(os.environ[PARENT])
    return _end_when(lambda: not alive(pid), poll_seconds)


def alive(pid: int) -> bool:
    """Return whether a process runs. One that has ended but was not waited for (a zombie) does not."""
    try:
        os.kill(pid, 0)
        # The state follows the program's name in brackets, which may hold brackets itself (proc_pid_stat(5))
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except (PermissionError, FileNotFoundError):  # another user's, or no /proc on this system
        return True


def _end_when(over: Callable[[], bool], poll_seconds: float) -> Callable[[], None]:
    stopped = threading.Event()

    def watch() -> None:
        while not over():
            if stopped.wait(poll_seconds):
                return
        os._exit(1)  # sys.exit would end this thread alone

    thread = threading.Thread(target=watch, name="end-with-the-run", daemon=True)
    thread.start()

    def stop() -> None:
        stopped.set()
        thread.join()

    return stop
