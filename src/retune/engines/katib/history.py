"""The Experiments of a search and their running times, kept in the store, since on the cluster they may be deleted."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from retune import store
from retune.records import loads, now, seal


class Experiments:
    """The Experiments of one search, one file each: ``<folder>/<name>.json``.

    Args:
        folder: URI of the folder that also holds the trials' folders.

    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._known: dict[str, dict[str, Any]] = {}
        for name in store.listing(folder):
            if "/" not in name and name.endswith(".json"):
                uri = store.join(folder, name)
                self._known[name.removesuffix(".json")] = loads(store.read(uri), uri)

    def __len__(self) -> int:
        return len(self._known)

    def unfinished(self) -> set[str]:
        """Return the names of the Experiments whose end is not recorded."""
        return {name for name, entry in self._known.items() if entry["spans"][-1][1] is None}

    def record_start(self, experiment: dict[str, Any], again: bool = False) -> None:
        """Record an Experiment seen for the first time, or one resumed (`again`) after its end."""
        meta = experiment["metadata"]
        entry = self._known.get(meta["name"])
        if entry is None:
            self._write(
                meta["name"],
                {"spans": [[meta["creationTimestamp"], None]], "uid": meta.get("uid"), "why": None},
            )
        elif again and entry["spans"][-1][1]:
            self._write(meta["name"], {**entry, "spans": [*entry["spans"], [now(), None]], "why": None})

    def end(self, name: str, why: str, experiment: dict[str, Any] | None = None) -> None:
        """Record how an Experiment ended, and its last state; only the first end counts."""
        entry = self._known[name]
        *before, (begun, over) = entry["spans"]
        if over is None:
            at = ((experiment or {}).get("status") or {}).get("completionTime") or now()
            self._write(
                name, {**entry, "spans": [*before, [begun, at]], "why": why, "experiment": experiment}
            )

    def hours(self, at: datetime) -> float:
        """Return for how many hours the Experiments have run, up to `at`."""
        spans = [
            (_time(over) if over else at) - _time(begun)
            for entry in self._known.values()
            for begun, over in entry["spans"]
        ]
        return sum(span.total_seconds() for span in spans) / 3600

    def _write(self, name: str, entry: dict[str, Any]) -> None:
        store.write(
            store.join(self._folder, f"{name}.json"), (json.dumps(seal(entry), indent=2) + "\n").encode()
        )
        self._known[name] = entry


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
