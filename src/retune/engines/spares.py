"""Worker processes forked ahead of the search: a run and its workers import torch, transformers and PEFT once together.

These imports take seconds of CPU in every process. So `retune.launch.run` imports them first, and then forks as many
processes as the search will have workers. At that time it has a single thread and no lock, thread pool or device that a
fork would break: torch starts its threads, and CUDA its device, at their first use, which is after the fork in each process. A
spare process waits until the engine names its log and its number of threads, and then becomes a worker like any other
(`retune.engines.worker`). If none is left, as for the replacement of a dead worker, a new interpreter is started.

Nothing is forked if a GPU is visible, since importing PEFT may initialise CUDA (through bitsandbytes), nor on systems other
than Linux, where libraries such as macOS' Accelerate do not survive a fork.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

from retune import gpus
from retune.engines import spread
from retune.study import Study

_POLL_SECONDS = 0.02
_waiting: list[Forked] = []


class Forked:
    """A process forked from this one, with the part of the interface of `subprocess.Popen` that the engine uses."""

    def __init__(self, pid: int, stdin: TextIO, stdout: TextIO) -> None:
        self.pid, self.stdin, self.stdout = pid, stdin, stdout
        self.returncode: int | None = None
        # A signal must not be sent after `waitpid`: the pid may be another process' then
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Return its exit code, negative if it was killed by that signal; None while it runs."""
        with self._lock:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit code.

        Raises:
            subprocess.TimeoutExpired: if it still runs after `timeout` seconds.
        """
        end = math.inf if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("a worker", timeout or 0.0)
            time.sleep(_POLL_SECONDS)
        return code

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        with self._lock:
            if self.returncode is None:
                os.kill(self.pid, number)


def wanted(study: Study) -> int:
    """Return how many workers to fork for the study's search; 0 where a fork is not safe, see above."""
    if sys.platform != "linux" or study.engine.kind != "local" or gpus.visible():
        return 0
    return spread.spread(spread.settled(study, None)).workers


def fork(count: int) -> bool:
    """Fork `count` processes; return False in this one, and True in each of the others once it is to become a worker.

    A spare that is never needed ends at the latest with this process, when its standard input is closed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    for _ in range(count):
        (child_in, to_child), (from_child, child_out) = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            _become_spare(child_in, child_out)
            return True
        os.close(child_in)
        os.close(child_out)
        _waiting.append(Forked(pid, open(to_child, "w"), open(from_child)))  # noqa: SIM115
    return False


def take(log: Path, threads: int) -> Forked | None:
    """Return a spare process, which now becomes a worker that logs to `log`; None if none is left."""
    while _waiting:
        process = _waiting.pop(0)
        try:
            process.stdin.write(json.dumps({"log": str(log), "threads": threads}) + "\n")
            process.stdin.flush()
        except BrokenPipeError:  # killed while it waited
            process.wait()
            continue
        return process
    return None


def end() -> None:
    """End the spare processes that were not needed."""
    while _waiting:
        process = _waiting.pop()
        process.stdin.close()
        process.stdout.close()
        process.wait()


def _become_spare(child_in: int, child_out: int) -> None:
    """In the new process: make the pipes standard input and output, close all other files, and wait for `take`."""
    _waiting.clear()
    os.dup2(child_in, 0)
    os.dup2(child_out, 1)
    # The other spares' pipes among them: while a copy of an end is open, its reader sees no end of file
    os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    line = sys.stdin.readline()
    if not line:
        os._exit(0)  # not needed; sys.exit would run the parent's exit handlers
    setup = json.loads(line)
    log = os.open(setup["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(log, 2)
    os.close(log)
    # For child processes; this one has read them at import
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(setup["threads"])
    import torch

    torch.set_num_threads(setup["threads"])
