"""The aliases of a registered model, which say what its versions are for.

``challenger`` is the version that was registered last, ``champion`` the one to serve, ``previous`` the champion before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from retune.errors import InputError, nearest
from retune.registry.client import existing_client
from retune.registry.lock import name_problem
from retune.registry.retry import retries_outages

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"


@dataclass(frozen=True)
class Aliases:
    """Which version each alias points to; None where it points to none."""

    champion: str | None
    previous: str | None
    challenger: str | None


@retries_outages
def aliases(uri: str, model: str) -> Aliases:
    """Return which version is champion, previous and challenger.

    Raises:
        InputError: if there is no such model.

    """
    return aliases_of(existing_client(uri, model), model)


def aliases_of(client: Any, model: str) -> Aliases:
    """Return the aliases that MLflow's client reads; see `aliases`."""
    from mlflow.exceptions import MlflowException

    try:
        registered = client.get_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise InputError(
            f"there is no registered model of that name{_others(client, model)}", model
        ) from error
    versions = {name: str(version) for name, version in registered.aliases.items()}
    return Aliases(versions.get(CHAMPION), versions.get(PREVIOUS), versions.get(CHALLENGER))


def _others(client: Any, model: str) -> str:
    """Return the likely or the available names for one that no model has, as the end of its error message."""
    names = [registered.name for registered in client.search_registered_models(max_results=100)]
    names = sorted(name for name in names if name_problem(name) is None)
    if near := nearest(model, names):
        return f"; did you mean {near!r}?"
    return f"; there are {names[:10]}" if names else "; none is registered there"
