"""Checks the MLflow server's version first, because old servers lack calls that the registry needs."""

from __future__ import annotations

import functools
import re

from retune.errors import RetuneError
from retune.tracking.runs import address, is_remote

OLDEST = 3
"""The first major version whose servers answer what a client of this version asks: 2.x has no such address for the
artifacts of a logged model, so that listing a run's artifacts ends with 404."""
_SECONDS = 10


class Unreachable(RetuneError):
    """The server gives no answer; it may later."""


def version(uri: str) -> str | None:
    """Return the server's version; None for a database, and for a server that does not tell it (as hosted ones).

    Raises:
        Unreachable: if it does not answer.

    """
    if not is_remote(uri):
        return None
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        answer = http_request(
            get_default_host_creds(address(uri)),
            "/version",
            "GET",
            timeout=_SECONDS,
            max_retries=1,
            raise_on_status=False,
        )
    except MlflowException as error:
        reason = re.split(r"Failed to establish a new connection: |with exception ", str(error))[-1]
        raise Unreachable(
            f"the MLflow server {uri} does not answer: {reason.rstrip(chr(39) + chr(34) + ')')}"
        ) from error
    text = answer.text.strip()
    return text if answer.status_code == 200 and re.match(r"\d+\.\d+", text) else None


@functools.lru_cache(maxsize=8)
def problem(uri: str) -> str | None:
    """Return why the server cannot be used, None if it can; asked once in a process.

    Raises:
        Unreachable: if it does not answer.

    """
    found = version(uri)
    if found is None or int(found.split(".")[0]) >= OLDEST:
        return None
    return (
        f"the MLflow server must be {OLDEST}.0 or newer, but {uri} is {found}: upgrade it "
        "(its database by `mlflow db upgrade`), or name another in `tracking.uri`"
    )
