"""Which version is served: promotion of a challenger, and the way back.

The alias champion is moved, never removed, so that there is one after any crash.
"""

from __future__ import annotations

from retune.errors import InputError, RetuneError
from retune.records import GateRecord, now
from retune.registry.aliases import CHAMPION, PREVIOUS, Aliases, aliases_of
from retune.registry.client import existing_client
from retune.registry.lock import Lock
from retune.registry.retry import refusals_in_words, retries_outages
from retune.registry.versions import require_version
from retune.tracking.runs import connect, tracking_uri


class ChampionChanged(RetuneError):
    """Another promotion moved the champion after this one was decided."""


@retries_outages
def note_gate(uri: str, record: GateRecord) -> None:
    """Keep the gate's decision and reasons as tags of the challenger's version, for `retune promote`."""
    client = connect(tracking_uri(uri))
    reasons = [f"{rule['rule']}: {rule['outcome']}: {rule['text']}" for rule in record.rules]
    client.set_model_version_tag(record.model, record.challenger, "gate", record.decision)
    client.set_model_version_tag(record.model, record.challenger, "gate_champion", record.champion or "")
    client.set_model_version_tag(record.model, record.challenger, "gate_reasons", "\n".join(reasons)[:5000])


@retries_outages
def promote(uri: str, model: str, version: str, expected: str | None) -> Aliases:
    """Make `version` the champion and keep the old one as ``previous``.

    Args:
        uri: MLflow tracking URI.
        model: name in the registry.
        version: the new champion; if it is champion already, nothing is done.
        expected: the champion that the decision compared it with, None for no champion. If it has changed
            since, the decision is out of date and nothing is moved.

    Returns:
        The aliases afterwards.

    Raises:
        ChampionChanged: if the champion is no longer `expected`.
        InputError: if there is no such model or version.

    """
    client = existing_client(uri, model)
    version = require_version(client, model, version)
    with Lock(client, model) as lock:
        current = aliases_of(client, model)
        if current.champion == version:
            # The tag is missing if an earlier attempt moved the alias and was interrupted before it was set
            if "promoted" not in client.get_model_version(model, version).tags:
                client.set_model_version_tag(model, version, "promoted", now())
            return current
        if current.champion != expected:
            raise ChampionChanged(
                f"version {version} of {model} was decided on against champion {expected or 'none'}, but the "
                f"champion is {current.champion or 'none'} by now: run the gate again"
            )
        if current.champion is not None:  # first: after a crash both aliases point to the old champion
            lock.check()
            client.set_registered_model_alias(model, PREVIOUS, current.champion)
        lock.check()
        client.set_registered_model_alias(model, CHAMPION, version)
        client.set_model_version_tag(model, version, "promoted", now())
        return aliases_of(client, model)


@refusals_in_words()
def promote_challenger(uri: str, model: str) -> Aliases:
    """Promote the challenger if the gate decided so; do nothing if it is champion already.

    Raises:
        RetuneError: if there is no challenger, no gate decided on it, or the gate kept the champion.
        ChampionChanged: if the champion has changed since the gate decided.

    """
    client = existing_client(uri, model)
    current = aliases_of(client, model)
    if current.challenger is None:
        raise RetuneError(f"{model} has no challenger to promote; register one, or name a version with --to")
    if current.challenger == current.champion:
        return current
    tags = client.get_model_version(model, current.challenger).tags
    decision = tags.get("gate")
    if decision != "promote":
        why = tags.get("gate_reasons") or "no gate has decided on it"
        raise RetuneError(
            f"the gate did not let version {current.challenger} of {model} through (decision: {decision}); "
            f"--to {current.challenger} promotes it all the same\n{why}"
        )
    return promote(uri, model, current.challenger, tags.get("gate_champion") or None)


@refusals_in_words()
def rollback(uri: str, model: str) -> Aliases:
    """Make ``previous`` the champion again; the current champion becomes ``previous``, so twice is back.

    Raises:
        InputError: if there is no champion, or no version before it.

    """
    client = existing_client(uri, model)
    with Lock(client, model) as lock:
        current = aliases_of(client, model)
        if current.champion is None or current.previous in (None, current.champion):
            raise InputError(
                f"a rollback needs a champion and another version before it, but champion is "
                f"{current.champion or 'none'} and previous is {current.previous or 'none'}",
                model,
            )
        lock.check()
        # First: it is what the user wants
        client.set_registered_model_alias(model, CHAMPION, current.previous)
        lock.check()
        client.set_registered_model_alias(model, PREVIOUS, current.champion)
        client.set_model_version_tag(model, current.champion, "rolled_back", now())
        return aliases_of(client, model)
