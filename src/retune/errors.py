"""The errors that retune raises on purpose, with the exit code of each.

    RetuneError
     +-- InputError      the study, data or arguments are wrong; a retry without a change is useless
     +-- Interrupted     stopped by SIGTERM or SIGINT after saving; run again to resume
     |    +-- DiskFull   stopped because a disk or a quota is full; free some space and run again to resume
     +-- TrialFailed     one trial ended without a number; the study goes on

Every message names the rule and the value that broke it. Passwords, tokens and the secrets of the environment are
masked, and control characters escaped.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable, Sequence

from retune.uris import without_secrets

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 75
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The errno values of a full disk, a full quota, and a limit on file size (`ulimit -f`)."""
REMEDIES = {
    errno.ENOSPC: "free some space there and run again",
    errno.EDQUOT: "free some of your quota there and run again",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f) and run again",
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
"""What to do about an error of the operating system, by its errno."""
PATHS = tuple(number for number in REMEDIES if number not in FULL)
"""The errno values of a path that cannot be used; naming another one helps."""
_EXHAUSTED = (
    "out of memory",
    "can't allocate memory",
    "bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)

# All control characters but tab and newline, and the bidirectional overrides, which reverse the order of letters:
# a file's name must not move the cursor of a terminal or disguise what it says.
_CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_MAX_HALF = 2000  # characters kept at each end of a long problem


class RetuneError(Exception):
    """The base of every error that retune raises on purpose."""

    exit_code = EXIT_FAILED

    def __init__(self, text: str = "") -> None:
        super().__init__(sanitized(text))


class InputError(RetuneError):
    """Invalid input, with all problems found, not only the first.

    Args:
        problems: one sentence each: the rule, then the value.
        subject: what was read, e.g. a file name; printed above the problems.

    """

    exit_code = EXIT_BAD_INPUT

    def __init__(self, problems: str | Sequence[str], subject: str | None = None) -> None:
        texts = [problems] if isinstance(problems, str) else list(problems)
        self.problems: list[str] = [_shortened(sanitized(problem)) for problem in texts]
        self.subject = sanitized(subject) if subject else subject
        head = f"{self.subject}: " if self.subject else ""
        if len(self.problems) == 1:
            text = head + self.problems[0]
        else:
            lines = "\n".join(f"  - {problem}" for problem in self.problems)
            text = f"{head}{len(self.problems)} problems\n{lines}"
        super().__init__(text)


def sanitized(text: str) -> str:
    """Return `text` as it may be printed: secrets masked, and control characters escaped as Python writes them."""
    return _CONTROL_CHARACTERS.sub(lambda match: repr(match[0])[1:-1], without_secrets(text))


def escaped_in_strings(text: str) -> str:
    """Return JSON or YAML with its control characters escaped, which both allow within strings alone."""
    return _CONTROL_CHARACTERS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _shortened(text: str) -> str:
    """Return `text`, or only its beginning and end: a problem quotes the value that was given, which may be huge."""
    if len(text) <= 2 * _MAX_HALF:
        return text
    return f"{text[:_MAX_HALF]} [… {len(text) - 2 * _MAX_HALF:,} letters …] {text[-_MAX_HALF:]}"


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
        self.reason = sanitized(reason)
        self.kind = kind


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on the GPU or on the CPU, where torch raises a bare `RuntimeError`; needs no torch."""
    if isinstance(error, MemoryError) or any(c.__name__ == "OutOfMemoryError" for c in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _EXHAUSTED)


def as_retune_error(error: RetuneError | OSError, subject: str | None = None) -> RetuneError:
    """Convert an `OSError` to an error that names the remedy; return retune's own errors unchanged.

    Args:
        error: what was raised.
        subject: what failed, before the system's own words; the file's name by default.

    Returns:
        a `DiskFull` if a disk, a quota or a limit on file size is full, so that no trial is recorded as failed.

    """
    if isinstance(error, RetuneError):
        return error
    subject = subject or error.filename
    text = f"{subject}: {error.strerror}" if subject else str(error)
    remedy = REMEDIES.get(error.errno or 0)
    kind = DiskFull if error.errno in FULL else RetuneError
    return kind(f"{text}; {remedy}" if remedy else text)


def first_line(problem: object) -> str:
    """Return the first line of an error's text, or of a text; the class's name if the text is empty."""
    lines = str(problem).strip().splitlines()
    return lines[0] if lines else type(problem).__name__


def one_line(error: Exception) -> str:
    """Return the class and the text of another library's error in one line, the text cut after 200 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def nearest(word: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the name that was probably meant: equal but for case, else the most similar; None if none is similar.

    Args:
        word: what was written. names: of what there is. cutoff: the least similarity, as `difflib` counts it.
    """
    names = list(names)
    equal = [name for name in names if name.lower() == word.lower()]
    matches = equal or difflib.get_close_matches(word, names, n=1, cutoff=cutoff)
    return matches[0] if matches else None
