"""Checkpoints of a training: one file, written atomically, with a checksum and the identity of its training.

The file is the SHA-256 of the rest, followed by what `torch.save` wrote. A checkpoint that is truncated, has a flipped
bit or belongs to another trial is not used, and the reason is reported; the training then starts from step 0.
"""

from __future__ import annotations

import hashlib
import io
from typing import Any

import torch

from retune import store
from retune.records import digest

_FORMAT = 2  # part of the identity: raise it when the content changes, and older checkpoints are not used
_SHA = 32  # bytes


class UnusableCheckpoint(Exception):
    """A checkpoint that cannot be used; the message says why."""


def uri(folder: str) -> str:
    """Return the URI of the checkpoint of the trial in `folder`."""
    return store.join(folder, "checkpoint", "state.pt")


def identity(**parts: Any) -> str:
    """Return the digest of everything that a resumed training must share with the interrupted one."""
    return digest({"format": _FORMAT, "torch": torch.__version__, **parts})


def save(folder: str, identity: str, state: dict[str, Any]) -> None:
    """Write the checkpoint, replacing an older one.

    Raises:
        RetuneError: if it cannot be written, e.g. for a full disk; an older one is kept.
    """
    buffer = io.BytesIO()
    torch.save({"identity": identity, "state": state}, buffer)
    content = buffer.getvalue()
    store.write(uri(folder), hashlib.sha256(content).digest() + content)


def load(folder: str, identity: str, device: torch.device) -> dict[str, Any] | None:
    """Return the state in the checkpoint, or None if there is none.

    Raises:
        UnusableCheckpoint: if it is damaged, or of another trial.
    """
    if not store.exists(uri(folder)):
        return None
    content = store.read(uri(folder))
    if hashlib.sha256(content[_SHA:]).digest() != content[:_SHA]:
        raise UnusableCheckpoint(
            f"its checksum does not match its content ({len(content)} bytes): it is damaged"
        )
    try:
        saved = torch.load(io.BytesIO(content[_SHA:]), map_location=device, weights_only=True)
    except Exception as error:
        raise UnusableCheckpoint(f"it cannot be read: {error}") from error
    if saved.get("identity") != identity:
        raise UnusableCheckpoint("it belongs to another trial, data, base model or torch version")
    state: dict[str, Any] = saved["state"]
    return state


def remove(folder: str) -> None:
    """Remove the checkpoint, if there is one."""
    store.remove(store.join(folder, "checkpoint"))
