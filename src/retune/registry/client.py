"""MLflow's client for its model registry, given after checks of the name and of the server."""

from __future__ import annotations

from typing import Any

from retune.errors import InputError, RetuneError
from retune.registry.lock import name_problem
from retune.registry.retry import retries_outages
from retune.tracking import database, server
from retune.tracking.runs import connect, tracking_uri, uri_problem


@retries_outages
def wait_for_server(uri: str) -> None:
    """Return once the MLflow server answers.

    Raises:
        Unreachable: if it does not for as long as `retune.outages` says.

    """
    server.version(tracking_uri(uri))


def client_of(uri: str, model: str) -> Any:
    """Return MLflow's client, after a check of the model's name, which becomes part of queries and of the lock's name.

    Raises:
        InputError: if name or URI are not possible. RetuneError: if the server is too old, or does not answer.

    """
    if problem := name_problem(model):
        raise InputError(problem, "promote.model")
    used = tracking_uri(uri)
    if problem := uri_problem(used):
        raise InputError(problem, "tracking")
    if problem := server.problem(used):
        raise RetuneError(problem)
    return connect(used)


def existing_client(uri: str, model: str) -> Any:
    """Return MLflow's client for operations on existing versions, which must not create a database.

    Raises:
        InputError, RetuneError: as `client_of`. InputError: if the database does not exist.

    """
    path = database.path_of(tracking_uri(uri))
    if path is not None and not path.exists():
        raise InputError(
            f"there is no database {path}: name the one that the study writes to (its `tracking.uri`), as "
            f"{database.SQLITE}<file> or the address of an MLflow server",
            "tracking",
        )
    return client_of(uri, model)
