"""Checks of file names that a server lists, before a file of that name is written here.

A name must lead nowhere outside its folder, on Linux, macOS or Windows.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable

from retune.errors import InputError

# Windows ignores the extension and opens the device: `nul.txt` is not a file
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])[ .]*(\..*)?", re.IGNORECASE)
_MAX_PROBLEMS = 10
_MAX_PATH_BYTES = 2048  # S3 allows 1024; Linux 4096, with the folder before it
_MAX_PART_BYTES = 255  # NAME_MAX of most file systems
_FOLDS_CASE = sys.platform in ("darwin", "win32")  # where `A` and `a` are one file


def problem(name: str) -> str | None:
    """Return why `name`, relative and with ``/`` between its parts, is no name of a file below a folder; None if it is."""
    parts = name.split("/")
    if any(part in (".", "..") for part in parts):
        return "it has a part `.` or `..`, which leads elsewhere"
    if not all(parts):
        return "it has an empty part, as absolute paths have"
    if re.search(r"[\x00-\x1f\x7f\\]", name) or re.match(r"[A-Za-z]:", name):
        return "it has a control character, a backslash or a drive's letter"
    if re.search("[\ud800-\udfff]", name):
        return "it has half of a surrogate pair, which is no text"
    if len(name.encode(errors="surrogatepass")) > _MAX_PATH_BYTES:
        return f"it is longer than {_MAX_PATH_BYTES:,} bytes"
    if any(_DEVICE.fullmatch(part) for part in parts):
        return "a part of it is the name of a device"
    if any(len(part.encode(errors="surrogatepass")) > _MAX_PART_BYTES for part in parts):
        return f"a part of it is longer than {_MAX_PART_BYTES} bytes"
    return None


def _alike(name: str) -> str:
    """Return what two names of one file have in common here."""
    name = unicodedata.normalize("NFC", name)
    return unicodedata.normalize("NFC", name.casefold()) if _FOLDS_CASE else name


def check(names: Iterable[str], uri: str) -> None:
    """Require that all files that a server lists below `uri` can be written below one folder.

    Raises:
        InputError: with the names that cannot, and why, before anything is written.

    """
    listed = sorted(set(names))
    problems = [f"the name {name!r} is refused: {why}" for name in listed if (why := problem(name))]
    # macOS stores names in a normal form of Unicode, so two spellings of one word would be one file
    normalized: dict[str, str] = {}
    for name in listed:
        other = normalized.setdefault(_alike(name), name)
        if other != name:
            how = "in another Unicode form"
            if unicodedata.normalize("NFC", name) != unicodedata.normalize("NFC", other):
                how += ", or in upper or lower case, which this system does not tell apart"
            problems.append(f"the name {name!a} is refused: it is the same text as {other!a} {how}")
    folders = {name[:end] for name in listed for end, letter in enumerate(name) if letter == "/"}
    problems += [
        f"the name {name!r} is refused: it is a file and a folder" for name in listed if name in folders
    ]
    if problems:
        rest = len(problems) - _MAX_PROBLEMS
        more = [f"and {rest:,} more"] if rest > 0 else []
        raise InputError([*problems[:_MAX_PROBLEMS], *more], uri)
