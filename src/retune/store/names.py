"""Names of files that come from elsewhere: what a server lists is not yet a name for a file here."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from retune.errors import InputError

_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])[ .]*(\..*)?", re.IGNORECASE)
_MOST_TOLD = 10
_LONGEST_PATH = 2048  # bytes; S3 allows 1024, systems 4096 with the folder before it
_LONGEST = 255  # bytes of one part, the limit of most file systems


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
    if len(name.encode(errors="surrogatepass")) > _LONGEST_PATH:
        return f"it is longer than {_LONGEST_PATH:,} bytes"
    if any(_DEVICE.fullmatch(part) for part in parts):
        return "a part of it is the name of a device"
    if any(len(part.encode(errors="surrogatepass")) > _LONGEST for part in parts):
        return f"a part of it is longer than {_LONGEST} bytes"
    return None


def check(names: Iterable[str], uri: str) -> None:
    """Make sure that all files that a server lists below `uri` can lie below one folder here.

    Raises:
        InputError: with each name that cannot, and why. Nothing has been written then.

    """
    listed = sorted(set(names))
    found = [f"the name {name!r} is refused: {why}" for name in listed if (why := problem(name))]
    same: dict[str, str] = {}
    for name in listed:
        other = same.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            found.append(
                f"the name {name!a} is refused: it is written as {other!a} in other letters of Unicode"
            )
    folders = {name[:end] for name in listed for end, letter in enumerate(name) if letter == "/"}
    found += [
        f"the name {name!r} is refused: it is a file and a folder" for name in listed if name in folders
    ]
    if found:
        rest = len(found) - _MOST_TOLD
        more = [f"and {rest:,} more"] if rest > 0 else []
        raise InputError([*found[:_MOST_TOLD], *more], uri)
