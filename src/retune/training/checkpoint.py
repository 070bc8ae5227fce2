"""Checkpoints of a training: one file, written atomically, that proves itself whole and its own.

The file is the SHA-256 of the rest, followed by what `torch.save` wrote. A checkpoint that is cut short, has a flipped
bit or belongs to another trial is refused with the reason; the training then starts anew.
"""

from __future__ import annotations

import hashlib
import io
from typing import Any

import torch

from retune import store
from retune.records import digest

_FORMAT = 2
_SHA = 32


class Refused(Exception):
    """A checkpoint that cannot be used; the message says why."""


def uri(folder: str) -> str:
    """Return where the checkpoint of the trial in `folder` lies."""
    return store.join(folder, "checkpoint", "state.pt")


def identity(**parts: Any) -> str:
    """Return the digest of everything a resumed training must share with the one that was interrupted."""
    return digest({"format": _FORMAT, "torch": torch.__version__, **parts})


def save(folder: str, identity: str, state: dict[str, Any]) -> None:
    """Write the checkpoint, in place of an older one.

    Raises:
        RetuneError: if it cannot be written, e.g. a full disk; the older one is still there.
    """
    buffer = io.BytesIO()
    torch.save({"identity": identity, "state": state}, buffer)
    content = buffer.getvalue()
    store.write(uri(folder), hashlib.sha256(content).digest() + content)


def load(folder: str, identity: str, device: torch.device) -> dict[str, Any] | None:
    """Return the state in the checkpoint, or None if there is none.

    Raises:
        Refused: if it is damaged, or of another trial.
    """
    if not store.exists(uri(folder)):
        return None
    content = store.read(uri(folder))
    if hashlib.sha256(content[_SHA:]).digest() != content[:_SHA]:
        raise Refused(f"it is damaged ({len(content)} bytes)")
    try:
        saved = torch.load(io.BytesIO(content[_SHA:]), map_location=device, weights_only=True)
    except Exception as error:
        raise Refused(f"it cannot be read: {error}") from error
    if saved.get("identity") != identity:
        raise Refused("it belongs to another trial, data, base model or torch version")
    state: dict[str, Any] = saved["state"]
    return state


def remove(folder: str) -> None:
    """Remove the checkpoint, if there is one."""
    store.remove(store.join(folder, "checkpoint"))
