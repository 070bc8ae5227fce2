"""Passwords in addresses: the only module that finds, masks and restores them.

A password may stand in an address that people give (``tracking.uri: postgresql://me:secret@host/runs``). It is taken
out at the door: `hide` returns the address with ``***`` in its place, and that is what study, records, logs, reports
and MLflow get to see. `reveal` is for the one who connects. What was hidden is kept in memory and in the environment
variable ``RETUNE_SECRETS``, so that processes that this one starts can connect too; it is never written to a file.
"""

from __future__ import annotations

import json
import os
import re

MARK = "***"
ENVIRONMENT = "RETUNE_SECRETS"

# A colon and digits up to the path are a port. A password may hold `@` and `/`: the last `@` before a space ends it.
_PASSWORD = re.compile(r"(?<=://)([^\s/@:'\"]*):(?!\d{1,5}(?:[/?#\s'\",;)]|$))[^\s'\"]*@")
_WORD = re.compile(r"[^\s'\"]+")
_TOKEN = re.compile(r"(?<=http://|ttps://)[^\s/@:'\"]+@")
_QUERY = re.compile(
    r"([?&;](?:[\w-]*(?:password|passwd|pwd|secret|token|signature|credential|api_?key|access_?key)|sig|key)=)[^&#;\s'\"]+",
    re.IGNORECASE,
)


def mask(text: str) -> str:
    """Return `text` with ``***`` for each password, token or key in the addresses in it."""
    if "://" not in text:
        return text
    text = _WORD.sub(_without_password, text)
    text = _TOKEN.sub(f"{MARK}@", text)
    return _QUERY.sub(rf"\1{MARK}", text)


def _without_password(word: re.Match[str]) -> str:
    """Return a word without passwords; what is behind its last `@` is not searched, which takes the time of its square."""
    end = word[0].rfind("@") + 1
    return _PASSWORD.sub(rf"\1:{MARK}@", word[0][:end]) + word[0][end:]


def hide(uri: str) -> str:
    """Return an address without its secrets, and remember them for `reveal`."""
    masked = mask(uri)
    if masked != uri and MARK not in uri:
        os.environ[ENVIRONMENT] = json.dumps({**_hidden(), masked: uri})
    return masked


def reveal(uri: str) -> str | None:
    """Return the address that `hide` was given; as it is if it holds no secret; None if the secret is not known here."""
    if mask(uri) != uri:
        return uri
    return _hidden().get(uri) if MARK in uri else uri


def _hidden() -> dict[str, str]:
    try:
        found = json.loads(os.environ.get(ENVIRONMENT, "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
