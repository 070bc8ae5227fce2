"""Names of files that come from elsewhere: what a server lists is not yet a name for a file here."""

from __future__ import annotations

import re
from collections.abc import Iterable

from retune.errors import InputError

_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_MOST_TOLD = 10
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
    folders = {name[:end] for name in listed for end, letter in enumerate(name) if letter == "/"}
    found += [
        f"the name {name!r} is refused: it is a file and a folder" for name in listed if name in folders
    ]
    if found:
        rest = len(found) - _MOST_TOLD
        more = [f"and {rest:,} more"] if rest > 0 else []
        raise InputError([*found[:_MOST_TOLD], *more], uri)
