"""Repeats operations of the registry while the MLflow server is unreachable, for as long as `retune.outages` says.

What MLflow refuses for good is told in a sentence.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Concatenate, ParamSpec, TypeVar

from retune import outages
from retune.errors import RetuneError, first_line
from retune.registry.lock import Expired
from retune.tracking import server
from retune.tracking.runs import is_remote, tracking_uri

log = logging.getLogger("retune.registry")
P = ParamSpec("P")
T = TypeVar("T")
_PAUSE = 2.0


def retries_outages(operation: Callable[Concatenate[str, P], T]) -> Callable[Concatenate[str, P], T]:
    """Decorate an operation so that it is repeated as a whole while the server in its first argument is unreachable.

    The operation must be idempotent: the server may have carried out a request whose answer was lost.

    Raises:
        Unreachable: if the server stays unreachable. RetuneError: if it refuses.

    """

    @functools.wraps(operation)
    @refusals_in_words()
    def call(uri: str, /, *args: P.args, **kwargs: P.kwargs) -> T:
        limit, begin = outages.retry_seconds(), time.monotonic()
        warned = False
        while True:
            try:
                return operation(uri, *args, **kwargs)
            except Exception as error:
                if limit == 0 or not is_remote(tracking_uri(uri)) or not _is_passing(error):
                    raise
                if time.monotonic() - begin >= limit:
                    raise server.Unreachable(
                        f"{first_line(error)[:500]} (tried for {limit:.0f} s, {outages.MLFLOW})"
                    ) from error
                if not warned:
                    log.warning("waiting for the MLflow server: %s", first_line(error)[:500])
                warned = True
            time.sleep(min(_PAUSE, limit / 10))

    return call


@contextmanager
def refusals_in_words() -> Iterator[None]:
    """Convert what MLflow's client raises, inside a ``with`` block or as a decorator."""
    try:
        yield
    except Exception as error:
        from mlflow.exceptions import MlflowException

        if not isinstance(error, MlflowException):
            raise
        raise RetuneError(
            f"MLflow refused ({error.error_code}): {first_line(error)[:500]}; see whether the account may do this "
            "(MLFLOW_TRACKING_USERNAME), and whether somebody has deleted what it is about"
        ) from error


def _is_passing(error: Exception) -> bool:
    """Return whether the same operation may succeed later.

    A server that cannot reach its own storage or database answers 500. `Expired`: during a longer outage the lock may have been
    broken by another, so the operation has to acquire it again.
    """
    import requests  # type: ignore[import-untyped]
    from mlflow.exceptions import MlflowException

    if isinstance(error, server.Unreachable | Expired):
        return True
    if isinstance(error, requests.RequestException):
        return error.response is None or bool(error.response.status_code >= 500)
    if isinstance(error, MlflowException):
        status = int(error.get_http_status_code())
        return status >= 500 or status == 429
    return False
