"""Sends the outbox to MLflow, in order, from a daemon thread.

There are three kinds of errors:

* the server is unreachable, slow or overloaded: the same operation is tried again, later and with a longer time-out;
* the server will never accept the operation (a param that is too long, an artifact that is missing): it is set aside in
  ``refused.jsonl`` and the next one is sent;
* the server does not have the study any more (a new database): everything is sent again from the start.
"""

from __future__ import annotations

import logging
import os
import threading

from retune.errors import first_line
from retune.tracking.applied import StudyOnServer
from retune.tracking.outbox import Operation, Outbox

log = logging.getLogger("retune.tracking")

FIRST_TIMEOUT = 10  # seconds for one request; doubled each time the same operation fails
LONGEST_TIMEOUT = 320
FIRST_WAIT = 0.5  # seconds before the second try; doubled each time
LONGEST_WAIT = 30.0
POISON_TRIES = 8  # tries before the operation itself is suspected, as with a request that crashes the server
_BATCH = 2000
_PERMANENT_ERRORS = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "NOT_FOUND",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}


class RunDeleted(Exception):
    """The study's parent run was deleted on the server."""


class Sender:
    """Sends operations from the outbox to a study on the server, in a separate thread.

    Args:
        outbox: what to send.
        study: whom to send it to.

    """

    def __init__(self, outbox: Outbox, study: StudyOnServer) -> None:
        self.outbox = outbox
        self.study = study
        self.wake = threading.Event()
        self._stopping = threading.Event()
        self._tries = 0
        self._checked = False  # whether the server was asked if it still knows the parent run
        self._timeout_is_ours = "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ
        self._thread = threading.Thread(target=self._run, name="retune-tracking", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the thread after its current operation, waiting at most `timeout` seconds."""
        self._stopping.set()
        self.wake.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.wake.clear()
            wait = 1.0  # another process may append to the same outbox
            try:
                self.outbox.sync()
                if self.outbox.left():
                    with self.outbox.sending() as ours:
                        if ours:
                            self._send_all()
                        else:
                            wait = 0.2
            except Exception as error:
                wait = min(FIRST_WAIT * 2 ** min(max(self._tries - 1, 0), 10), LONGEST_WAIT)
                log.info("tracking waits %.1f s: %s", wait, _line(error))
                if self._stopping.wait(min(wait, FIRST_WAIT)):
                    return
            self.wake.wait(wait)

    def _send_all(self) -> None:
        position = self.study.position = self.outbox.position()  # another process may have sent meanwhile
        while not self._stopping.is_set():
            batch = self.outbox.read(position.offset, _BATCH)
            if not batch:
                return
            size = 1
            if _is_metric(batch[0][0]):
                while size < len(batch) and _is_metric(batch[size][0]):
                    size += 1
            self._send([operation for operation, _ in batch[:size] if operation is not None])
            position.offset = batch[size - 1][1]
            self.outbox.save(position)

    def _send(self, operations: list[Operation]) -> None:
        """Send operations of one kind; return when they were applied or set aside.

        Raises:
            Exception: of the server or the network; the operations are to be sent again.

        """
        if not operations:
            return
        try:
            self._allow_time()
            self._check()
            self.study.apply(operations)
        except Exception as error:
            self._tries += 1
            if not self._is_permanent(error):
                raise
            if len(operations) > 1:  # send them one by one, to find the one at fault
                self._tries = 0
                for operation in operations:
                    self._send([operation])
                return
            self.outbox.refuse(operations[0], _line(error))
            log.warning("tracking set an operation aside (%s): %s", operations[0].get("op"), _line(error))
        self._tries = 0

    def _allow_time(self) -> None:
        """Set the time-out of the next request, without retries: MLflow's default is seven retries of 120 s each."""
        if self._timeout_is_ours:
            seconds = min(FIRST_TIMEOUT * 2 ** min(self._tries, 10), LONGEST_TIMEOUT)
            os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(seconds)
            os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"

    def _check(self) -> None:
        if not self._checked:
            if self.study.is_deleted():
                self._forget()
            self._checked = True

    def _forget(self) -> None:
        log.warning(
            "the tracking server does not have study %s any more: sending all of it again", self.study.study
        )
        self.study.reset()
        raise RunDeleted

    def _is_permanent(self, error: Exception) -> bool:
        """Return whether the operation itself is at fault.

        Raises:
            RunDeleted: if it is the whole study that is gone.

        """
        if isinstance(error, RunDeleted):
            return False
        if isinstance(error, FileNotFoundError):
            return True
        if getattr(error, "error_code", None) in _PERMANENT_ERRORS or self._tries >= POISON_TRIES:
            self.study.ping()  # raises if the server does not work: then the operation is not at fault
            if self.study.is_deleted():
                self._forget()
            return True
        return False


def _is_metric(operation: Operation | None) -> bool:
    return operation is not None and operation.get("op") == "metric"


def _line(error: Exception) -> str:
    return first_line(error)[:500]
