"""How long the open trials of a search will take, by those that were trained so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from retune.records import TrialRecord

ENOUGH = 0.25  # of one training: less is no measure, since a trial begins with loading and checking the base


@dataclass
class _Running:
    """A trial at work: since when (s), and the share of its training that was done when it was first seen."""

    since: float
    first: float | None = None


class Pace:
    """Measures the seconds that one training takes, of finished and of running trials.

    The untuned base is only validated, and a failed trial may have ended at once: neither tells how long a training is.

    Args:
        now: a clock in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._seconds = self._trained = 0.0
        self._running: dict[str, _Running] = {}

    def begin(self, trial: str) -> None:
        """A trial was given to a worker."""
        self._running[trial] = _Running(self._now())

    def reach(self, trial: str, share: float) -> None:
        """A trial has done this share of its training. One that is resumed does not begin at 0."""
        running = self._running.setdefault(trial, _Running(self._now()))
        if running.first is None:
            running.first = share

    def end(self, record: TrialRecord) -> None:
        """A trial ended."""
        self._running.pop(record.trial, None)
        if record.role != "base" and record.status != "failed":
            self._seconds += record.seconds
            self._trained += 1

    def left(self, open_trials: int, shares: Mapping[str, float], parallel: int) -> float | None:
        """Return the seconds until all trials are done; None as long as less than `ENOUGH` of a training was measured.

        Args:
            open_trials: not finished, running ones included.
            shares: running trial -> share of its training that is done.
            parallel: trials at a time.
        """
        seconds, trained = self._seconds, self._trained
        for trial, share in shares.items():
            running = self._running.get(trial)
            if running and running.first is not None and share > running.first:
                seconds += self._now() - running.since
                trained += share - running.first
        if trained < ENOUGH:
            return None
        at_once = max(1, min(parallel, open_trials))
        return max(0.0, seconds / trained * (open_trials - sum(shares.values())) / at_once)
