"""Passwords in addresses, and other secrets: the only module that finds, masks and restores them.

An address may hold a password (``tracking.uri: postgresql://me:secret@host/runs``). `hide` replaces it by ``***`` when the
study is read, so study, records, logs, reports and MLflow never see it. `reveal` returns the full address to the code
that connects. The passwords are kept in the environment variable ``RETUNE_SECRETS``, so that child processes can
connect too, and are never written to a file.
"""

from __future__ import annotations

import json
import os
import re

MARK = "***"
ENVIRONMENT = "RETUNE_SECRETS"

# A colon followed by digits alone is a port. A password may hold `@` and `/`, so the last `@` of the word ends it.
_PASSWORD = re.compile(r"(?<=://)([^\s/@:'\"]*):(?!\d{1,5}(?:[/?#\s'\",;)]|$))[^\s'\"]*@")
_WORD = re.compile(r"[^\s'\"]+")
_TOKEN = re.compile(r"(?<=http://|ttps://)[^\s/@:'\"]+@")
_QUERY = re.compile(
    r"([?&;](?:[\w-]*(?:password|passwd|pwd|secret|token|signature|credential|api_?key|access_?key)|sig|key)=)[^&#;\s'\"]+",
    re.IGNORECASE,
)

_SECRET_NAME = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|SECRET_?KEY|PRIVATE_?KEY|WEBHOOK|CREDENTIAL)(_URL)?$",
    re.IGNORECASE,
)
# Tokens with a known prefix, and addresses that are secrets themselves
_TOKENS = re.compile(
    r"\b(?:hf_|sk-|gh[opsru]_|github_pat_|glpat-|xox[abeprs]-|xapp-)[\w-]{16,}|(?<=\bBearer )[\w.~+/-]{8,}=*"
    r"|(?<=://hooks\.slack\.com/)[\w/-]{8,}|(?<=://discord\.com/api/webhooks/)[\w/-]{8,}",
    re.IGNORECASE,
)
_SHORTEST = 6  # letters of a secret; a shorter one would be found in any text


def names_a_secret(name: str) -> bool:
    """Return whether an environment variable of this name holds a secret, as ``HF_TOKEN`` and ``AWS_SECRET_ACCESS_KEY`` do."""
    return bool(_SECRET_NAME.search(name))


def without_secrets(text: str) -> str:
    """Return `text` with ``***`` for passwords in addresses, tokens of known forms, and secrets of this environment."""
    held = {value for name, value in os.environ.items() if len(value) >= _SHORTEST and names_a_secret(name)}
    for secret in sorted(held, key=len, reverse=True):
        text = text.replace(secret, MARK)
    return mask(_TOKENS.sub(MARK, text))


def mask(text: str) -> str:
    """Return `text` with ``***`` for each password, token or key in the addresses in it."""
    if "://" not in text:
        return text
    text = _WORD.sub(_without_password, text)
    text = _TOKEN.sub(f"{MARK}@", text)
    return _QUERY.sub(rf"\1{MARK}", text)


def _without_password(word: re.Match[str]) -> str:
    """Return a word with its passwords masked.

    Only the part up to the last `@` is searched: on a long word without one the pattern would take quadratic time.
    """
    end = word[0].rfind("@") + 1
    return _PASSWORD.sub(rf"\1:{MARK}@", word[0][:end]) + word[0][end:]


def hide(uri: str) -> str:
    """Return an address without its secrets, and remember them for `reveal`."""
    masked = mask(uri)
    if masked != uri and MARK not in uri:
        os.environ[ENVIRONMENT] = json.dumps({**_hidden(), masked: uri})
    return masked


def reveal(uri: str) -> str | None:
    """Return the address that `hide` was given, or `uri` itself if it is not masked; None if the secret is not known here."""
    if mask(uri) != uri:
        return uri
    return _hidden().get(uri) if MARK in uri else uri


def _hidden() -> dict[str, str]:
    try:
        hidden = json.loads(os.environ.get(ENVIRONMENT, "{}"))
    except ValueError:
        return {}
    return hidden if isinstance(hidden, dict) else {}
