"""Checks an MLflow server before it is used: the credentials, and the version, since old servers lack calls of the registry."""

from __future__ import annotations

import functools
import os
import re

from retune.errors import RetuneError
from retune.tracking.runs import address, is_remote

MIN_MAJOR_VERSION = 3
"""The first major version whose servers have all endpoints that the client uses: in 2.x the one for a logged model's artifacts
is missing, so that listing a run's artifacts ends with 404."""
_SECONDS = 10


class Unreachable(RetuneError):
    """The server does not answer; it may do so later."""


def version(uri: str) -> str | None:
    """Return the server's version; None for a database, and for a server that does not report it (as hosted ones).

    Raises:
        Unreachable: if it does not answer.

    """
    if not is_remote(uri):
        return None
    status, text = _get(uri, "/version")
    return text if status == 200 and re.match(r"\d+\.\d+", text) else None


def _get(uri: str, path: str) -> tuple[int, str]:
    """Return status and text of a GET request, made with the environment's credentials, as MLflow's client does."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    creds = get_default_host_creds(address(uri))
    try:
        answer = http_request(creds, path, "GET", timeout=_SECONDS, max_retries=1, raise_on_status=False)
    except MlflowException as error:
        reason = re.split(r"Failed to establish a new connection: |with exception ", str(error))[-1]
        raise Unreachable(
            f"the MLflow server {uri} does not answer: {reason.rstrip(chr(39) + chr(34) + ')')}"
        ) from error
    return answer.status_code, answer.text.strip()


@functools.lru_cache(maxsize=8)
def problem(uri: str) -> str | None:
    """Return why the server cannot be used, None if it can; cached for the process.

    Raises:
        Unreachable: if it does not answer.

    """
    if not is_remote(uri):
        return None
    # This endpoint exists on every server. One that a hosted server lacks may answer 403 to everyone.
    status, text = _get(uri, "/api/2.0/mlflow/experiments/search?max_results=1")
    if status in (401, 403):
        return _refusal(uri, status)
    installed = version(uri)
    if installed is not None and int(installed.split(".")[0]) < MIN_MAJOR_VERSION:
        return (
            f"the MLflow server must be {MIN_MAJOR_VERSION}.0 or newer, but {uri} is {installed}: upgrade it "
            "(its database by `mlflow db upgrade`), or name another in `tracking.uri`"
        )
    # Else a study would run for days before its model cannot be registered
    if status == 404 or (status == 200 and not text.startswith("{")):
        said = "a page for browsers" if status == 200 else status
        return (
            f"{uri} answers, but not as an MLflow server does ({said}): see whether a path belongs to the address, as in "
            "https://host/mlflow, and whether a login in front of the server lets programs through"
        )
    return None


def _refusal(uri: str, status: int) -> str:
    names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
    present = [name for name in names if os.environ.get(name)]
    if not present:
        return (
            f"{uri} requires a login ({status}); set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
            "or MLFLOW_TRACKING_TOKEN; on a cluster they come from a Secret of `cluster.secrets`"
        )
    return f"{uri} rejects the given {' and '.join(present)} ({status}); check them"
