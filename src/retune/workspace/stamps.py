"""Stamps record a step's inputs next to its result, so that no step runs twice on the same inputs.

A stamp is written last. A step whose stamp names the same inputs is up to date; any other step runs again. Every step
must be idempotent.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from retune import store
from retune.records import digest, loads, now, seal

STEPS = ("mix", "search", "benchmark", "select", "register", "promote", "report")


class Stamps:
    """The stamps of one search.

    Args:
        folder: URI of the search's folder.
        files: the content of the stamps by name (`mix.json`), if they have been read; only stamps made here change them.

    """

    def __init__(self, folder: str, files: Mapping[str, bytes] | None = None) -> None:
        self.folder = folder
        self._files = None if files is None else dict(files)

    def outputs(self, step: str, inputs: Any) -> dict[str, Any] | None:
        """Return what the step gave when it was done from these inputs, or None if it has to be done."""
        stamp = self._read(step)
        return stamp["outputs"] if stamp and stamp["inputs"] == digest(inputs) else None

    def last(self, step: str) -> dict[str, Any] | None:
        """Return what the step gave when it was last done, from whatever inputs."""
        stamp = self._read(step)
        return stamp["outputs"] if stamp else None

    def _read(self, step: str) -> dict[str, Any] | None:
        uri = self._uri(step)
        try:
            content = store.read(uri) if self._files is None else self._files[f"{step}.json"]
        except (FileNotFoundError, KeyError):
            return None
        stamp = loads(content, uri)
        return stamp if {"inputs", "outputs"} <= stamp.keys() and isinstance(stamp["outputs"], dict) else None

    @contextmanager
    def step(self, step: str, inputs: Any) -> Iterator[dict[str, Any]]:
        """Do a step: fill the yielded mapping with its outputs; the stamp is written if no error came."""
        outputs: dict[str, Any] = {}
        started = time.monotonic()
        yield outputs
        stamp = {
            "inputs": digest(inputs),
            "outputs": outputs,
            "seconds": time.monotonic() - started,
            "finished": now(),
        }
        content = (json.dumps(seal(stamp), indent=2) + "\n").encode()
        store.write(self._uri(step), content)
        if self._files is not None:
            self._files[f"{step}.json"] = content

    def _uri(self, step: str) -> str:
        return store.join(self.folder, "steps", f"{step}.json")
