"""How long this process waits for S3 and MLflow when they are away.

A command at a terminal reports a wrong address within seconds. A study and its pods, whose hours of work would be lost,
wait for a few minutes: a server that is restarted, or moved to another node, comes back in that time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from retune.errors import InputError

S3 = "AWS_MAX_ATTEMPTS"
MLFLOW = "RETUNE_PATIENCE_SECONDS"
LONG_WAITS = {S3: "20", MLFLOW: "150"}
"""Environment variables and the values that a study sets them to; a variable that is set already is kept.

20 attempts take about two and a half minutes: botocore waits at random, up to 20 s each time."""


def wait_long() -> None:
    """Let this process and its child processes wait longer."""
    for name, value in LONG_WAITS.items():
        os.environ.setdefault(name, value)


@contextmanager
def long_waits() -> Iterator[None]:
    """Let this process and its child processes wait longer inside a ``with`` block."""
    before = {name: os.environ.get(name) for name in LONG_WAITS}
    wait_long()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


def retry_seconds() -> float:
    """Return for how many seconds a failing call to MLflow is repeated: `RETUNE_PATIENCE_SECONDS`, else 0.

    Raises:
        InputError: if the variable is not a number of seconds.

    """
    text = os.environ.get(MLFLOW) or "0"
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise InputError(f"must be a number of seconds, 0 or more, but got {text!r}", MLFLOW)
    return seconds


def flush_seconds(usual: float = 10.0) -> float:
    """Return for how many seconds a step waits at its end to send MLflow what is left in its outbox.

    Outside of a cluster the next step or run sends it: `usual`, or less if the variable asks for less. In a pod the outbox is
    lost with the pod's files.
    """
    if in_pod():
        return max(usual, retry_seconds())
    return min(usual, retry_seconds()) if os.environ.get(MLFLOW) else usual


def in_pod() -> bool:
    """Return whether this process runs in a pod of a cluster."""
    return "KUBERNETES_SERVICE_HOST" in os.environ
