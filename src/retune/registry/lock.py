"""A mutual exclusion lock for a registered model, by means of MLflow alone.

MLflow cannot compare and swap an alias, but the name of a registered model is unique: of several clients that create
``<model>.lock`` one succeeds, and so does one of several that rename it. The owner is in a tag that is
written together with the name.

* acquire: create a model of the lock's name; wait while there is one.
* release: delete it.
* the owner died: a waiter that has seen the same owner for `EXPIRY` seconds of its own clock renames the lock
  to a name that contains that owner. Only one waiter can, and none can rename the next owner's lock by mistake,
  since the name with the dead owner exists by then.

Clocks of different machines are not compared. One gap remains: an owner that pauses for longer than half of `EXPIRY` between
`check` and the following write may still write after its lock was broken.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from types import TracebackType
from typing import Any, Self

from retune.errors import RetuneError

EXPIRY = 30.0  # seconds; an owner makes a handful of requests
_PAUSE = 0.2
_OWNER = "owner"
_BUSY = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")  # of the server, also if its SQLite database is locked
_SWEEP_AFTER = 86_400_000  # ms; long after the last waiter that could still break the same owner's lock


def name_problem(model: str) -> str | None:
    """Return why a registered model cannot have this name; None if it can."""
    if model.endswith(".lock") or ".lock.broken." in model:
        return f"a registered model's name must not end in `.lock`, which marks locks on models, but got {model!r}"
    if not model.strip() or any(letter in "'\"`%/:" or ord(letter) < 32 for letter in model):
        return f"a registered model's name must consist of letters, digits and `._-`, but got {model!r}"
    return None


class Locked(RetuneError):
    """The lock could not be acquired, or was broken by another."""


class Expired(Locked):
    """The lock was held for so long that another may have broken it."""


class Lock:
    """The exclusive right to move a model's aliases inside a ``with`` block.

    Args:
        client: MLflow client.
        model: name of the registered model.
        expiry: seconds after which an owner counts as dead.

    Raises:
        Locked: if others hold it for longer than ten times `expiry`.

    """

    def __init__(self, client: Any, model: str, expiry: float = EXPIRY) -> None:
        self._client = client
        self._name = f"{model}.lock"
        self._expiry = expiry
        self._owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._taken = 0.0

    def __enter__(self) -> Self:
        end = time.monotonic() + 10 * self._expiry
        seen, since = None, 0.0
        while not self._take():
            owner = self._present_owner()
            if owner != seen:
                seen, since = owner, time.monotonic()
            elif owner is not None and time.monotonic() - since > self._expiry:
                self._break(owner)
            if time.monotonic() > end:
                raise Locked(
                    f"{self._name} has been held by others, now {owner}, for {10 * self._expiry:.0f} s"
                )
            time.sleep(_PAUSE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if time.monotonic() - self._taken < self._expiry / 2:
            self._delete(self._name)  # it cannot have been broken yet
            self._sweep()
        else:
            self._break(self._owner)

    def check(self) -> None:
        """Make sure that the lock is still ours; call it right before each write.

        Raises:
            Expired: if it may have been taken away.

        """
        if time.monotonic() - self._taken > self._expiry / 2:
            raise Expired(
                f"{self._name} must be held for at most {self._expiry / 2:.0f} s, but was held longer: nothing more is written; "
                "run again"
            )

    def _take(self) -> bool:
        from mlflow.exceptions import MlflowException

        asked = time.monotonic()
        try:
            self._client.create_registered_model(self._name, tags={_OWNER: self._owner})
        except MlflowException as error:
            # Else an earlier request succeeded and its answer was lost
            if self._present_owner() != self._owner:
                if error.error_code not in ("RESOURCE_ALREADY_EXISTS", *_BUSY):
                    raise
                return False
        self._taken = asked
        return True

    def _present_owner(self) -> str | None:
        from mlflow.exceptions import MlflowException

        try:
            owner = self._client.get_registered_model(self._name).tags.get(_OWNER)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        if owner is None:
            raise Locked(
                f"the name {self._name} must be free for the lock, but it is a registered model without an owner: rename that "
                "model"
            )
        return str(owner)

    def _break(self, owner: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.rename_registered_model(self._name, f"{self._name}.broken.{owner}")
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
                raise

    def _delete(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.delete_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise

    def _sweep(self) -> None:
        """Delete the remains of locks that were broken long ago."""
        old = time.time() * 1000 - _SWEEP_AFTER
        for model in self._client.search_registered_models(f"name LIKE '{self._name}.broken.%'"):
            if model.last_updated_timestamp < old:
                self._delete(model.name)
