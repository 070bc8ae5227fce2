"""Running code that a model wrote, each program in its own process that can do nothing but compute.

What holds, and by what (`Isolation`):

* ``namespaces`` (Linux, where the kernel grants them): own network, process, mount and IPC namespaces; the file
  system is a new one that shows only the Python installation, read-only, and an empty scratch folder in memory.
* ``filters`` (Linux, inside containers that forbid namespaces): Landlock allows reading the Python installation and
  writing the scratch folder, nothing else.

In both, a seccomp filter forbids sockets, signals to others, leaving the process group, tracing and mounting; the
environment is empty; limits hold for CPU and wall time, memory, file size, open files and processes; and at the end
every process is killed. Elsewhere code is not run at all.

A program passes only if it ran to its end: success is a random number, sent over a pipe after the last line.
Exiting early, printing and writing to files prove nothing. Not covered: a program that searches the interpreter's
memory for that number, or that answers the tests with objects equal to everything. The one would be malice aimed at
this file, the other fools every test that runs in the same process; a wrong score is all that either can win.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Isolation = Literal["namespaces", "filters"]
_CHILD = Path(__file__).with_name("child.py")
_GRACE_SECONDS = 30.0  # to start Python and to clean up, beside the program's own time


@dataclass(frozen=True)
class Limits:
    """What one program may use. Seconds are wall time; the CPU time is one second more."""

    seconds: float = 3.0
    memory_mib: int = 1024
    file_mib: int = 8
    scratch_mib: int = 32
    open_files: int = 32
    processes: int = 8


@dataclass(frozen=True)
class Outcome:
    """How a program ended. `reason` is empty where it passed."""

    passed: bool
    reason: str = ""


DEFAULT = Limits()


def run(program: str, limits: Limits = DEFAULT, isolation: Isolation | None = None) -> Outcome:
    """Run a Python program in the sandbox and return whether it ran to its end without an exception.

    Args:
        isolation: which means to use; the strongest that this machine has by default.

    Raises:
        OSError: if the sandbox itself cannot be set up: no program is ever run without it.

    """
    isolation = isolation or available()
    if isolation is None:
        raise OSError(missing())
    proof = secrets.token_hex(16)
    scratch = tempfile.mkdtemp(prefix="retune-sandbox-")
    os.chmod(scratch, 0o777)  # the program runs as another user where we are root
    reader, writer = os.pipe()
    order = {"program": program, "proof": proof, "scratch": scratch, "isolation": isolation, "pipe": writer,
             "limits": asdict(limits), "python": _python_folders()}  # fmt: skip
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={},
        cwd="/",
        pass_fds=[writer],
        start_new_session=True,
    )
    os.close(writer)
    try:
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps(order).encode())
            child.stdin.close()
        except BrokenPipeError:
            pass  # it ended before it read: the missing message tells why
        message = _listen(reader, child, limits.seconds + _GRACE_SECONDS)
    finally:
        _end(child)
        os.close(reader)
        shutil.rmtree(scratch, ignore_errors=True)
    return _judge(message, proof, limits)


@functools.cache
def available() -> Isolation | None:
    """Return the strongest isolation that works here, found by trying; None where there is none."""
    if sys.platform != "linux":
        return None
    for isolation in ("namespaces", "filters"):
        try:
            if run("assert 1 + 1 == 2", isolation=isolation).passed:  # type: ignore[arg-type]
                return isolation  # type: ignore[return-value]
        except OSError:
            continue
    return None


def missing() -> str | None:
    """Return why code cannot be run here, or None where it can."""
    if available() is not None:
        return None
    return (
        "code is run only in a sandbox, which needs Linux with user namespaces or with Landlock (kernel 5.13), "
        f"and this machine ({sys.platform}) grants neither: run the task in a container or leave it out"
    )


def _python_folders() -> list[str]:
    """Return the folders that the interpreter needs to start and to import its standard library."""
    wanted = {
        sys.base_prefix,
        sys.base_exec_prefix,
        sysconfig.get_path("stdlib"),
        os.path.dirname(os.path.realpath(sys.executable)),
    }
    return sorted(folder for folder in wanted if folder not in ("/", "/usr"))


def _listen(reader: int, child: subprocess.Popen[bytes], seconds: float) -> bytes:
    """Return what came over the pipe until the supervisor of the program is gone."""
    deadline = time.monotonic() + seconds
    ended = os.pidfd_open(child.pid)
    message = b""
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(reader, selectors.EVENT_READ)
            selector.register(ended, selectors.EVENT_READ)
            while (left := deadline - time.monotonic()) > 0:
                ready = {key.fd for key, _ in selector.select(left)}
                if reader in ready:
                    part = os.read(reader, 4096)
                    message += part[: max(0, 4096 - len(message))]
                    if not part:
                        selector.unregister(reader)
                if ended in ready and reader not in ready:
                    break
    finally:
        os.close(ended)
    return message


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill the supervisor and its whole process group. The group outlives its leader, so this is never too late."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _judge(message: bytes, proof: str, limits: Limits) -> Outcome:
    """Read the lines on the pipe: the program's proof, and the supervisor's word on how it ended."""
    lines = message.decode(errors="replace").splitlines()
    for line in lines:
        if line.startswith(f"setup:{proof}:"):
            raise OSError(f"the sandbox could not be set up: {line.split(':', 2)[2]}")
    if f"passed:{proof}" in lines:
        return Outcome(True)
    failed = [line.split(":", 2)[2] for line in lines if line.startswith(f"failed:{proof}:")]
    if failed:
        return Outcome(False, failed[0])
    if f"timeout:{proof}" in lines:
        return Outcome(False, f"longer than {limits.seconds:g} s")
    return Outcome(False, "ended before its last line")
