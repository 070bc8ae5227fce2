"""Running code that a model wrote, in processes that can do nothing but compute.

There are two means of isolation (`Isolation`):

* ``namespaces`` (Linux, where the kernel grants them): own network, process, mount and IPC namespaces; the file
  system is a new one that shows only the Python installation, read-only, and an empty scratch folder in memory.
* ``filters`` (Linux, inside containers that forbid namespaces): Landlock allows reading the Python installation and
  nothing else; no file can be written.

In both, a seccomp filter forbids sockets, new processes, signals to others, tracing and mounting; the environment is
empty; limits hold for CPU and wall time, memory, file size, open files and threads; and every process is killed
at the end. On other systems code is not run at all.

`check` starts two such processes for each answer: one defines the answer's functions and computes calls, the other runs
the tests and never a line of the answer (`roles`). The verdict comes over a pipe that only the second has, so an
answer can pass only by returning the right values. docs/security.md states what is promised.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

Isolation = Literal["namespaces", "filters"]
_SOURCE = str(Path(__file__).parents[3])  # where `retune` is imported from
_START = f"import sys; sys.path.append({_SOURCE!r}); from retune.evaluation.sandbox.child import main; main()"
_GRACE_SECONDS = 30.0  # to start Python and to clean up, besides the program's own time
_PAUSES = (0.5, 2.0, 8.0)  # seconds before a sandbox that could not be set up is tried again


@dataclass(frozen=True)
class Limits:
    """What one answer may use. Seconds are wall time; the CPU time is one second more."""

    seconds: float = 3.0
    memory_mib: int = 1024
    file_mib: int = 8
    scratch_mib: int = 32
    open_files: int = 32
    threads: int = 8


@dataclass(frozen=True)
class Outcome:
    """How a program ended. `reason` is empty where it passed."""

    passed: bool
    reason: str = ""


DEFAULT = Limits()


class SetupError(OSError):
    """The sandbox could not be set up; nothing was run."""


def check(
    answer: str,
    tests: str,
    entry_point: str,
    *,
    prompt: str = "",
    limits: Limits = DEFAULT,
    isolation: Isolation | None = None,
) -> Outcome:
    """Return whether an answer's function passes its tests.

    Args:
        answer: the whole text that defines the function, prompt and completion.
        tests: text that defines ``check(candidate)``, which raises if the function is wrong. Arguments and results
            are plain data (`retune.evaluation.sandbox.wire`).
        entry_point: the function's name.
        prompt: the part of `answer` that was given; tests may use what it defines.
        limits: of the answer; the tests, which wait for it, get twice the time.
        isolation: the means to use; by default the strongest that works on this machine.

    Raises:
        OSError: if the sandbox cannot be set up after several attempts; nothing is ever run without it.

    """
    jobs = [
        {"role": "judge", "prompt": prompt, "tests": tests, "entry_point": entry_point},
        {"role": "answer", "program": answer, "entry_point": entry_point},
    ]
    return _run_with_retries(jobs, limits, isolation)


def run(program: str, limits: Limits = DEFAULT, isolation: Isolation | None = None) -> Outcome:
    """Run a Python program in the sandbox and return whether it reports that it ended without an exception.

    The program could forge that report, so this is for trusted programs; use `check` to judge answers.

    Raises:
        OSError: if the sandbox cannot be set up after several attempts; nothing is ever run without it.

    """
    return _run_with_retries([{"role": "program", "program": program}], limits, isolation)


@functools.cache
def available() -> Isolation | None:
    """Try each isolation and return the strongest that works here, None if none does."""
    if sys.platform != "linux":
        return None
    isolations: tuple[Isolation, ...] = ("namespaces", "filters")
    for isolation in isolations:
        try:
            if _once([{"role": "program", "program": "assert 1 + 1 == 2"}], DEFAULT, isolation).passed:
                return isolation
        except OSError:
            continue
    return None


def missing() -> str | None:
    """Return why code cannot be run here, or None if it can."""
    if available() is not None:
        return None
    return (
        "code is run only in a sandbox, which needs Linux with user namespaces or with Landlock (kernel 5.13), "
        f"and this machine ({sys.platform}) grants neither: run the task in a container or leave it out"
    )


def _run_with_retries(jobs: list[dict[str, Any]], limits: Limits, isolation: Isolation | None) -> Outcome:
    """Run the jobs; retry after a pause when the machine is temporarily out of a resource."""
    isolation = isolation or available()
    if isolation is None:
        raise OSError(missing())
    for pause in _PAUSES:
        try:
            return _once(jobs, limits, isolation)
        except SetupError:
            time.sleep(pause)
    return _once(jobs, limits, isolation)


def _once(jobs: list[dict[str, Any]], limits: Limits, isolation: Isolation) -> Outcome:
    """Start one process per job, wait for the first, which gives the verdict, and end them all."""
    with contextlib.ExitStack() as stack:
        verdict, calls, replies = (stack.enter_context(_Pipe()) for _ in range(3))
        pipes = {
            "program": {"verdict": verdict.writer},
            "judge": {"verdict": verdict.writer, "calls": calls.writer, "replies": replies.reader},
            "answer": {"calls": calls.reader, "replies": replies.writer},
        }
        messages: list[dict[str, Any]] = []
        started: list[tuple[subprocess.Popen[bytes], _Pipe]] = []
        # Tests wait for the answer: their own time is over well after the answer's.
        patience = 2 * limits.seconds + 2 if len(jobs) > 1 else limits.seconds
        try:
            for job in jobs:
                control = stack.enter_context(_Pipe())
                seconds = limits.seconds if job["role"] == "answer" else patience
                own = pipes[job["role"]]
                scratch = stack.enter_context(_mount_point()) if isolation == "namespaces" else ""
                whole = job | own | {
                    "isolation": isolation, "limits": asdict(replace(limits, seconds=seconds)), "seconds": seconds,
                    "control": control.writer, "pipes": sorted(own.values()), "scratch": scratch,
                    "python": _python_folders(), "source": _SOURCE,
                }  # fmt: skip
                child = _start(whole)
                started.append((child, control))
                control.close_writer()
                # Wait for "ready", so that the answer's clock starts after that of the tests, or for what went wrong.
                reply = _lines(control, _GRACE_SECONDS)
                if not reply:
                    raise SetupError(
                        "the sandbox could not be set up: it ended, or was silent, before its start"
                    )
                messages += reply
            for pipe in (verdict, calls, replies):
                pipe.close_writer()
            _wait(started[0][0], patience + _GRACE_SECONDS)
            lines = _lines(verdict, 0)
            passed = bool(lines) and lines[-1].get("passed") is True
            for _, control in started:
                messages += _lines(control, 0)
            too_long = any("timeout" in message for message in messages)
            # How the answer ended matters; without its judge it ends immediately, or when its time is up
            if not passed:
                for child, _ in started[1:]:
                    _wait(child, limits.seconds + _GRACE_SECONDS)
            # Nothing in the sandbox can signal a supervisor
            killed = any(child.poll() == -signal.SIGKILL for child, _ in started)
        finally:
            for child, _ in started:
                _end(child)
        for _, control in started:
            messages += _lines(control, 0)
        if problem := next((message["setup"] for message in messages if "setup" in message), None):
            raise SetupError(f"the sandbox could not be set up: {problem}")
        if passed:
            return Outcome(True)
        if killed or any("killed" in message for message in messages):
            raise SetupError(
                "the sandbox was killed from outside, as Linux does where memory runs out, so there is no verdict on the "
                "answer; free some memory, or raise the container's limit, and run again to carry on"
            )
    if too_long:
        return Outcome(False, f"longer than {limits.seconds:g} s")
    return Outcome(False, str(lines[-1].get("reason")) if lines else "ended before its last line")


class _Pipe:
    """A pipe whose ends are closed at the end of a ``with`` block at the latest."""

    def __enter__(self) -> _Pipe:
        self.reader, self.writer = os.pipe()
        self._open = {self.reader, self.writer}
        return self

    def __exit__(self, *details: object) -> None:
        for end in self._open:
            os.close(end)

    def close_writer(self) -> None:
        """Close the end to write to, in this process."""
        self._open.discard(self.writer)
        os.close(self.writer)


@contextlib.contextmanager
def _mount_point() -> Iterator[str]:
    """Create an empty folder on which the sandbox mounts its own file system, visible to it alone."""
    folder = tempfile.mkdtemp(prefix="retune-sandbox-")
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def _start(job: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Start a supervisor and send it its job."""
    try:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            pass_fds=[job["control"], *job["pipes"]],
            start_new_session=True,
        )
    except OSError as error:
        raise SetupError(f"the sandbox could not be set up: {error}") from error
    assert child.stdin is not None
    # If it died before reading, the missing reply shows it
    with (
        contextlib.suppress(BrokenPipeError),
        child.stdin,
    ):
        child.stdin.write(json.dumps(job).encode())
    return child


def _python_folders() -> list[str]:
    """Return the folders of the standard library and of what it links to. All of the prefix may be a home folder."""
    libraries = {
        os.path.join(prefix, folder)
        for prefix in (sys.base_prefix, sys.base_exec_prefix)
        for folder in ("lib", "lib64")
    }
    return sorted({sysconfig.get_path("stdlib"), *libraries})


def _lines(pipe: _Pipe, seconds: float) -> list[dict[str, Any]]:
    """Return the JSON objects written to a pipe, one per line; wait at most `seconds` for the first."""
    ready, _, _ = select.select([pipe.reader], [], [], seconds)
    text = os.read(pipe.reader, 65536) if ready else b""
    lines = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            lines.append(json.loads(line))
    return [message for message in lines if isinstance(message, dict)]


def _wait(child: subprocess.Popen[bytes], seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(seconds)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill the supervisor and its whole process group. A process group outlives its leader, so its id stays valid."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
