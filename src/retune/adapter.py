"""An adapter's files, its digest, and the check that the files are those that a trial wrote."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retune import store
from retune.errors import InputError, RetuneError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
FILES = (CONFIG, WEIGHTS)
_DIGEST = re.compile(r"[0-9a-f]{16}")


def sums(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return the SHA-256 of each file of an adapter, by name."""
    return {name: hashlib.sha256(files[name]).hexdigest() for name in FILES}


def digest(files: Mapping[str, bytes]) -> str:
    """Return the digest of an adapter, over its settings and weights: with another alpha the same weights are another model."""
    sha = hashlib.sha256()
    for each in sums(files).values():
        sha.update(bytes.fromhex(each))
    return sha.hexdigest()[:16]


def read(folder: Path) -> dict[str, bytes]:
    """Return the files of an adapter by name.

    Raises:
        FileNotFoundError: if one is missing.
    """
    return {name: (folder / name).read_bytes() for name in FILES}


def fetch(uri: str, expected: str | None = None) -> Path:
    """Return a local folder with the adapter at `uri`, whole and as its trial wrote it.

    Raises:
        InputError: if a file is missing or changed, with what to do; see `damage`.
    """
    try:
        folder = store.download(uri)
        problems = _changes(uri, read(folder), expected)
    except FileNotFoundError:
        raise InputError(_lacking(uri)) from None
    if problems:
        raise InputError(problems)
    return folder


def damage(uri: str, expected: str | None = None) -> list[str]:
    """Return how the adapter at `uri` differs from what its trial wrote; empty if it does not, or no digest is known.

    An adapter that is not there, or lacks a file, is damaged too.

    Args:
        uri: the adapter's folder. A `trial.json` beside it holds the digest and the checksum of each file.
        expected: its digest, or that of older releases, which covered the weights alone.
    """
    try:
        return _changes(uri, read(store.download(uri)), expected)
    except FileNotFoundError:
        return [_lacking(uri)]


def _lacking(uri: str) -> str:
    record = _record_beside(uri)
    lacking = " and ".join(name for name in FILES if not store.exists(store.join(uri, name)))
    if not record.get("adapter_digest"):
        return f"an adapter's folder holds {' and '.join(FILES)}, but {uri} lacks {lacking}"
    return (
        f"{uri} lacks {lacking}, which {record.get('trial')} wrote: deleted since, or left out of a copy; "
        f"copy it back, or remove the trial's folder and run its study again, which trains it anew"
    )


def _changes(uri: str, files: dict[str, bytes], expected: str | None) -> list[str]:
    record = _record_beside(uri)
    written = str(expected or record.get("adapter_digest"))
    if not _DIGEST.fullmatch(written):  # no digest, but "None" or a name that another program gave
        return []
    if written in (digest(files), hashlib.sha256(files[WEIGHTS]).hexdigest()[:16]):
        return []
    checksums, actual = record.get("adapter_files") or {}, sums(files)
    changed = [name for name in FILES if name in checksums and checksums[name] != actual[name]] or list(FILES)
    return [
        f"{' or '.join(store.join(uri, name) for name in changed)} is not what the trial wrote: the adapter's digest was "
        f"{written}, but is {digest(files)}; restore the file, or remove the trial's folder and train it again"
    ]


def was_written(uri: str) -> bool:
    """Return whether a trial's record says that it wrote an adapter at `uri`."""
    return bool(_record_beside(uri).get("adapter_digest"))


def _record_beside(uri: str) -> dict[str, Any]:
    """Return the record of the trial that wrote the adapter, from the folder above it; {} if there is none."""
    try:
        content = json.loads(store.read(store.join(str(uri).rstrip("/").rpartition("/")[0], "trial.json")))
    except (OSError, ValueError, RetuneError):
        return {}
    return content if isinstance(content, dict) else {}
