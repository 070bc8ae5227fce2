"""Stamps record the digest of a step's inputs with its outputs, so that no step runs twice on the same inputs.

A stamp is written last. A step whose stamp has the digest of its present inputs is up to date; any other step runs
again, so every step must be idempotent.
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
        files: the content of the stamps by name (`mix.json`), if they have been read already.

    """

    def __init__(self, folder: str, files: Mapping[str, bytes] | None = None) -> None:
        self.folder = folder
        self._files = None if files is None else dict(files)

    def outputs(self, step: str, inputs: Any) -> dict[str, Any] | None:
        """Return the outputs of a step on these inputs, None if it has to run."""
        stamp = self._read(step)
        return stamp["outputs"] if stamp and stamp["inputs"] == digest(inputs) else None

    def last(self, step: str) -> dict[str, Any] | None:
        """Return the outputs of a step's last run, on any inputs."""
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
        """Run a step in the ``with`` block, which fills the yielded mapping with outputs; the stamp is written at its end."""
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
