"""The errors that retune raises on purpose, with the exit code of each.

    RetuneError
     +-- InputError      the study, data or arguments are wrong; a retry without a change is useless
     +-- Interrupted     stopped by SIGTERM or SIGINT after saving; run again to resume
     |    +-- DiskFull   stopped because a disk or a quota is full; free some space and run again to resume
     +-- TrialFailed     one trial ended without a number; the study goes on

Every message names the rule and the value that broke it; passwords in addresses are masked, and what would steer a
terminal is escaped.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable, Sequence

from retune.uris import mask

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 75
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The errno values of a full disk, a full quota, and a limit on file size (`ulimit -f`)."""

_REMEDIES = {
    errno.EACCES: "this account must be allowed to read or write it: change its permissions, or name another path",
    errno.EPERM: "this account must be allowed to read or write it: change its permissions, or name another path",
    errno.EROFS: "it lies on a read-only file system: name another path",
    errno.ENOENT: "check the path, and that its folder exists",
    errno.ENOTDIR: "a part of the path is a file where a folder is needed: name another path",
    errno.EEXIST: "a file lies where a folder is needed: remove it, or name another path",
    errno.EISDIR: "a folder lies where a file is needed: name another path",
    errno.ENAMETOOLONG: "name a shorter path",
    errno.ELOOP: "its links lead in a circle: name another path",
}
PATHS = tuple(_REMEDIES)
"""The errno values of a path that cannot be used, which the person who named it can mend."""

# Control characters but tab and newline, and those that reverse the order of letters
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_MOST_TOLD = 2000  # letters of each half of a problem


class RetuneError(Exception):
    """The base of every error that retune raises on purpose."""

    exit_code = EXIT_FAILED

    def __init__(self, text: str = "") -> None:
        super().__init__(_shown(text))


class InputError(RetuneError):
    """Invalid input, with all problems found, not only the first.

    Args:
        problems: one sentence each: the rule, then the value.
        subject: what was read, e.g. a file name; printed above the problems.

    """

    exit_code = EXIT_BAD_INPUT

    def __init__(self, problems: str | Sequence[str], subject: str | None = None) -> None:
        told = [problems] if isinstance(problems, str) else list(problems)
        self.problems: list[str] = [_cut(_shown(problem)) for problem in told]
        self.subject = _shown(subject) if subject else subject
        subject = self.subject
        head = f"{subject}: " if subject else ""
        if len(self.problems) == 1:
            text = head + self.problems[0]
        else:
            lines = "\n".join(f"  - {problem}" for problem in self.problems)
            text = f"{head}{len(self.problems)} problems\n{lines}"
        super().__init__(text)


def _shown(text: str) -> str:
    """Return `text` without passwords, and with what would steer a terminal written as Python escapes it."""
    return _STEERING.sub(lambda match: repr(match[0])[1:-1], mask(text))


def _cut(text: str) -> str:
    """Return `text`; of a very long one, which repeats a value that somebody gave, the beginning and the end."""
    if len(text) <= 2 * _MOST_TOLD:
        return text
    return f"{text[:_MOST_TOLD]} [… {len(text) - 2 * _MOST_TOLD:,} letters …] {text[-_MOST_TOLD:]}"


class Interrupted(RetuneError):
    """Work was saved and stopped on request; not a failure (exit code 75, EX_TEMPFAIL)."""

    exit_code = EXIT_INTERRUPTED


class DiskFull(Interrupted):
    """A disk or a quota is full. No setting is at fault, so no trial may be recorded as failed."""


class TrialFailed(RetuneError):
    """A trial ended without a usable result, e.g. with a NaN loss or out of memory.

    Args:
        reason: one line for the record.
        kind: a stable word for programs: ``nan``, ``out_of_memory``, ``killed``, ``error``.

    """

    def __init__(self, reason: str, kind: str = "error") -> None:
        super().__init__(reason)
        self.reason = _shown(reason)
        self.kind = kind


def as_retune_error(error: RetuneError | OSError) -> RetuneError:
    """Convert an `OSError` to an error that names the remedy; return retune's own errors unchanged."""
    if isinstance(error, RetuneError):
        return error
    text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if error.errno in FULL:
        return DiskFull(f"{text}; free some space and run again")
    remedy = _REMEDIES.get(error.errno or 0)
    return RetuneError(f"{text}; {remedy}" if remedy else text)


def first_line(problem: object) -> str:
    """Return the first line of an error's text, or of a text; the name of its class where it says nothing."""
    lines = str(problem).strip().splitlines()
    return lines[0] if lines else type(problem).__name__


def nearest(given: str, names: Iterable[str]) -> str | None:
    """Return the name that somebody may have meant: the same but for its case, else the most alike; None if none is like it."""
    names = list(names)
    same = [name for name in names if name.lower() == given.lower()]
    found = same or difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    return found[0] if found else None
