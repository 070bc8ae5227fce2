"""How much memory this process may still take, and the bound that follows for reading a file.

A file can fill memory with many times its size: ``{}`` is three bytes on disk and a hundred here. So what is read whole is
refused by its size, and what grows while it is read is measured.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

_COPIES = 3  # a file's bytes, its text and its records are in memory at the same time
_GIB = 1 << 30
REMEDY = "split it into several sources, keep fewer records, or use a machine with more memory"


def available() -> int | None:
    """Return the bytes that this process may still allocate; None if unknown.

    The least of what the machine has, of what the container may use (cgroup v2 or v1) and of this process's limits
    (RLIMIT_AS, RLIMIT_DATA).
    """
    limits = [*_machine(), *container(Path("/sys/fs/cgroup")), *_process()]
    return max(0, min(limits)) if limits else None


def resident() -> int:
    """Return the resident bytes of this process now; on systems without /proc, their peak."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_resident()


def peak_resident() -> int:
    """Return the most bytes of memory that this process held; on Linux since its mark was last reset."""
    status = fields(Path("/proc/self/status"))
    if "VmHWM" in status:
        return status["VmHWM"]
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, other systems KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def too_large(size: int, what: str = "the file has") -> str | None:
    """Return why a file of so many bytes cannot be read whole here; None if it can.

    Args:
        size: in bytes, unpacked.
        what: the begin of the sentence.
    """
    free = available()
    if free is None or size * _COPIES <= free:
        return None
    return (
        f"{what} {_size(size)}, but at most {_size(free // _COPIES)} can be read here, a third of the memory that is "
        f"free; {REMEDY}"
    )


_LOOK_EVERY = 1000  # records between two measurements of memory: one takes as long as reading some records


class Growth:
    """The memory that this process takes from now on, which may be half of what is free."""

    def __init__(self) -> None:
        free = available()
        self._most = None if free is None else free // 2
        self._before = resident()

    def problem_at(self, record: int) -> str | None:
        """Return the same as `problem`, but look only at every thousandth of the records that are read."""
        return self.problem() if record % _LOOK_EVERY == 0 else None

    def problem(self) -> str | None:
        """Return that too much was taken, and what to do; None while it is not."""
        if self._most is None or (growth := resident() - self._before) <= self._most:
            return None
        return (
            f"reading took {_size(growth)} of memory, but at most {_size(self._most)} may be taken, half of what was "
            f"free; {REMEDY}"
        )


def _size(count: int) -> str:
    return f"{count / _GIB:.2f} GiB" if count >= _GIB else f"{count / (1 << 20):.1f} MiB"


def _machine() -> Iterator[int]:
    memory = fields(Path("/proc/meminfo"))
    if "MemAvailable" in memory:
        yield memory["MemAvailable"]
    else:
        with contextlib.suppress(ValueError, OSError):
            yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def container(root: Path) -> Iterator[int]:
    """Yield what is left of the container's limit; inactive page cache counts as free, since the kernel reclaims it."""
    for limit, used, given_back in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, ValueError):
            allowed = int((root / limit).read_text())
            statistics = (root / limit).with_name("memory.stat").read_text().split()
            files = dict(zip(statistics[::2], map(int, statistics[1::2]), strict=True)).get(given_back, 0)
            yield allowed - int((root / used).read_text()) + files


def _process() -> Iterator[int]:
    status = fields(Path("/proc/self/status"))
    for limit, field in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        allowed = resource.getrlimit(limit)[0]
        if allowed != resource.RLIM_INFINITY and field in status:
            yield allowed - status[field]


def fields(path: Path) -> dict[str, int]:
    """Return the fields of a file of the kernel's that are given in kB, in bytes."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[2:] == ["kB"]}
