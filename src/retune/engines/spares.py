"""Worker processes forked ahead of the search: a run and its workers import torch, transformers and PEFT once together.

These imports take seconds of CPU in every process. So `retune.launch.run` does them before anything else, and forks as many
processes as the search will have workers while it still has one thread and no lock, pool or device that a fork would
break: torch starts its threads, and CUDA its device, when they are first used, which is after the fork, in each process of its
own. Such a spare process waits for the engine to name its log and threads, and then is a worker like any other
(`retune.engines.worker`). Where there is none left, as for a worker that replaces a dead one, a new interpreter is started.

None is forked where a GPU is visible, since importing PEFT may ask CUDA for it (through bitsandbytes), nor on other systems
than Linux, whose libraries (macOS' Accelerate) do not allow it.
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
    """A process forked from this one; has what the engine uses of `subprocess.Popen`."""

    def __init__(self, pid: int, stdin: TextIO, stdout: TextIO) -> None:
        self.pid, self.stdin, self.stdout = pid, stdin, stdout
        self.returncode: int | None = None
        self._lock = threading.Lock()  # once it was waited for, its pid may be another process'

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
    """Return how many workers of the study's search can be forked here; 0 where none may be."""
    if sys.platform != "linux" or study.engine.kind != "local" or gpus.visible():
        return 0
    return spread.spread(spread.settled(study, None)).workers


def fork(count: int) -> bool:
    """Fork so many processes; return False here, and True in each of them once it is to be a worker.

    A process that nobody needs ends with the one that forked it, at the latest.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    for _ in range(count):
        (task, give), (listen, tell) = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            _become(task, tell)
            return True
        os.close(task)
        os.close(tell)
        _waiting.append(Forked(pid, open(give, "w"), open(listen)))  # noqa: SIM115
    return False


def take(log: Path, threads: int) -> Forked | None:
    """Return a process that becomes a worker now, None if none is left; its messages go to `log`."""
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
    """End the processes that were not needed."""
    while _waiting:
        process = _waiting.pop()
        process.stdin.close()
        process.stdout.close()
        process.wait()


def _become(task: int, tell: int) -> None:
    """In the new process: take the pipes as standard input and output, drop all else, and wait for `take`."""
    _waiting.clear()
    os.dup2(task, 0)
    os.dup2(tell, 1)
    os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    line = sys.stdin.readline()
    if not line:
        os._exit(0)
    told = json.loads(line)
    log = os.open(told["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(log, 2)
    os.close(log)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # for what it starts
        os.environ[name] = str(told["threads"])
    import torch

    torch.set_num_threads(told["threads"])  # the variables were read long before
