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
LONG = {S3: "20", MLFLOW: "150"}
"""Environment variables and what a study sets them to; one that is set already stays. 20 attempts take about two and a half
minutes: botocore waits at random, up to 20 s each time."""
_BRIEF = 10.0


def outlast() -> None:
    """Let this process, and those that it starts, wait longer."""
    for name, value in LONG.items():
        os.environ.setdefault(name, value)


@contextmanager
def outlasting() -> Iterator[None]:
    """Do the same inside a ``with`` block."""
    before = {name: os.environ.get(name) for name in LONG}
    outlast()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


def seconds() -> float:
    """Return for how many seconds a call to MLflow is repeated; 0 unless something outlasts or the variable says so.

    Raises:
        InputError: if the variable is no such number.

    """
    text = os.environ.get(MLFLOW) or "0"
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise InputError(f"a number of seconds, 0 or more, is needed, but got {text!r}", MLFLOW)
    return found


def farewell() -> float:
    """Return for how many seconds what MLflow has not been told yet holds a step up.

    On a machine the next step or run tells it. In a pod it is lost with the pod's files.
    """
    return max(_BRIEF, seconds()) if in_a_pod() else _BRIEF


def in_a_pod() -> bool:
    """Return whether this process runs in a pod of a cluster."""
    return "KUBERNETES_SERVICE_HOST" in os.environ
