"""Running code that a model wrote, in processes that can do nothing but compute.

What holds, and by what (`Isolation`):

* ``namespaces`` (Linux, where the kernel grants them): own network, process, mount and IPC namespaces; the file
  system is a new one that shows only the Python installation, read-only, and an empty scratch folder in memory.
* ``filters`` (Linux, inside containers that forbid namespaces): Landlock allows reading the Python installation and
  nothing else; no file can be written.

In both, a seccomp filter forbids sockets, new processes, signals to others, tracing and mounting; the environment is
empty; limits hold for CPU and wall time, memory, file size, open files and threads; and at the end every process is
killed. Elsewhere code is not run at all.

`check` has two such processes for each answer: one defines the answer's functions and computes what it is asked, the
other runs the tests and never a line of the answer (`roles`). The verdict comes over a pipe that only the second
holds, so an answer can win by returning the right values and by nothing else. docs/security.md says what is promised.
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
_GRACE_SECONDS = 30.0  # to start Python and to clean up, beside the program's own time
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
        tests: text that defines ``check(candidate)``, which raises if the function is wrong. What it gives the function
            and what it gets back is plain data (`retune.evaluation.sandbox.wire`).
        entry_point: the function's name.
        prompt: the part of `answer` that was given; tests may use what it defines.
        limits: of the answer; the tests, which wait for it, have as much again.
        isolation: which means to use; the strongest that this machine has by default.

    Raises:
        OSError: if the sandbox itself cannot be set up, several times: nothing is ever run without it.

    """
    orders = [
        {"role": "judge", "prompt": prompt, "tests": tests, "entry_point": entry_point},
        {"role": "answer", "program": answer, "entry_point": entry_point},
    ]
    return _run_with_retries(orders, limits, isolation)


def run(program: str, limits: Limits = DEFAULT, isolation: Isolation | None = None) -> Outcome:
    """Run a Python program in the sandbox and return whether it says that it ran to its end without an exception.

    The program reports on itself, so this is for programs that may be believed; `check` is for answers to be judged.

    Raises:
        OSError: if the sandbox itself cannot be set up, several times: nothing is ever run without it.

    """
    return _run_with_retries([{"role": "program", "program": program}], limits, isolation)


@functools.cache
def available() -> Isolation | None:
    """Return the strongest isolation that works here, found by trying; None where there is none."""
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
    """Return why code cannot be run here, or None where it can."""
    if available() is not None:
        return None
    return (
        "code is run only in a sandbox, which needs Linux with user namespaces or with Landlock (kernel 5.13), "
        f"and this machine ({sys.platform}) grants neither: run the task in a container or leave it out"
    )


def _run_with_retries(orders: list[dict[str, Any]], limits: Limits, isolation: Isolation | None) -> Outcome:
    """Run the orders; retry after a pause when the machine is temporarily out of a resource."""
    isolation = isolation or available()
    if isolation is None:
        raise OSError(missing())
    for pause in _PAUSES:
        try:
            return _once(orders, limits, isolation)
        except SetupError:
            time.sleep(pause)
    return _once(orders, limits, isolation)


def _once(orders: list[dict[str, Any]], limits: Limits, isolation: Isolation) -> Outcome:
    """Start one process an order, wait for the first, which gives the verdict, and end them all."""
    with contextlib.ExitStack() as stack:
        verdict, asked, given = (stack.enter_context(_Pipe()) for _ in range(3))
        pipes = {
            "program": {"verdict": verdict.writer},
            "judge": {"verdict": verdict.writer, "asked": asked.writer, "given": given.reader},
            "answer": {"asked": asked.reader, "given": given.writer},
        }
        words: list[dict[str, Any]] = []
        started: list[tuple[subprocess.Popen[bytes], _Pipe]] = []
        # Tests wait for the answer: their own time is over well after the answer's.
        patience = 2 * limits.seconds + 2 if len(orders) > 1 else limits.seconds
        try:
            for order in orders:
                control = stack.enter_context(_Pipe())
                seconds = limits.seconds if order["role"] == "answer" else patience
                own = pipes[order["role"]]
                scratch = stack.enter_context(_mount_point()) if isolation == "namespaces" else ""
                whole = order | own | {
                    "isolation": isolation, "limits": asdict(replace(limits, seconds=seconds)), "seconds": seconds,
                    "control": control.writer, "pipes": sorted(own.values()), "scratch": scratch,
                    "python": _python_folders(), "source": _SOURCE,
                }  # fmt: skip
                child = _start(whole)
                started.append((child, control))
                control.close_writer()
                # It says "ready", so that the answer's clock starts after the tests'; or that, and why, it cannot.
                said = _lines(control, _GRACE_SECONDS)
                if not said:
                    raise SetupError(
                        "the sandbox could not be set up: it ended, or was silent, before its start"
                    )
                words += said
            for pipe in (verdict, asked, given):
                pipe.close_writer()
            _wait(started[0][0], patience + _GRACE_SECONDS)
        finally:
            for child, _ in started:
                _end(child)
        for _, control in started:
            words += _lines(control, 0)
        if problem := next((word["setup"] for word in words if "setup" in word), None):
            raise SetupError(f"the sandbox could not be set up: {problem}")
        found = _lines(verdict, 0)
    if found and found[-1].get("passed") is True:
        return Outcome(True)
    if any("timeout" in word for word in words):
        return Outcome(False, f"longer than {limits.seconds:g} s")
    return Outcome(False, str(found[-1].get("reason")) if found else "ended before its last line")


class _Pipe:
    """A pipe whose ends are closed at the end of a ``with`` block at the latest."""

    def __enter__(self) -> _Pipe:
        self.reader, self.writer = os.pipe()
        self._open = {self.reader, self.writer}
        return self

    def __exit__(self, *words: object) -> None:
        for end in self._open:
            os.close(end)

    def close_writer(self) -> None:
        """Close the end to write to, in this process."""
        self._open.discard(self.writer)
        os.close(self.writer)


@contextlib.contextmanager
def _mount_point() -> Iterator[str]:
    """Give an empty folder for the sandbox's own file system, which nobody else ever sees."""
    folder = tempfile.mkdtemp(prefix="retune-sandbox-")
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def _start(order: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Start a supervisor and hand it its order."""
    try:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            pass_fds=[order["control"], *order["pipes"]],
            start_new_session=True,
        )
    except OSError as error:
        raise SetupError(f"the sandbox could not be set up: {error}") from error
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError), child.stdin:  # if it ended before it read, its silence tells
        child.stdin.write(json.dumps(order).encode())
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
    """Return what is said on a pipe, JSON objects in lines, and nothing else; wait for it for at most so long."""
    ready, _, _ = select.select([pipe.reader], [], [], seconds)
    text = os.read(pipe.reader, 65536) if ready else b""
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            found.append(json.loads(line))
    return [word for word in found if isinstance(word, dict)]


def _wait(child: subprocess.Popen[bytes], seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(seconds)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill the supervisor and its whole process group. A group outlives its leader, so this is never too late."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
