"""One writer at a time for a registered model, by means of MLflow alone.

MLflow cannot compare and swap an alias, but a registered model's *name* is unique: of several that create
``<model>.lock`` one succeeds, and so does one of several that rename it. The owner is in a tag that is
written together with the name.

* take: create the lock's name. It is there: wait.
* leave: delete it.
* the owner died: a waiter that has seen the same owner for `EXPIRY` seconds of its own clock renames the lock
  to a name made of that owner. Only one waiter can, and none can rename the next owner's lock by mistake,
  since the name made of the dead owner is taken then.

No clocks are compared. What is left open: an owner that stops for longer than half of `EXPIRY` between
`check` and the write that follows it may still write after its lock was taken away.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from types import TracebackType
from typing import Any, Self

from retune.errors import RetuneError

EXPIRY = 30.0  # seconds; an owner does a handful of requests
_PAUSE = 0.2
_OWNER = "owner"
_BUSY = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")  # also what a locked SQLite database answers
_SWEEP_AFTER = 86_400_000  # ms; long after any waiter has forgotten the dead owner


def name_problem(model: str) -> str | None:
    """Return why a registered model cannot have this name; None if it can."""
    if model.endswith(".lock") or ".lock.broken." in model:
        return f"names ending in `.lock` are those of locks on other models, but got {model!r}"
    if not model.strip() or any(letter in "'\"`%/:" or ord(letter) < 32 for letter in model):
        return f"a registered model's name has letters, digits and `._-`, but got {model!r}"
    return None


class Locked(RetuneError):
    """The lock could not be taken, or was taken away."""


class Expired(Locked):
    """It was held for so long that another may have taken it away."""


class Lock:
    """The right to move a model's aliases, for the length of a ``with`` block.

    Args:
        client: MLflow client.
        model: name of the registered model.
        expiry: seconds without a heartbeat after which an owner counts as dead.

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
            self._delete(self._name)  # nobody can have taken it away yet
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
                f"{self._name} was held for more than {self._expiry / 2:.0f} s: nothing more is written"
            )

    def _take(self) -> bool:
        from mlflow.exceptions import MlflowException

        asked = time.monotonic()
        try:
            self._client.create_registered_model(self._name, tags={_OWNER: self._owner})
        except MlflowException as error:
            if self._present_owner() != self._owner:  # else the answer was lost, but it was a yes
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
                f"{self._name} is a registered model of somebody's, but the lock needs that name: rename that model"
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
        """Delete what is left of locks that were broken long ago."""
        old = time.time() * 1000 - _SWEEP_AFTER
        for model in self._client.search_registered_models(f"name LIKE '{self._name}.broken.%'"):
            if model.last_updated_timestamp < old:
                self._delete(model.name)
