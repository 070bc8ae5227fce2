"""Adapters in MLflow's model registry: registration, promotion, rollback.

Aliases of a registered model: ``challenger`` is the version that was registered last, ``champion`` the one to
serve, ``previous`` the champion before it. The alias champion is moved, never removed, so that there is one after any crash.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retune import adapter as files
from retune.data.prompts import Prompt
from retune.errors import InputError, RetuneError, nearest
from retune.records import BenchRecord, GateRecord, TrialRecord, now
from retune.registry.gate import ChampionFacts
from retune.registry.lock import Lock, name_problem
from retune.registry.retry import retries_outages
from retune.store import names
from retune.tracking import database, server
from retune.tracking.runs import TRIAL, connect, ensure_experiment, tracking_uri, trial_run, uri_problem

log = logging.getLogger("retune.registry")

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"
PROMPT = "prompt.json"
"""The artifact beside the adapter with the prompt template: a chat template is too long for a tag."""


class ChampionChanged(RetuneError):
    """Another promotion moved the champion after this one was decided."""


@dataclass(frozen=True)
class Aliases:
    """Which version each alias points to; None where it points to none."""

    champion: str | None
    previous: str | None
    challenger: str | None


@retries_outages
def register(
    uri: str,
    model: str,
    trial: TrialRecord,
    adapter: Path,
    *,
    study: str,
    objective: str = "validation_loss",
    scores: Sequence[BenchRecord] = (),
    tags: Mapping[str, str] | None = None,
    search_digest: str | None = None,
    prompt: Prompt | None = None,
) -> str:
    """Register an adapter as a new version with the alias ``challenger``; return the version.

    The version's source is the artifact ``adapter`` of the trial's run: PEFT's own files and nothing else. An
    adapter that is registered already (same digest) keeps its version.

    Args:
        uri: MLflow tracking URI.
        model: name in the registry, created if necessary.
        trial: the record of the adapter's training.
        adapter: the folder with PEFT's files.
        study: name of the study.
        objective: the metric whose value becomes a tag.
        scores: benchmark scores of the trial, become tags.
        tags: more tags, e.g. the git commit.
        search_digest: the tracker's tag of that name, to find the trial's run among several searches.
        prompt: the template the model was tuned with; kept as the run's artifact `prompt.json` and the tag `prompt`.

    Raises:
        InputError: if the folder has no adapter, or not the one that the trial wrote.

    """
    missing = [name for name in files.FILES if not (adapter / name).is_file()]
    if missing:
        raise InputError(
            f"an adapter folder must have {list(files.FILES)}, but {adapter} lacks {missing}", model
        )
    client = _client(uri, model)
    if damage := files.damage(str(adapter), trial.adapter_digest):
        raise InputError(damage, model)
    digest = trial.adapter_digest or files.digest(files.read(adapter))
    _ensure_model(client, model)
    with Lock(client, model):
        version = _registered(client, model, digest)
        if version is None:
            run = _run_with_adapter(client, tracking_uri(uri), study, trial, adapter, search_digest)
            extra_tags = dict(tags or {})
            if prompt is not None:
                client.log_text(run.info.run_id, prompt.model_dump_json() + "\n", PROMPT)
                extra_tags["prompt"] = prompt.kind
            created = client.create_model_version(
                model,
                source=f"{run.info.artifact_uri}/adapter",
                run_id=run.info.run_id,
                tags=_tags(trial, digest, study, objective, scores, extra_tags),
            )
            version = str(created.version)
        client.set_registered_model_alias(model, CHALLENGER, version)
    return version


def _ensure_model(client: Any, model: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _registered(client: Any, model: str, digest: str) -> str | None:
    for version in client.search_model_versions(f"name = '{model}'"):
        if version.tags.get("adapter_digest") == digest and version.status == "READY":
            return str(version.version)
    return None


def _run_with_adapter(
    client: Any, uri: str, study: str, trial: TrialRecord, adapter: Path, key: str | None
) -> Any:
    """Return the trial's run, with the adapter among its artifacts."""
    run = trial_run(client, study, trial.trial, key)
    if run is None:  # its tracking was lost or is not sent yet, but a version must refer to a run
        experiment = ensure_experiment(client, uri, study)
        run = client.create_run(experiment, run_name=trial.trial, tags={TRIAL: trial.trial})
        client.set_terminated(run.info.run_id)
    sizes = {item.path: item.file_size for item in client.list_artifacts(run.info.run_id, "adapter")}
    here = {f"adapter/{path.name}": path.stat().st_size for path in adapter.iterdir() if path.is_file()}
    if any(sizes.get(name) != size for name, size in here.items()):
        client.log_artifacts(run.info.run_id, str(adapter), "adapter")
    return run


def _tags(
    trial: TrialRecord,
    digest: str,
    study: str,
    objective: str,
    scores: Sequence[BenchRecord],
    extra_tags: Mapping[str, str],
) -> dict[str, str]:
    tags = {
        "adapter_digest": digest,
        "base": trial.base,
        "base_revision": trial.base_revision or "",
        "data_digest": trial.data_digest,
        "study": study,
        "trial": trial.trial,
        "seed": str(trial.seed),
        "assignment": json.dumps(trial.assignment),
        "objective": objective,
        "objective_value": repr(trial.objective(objective)),
        "registered": now(),
    }
    tags |= {f"bench.{score.task}": repr(score.score) for score in scores}
    return {**tags, **{name: str(value) for name, value in extra_tags.items()}}


@retries_outages
def wait_for_server(uri: str) -> None:
    """Return once the MLflow server answers.

    Raises:
        Unreachable: if it does not for as long as `retune.outages` says.

    """
    server.version(tracking_uri(uri))


def _client(uri: str, model: str) -> Any:
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


def _existing_client(uri: str, model: str) -> Any:
    """Return MLflow's client for operations on existing versions, which must not create a database.

    Raises:
        InputError, RetuneError: as `_client`. InputError: if the database does not exist.

    """
    path = database.path_of(tracking_uri(uri))
    if path is not None and not path.exists():
        raise InputError(
            f"there is no database {path}: name the one that the study writes to (its `tracking.uri`), as "
            f"{database.SQLITE}<file> or the address of an MLflow server",
            "tracking",
        )
    return _client(uri, model)


@retries_outages
def aliases(uri: str, model: str) -> Aliases:
    """Return which version is champion, previous and challenger.

    Raises:
        InputError: if there is no such model.

    """
    return _aliases(_existing_client(uri, model), model)


def _aliases(client: Any, model: str) -> Aliases:
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


@retries_outages
def champion_facts(uri: str, model: str, tasks: Sequence[str] = ()) -> ChampionFacts | None:
    """Return what the registry knows of the champion; None before the first promotion.

    Its objective was measured on its own study's data: compare `data_digest` before using it. If it differs, validate the
    adapter (`download_adapter`) on the new data and replace the value.

    Args:
        uri: MLflow tracking URI.
        model: name in the registry.
        tasks: benchmark tasks whose scores are of interest; all if empty.

    """
    client = _client(uri, model)
    try:
        champion = _aliases(client, model).champion
    except InputError:
        return None
    if champion is None:
        return None
    tags = client.get_model_version(model, champion).tags
    scores = {name[6:]: _number(text) for name, text in tags.items() if name.startswith("bench.")}
    return ChampionFacts(
        version=champion,
        objective=_number(tags.get("objective_value")),
        scores={t: s for t, s in scores.items() if s is not None and (not tasks or t in tasks)},
        adapter_digest=tags.get("adapter_digest"),
        data_digest=tags.get("data_digest", ""),
        trial=tags.get("trial", ""),
        study=tags.get("study", ""),
        base=tags.get("base", ""),
        base_revision=tags.get("base_revision") or None,
    )


def version(uri: str, model: str, named: str) -> tuple[str, dict[str, str]]:
    """Return the version that an alias or a number names, and its tags.

    Raises:
        InputError: if there is no such model, alias or version.
    """
    client = _existing_client(uri, model)
    current = _aliases(client, model)
    known = {name: getattr(current, name) for name in (CHAMPION, PREVIOUS, CHALLENGER)}
    if not named.isdigit() and known.get(named) is None:
        available = [name for name, number in known.items() if number]
        raise InputError(
            f"a version must be named by one of the aliases {available} or by its number, but got {named!r}",
            model,
        )
    number = _require_version(client, model, known.get(named) or named)
    return number, dict(client.get_model_version(model, number).tags)


def prompt(uri: str, model: str, version: str) -> Prompt | None:
    """Return the prompt template that a registered version was tuned with; None for versions of older releases."""
    client = _existing_client(uri, model)
    entry = client.get_model_version(model, _require_version(client, model, version))
    if "prompt" not in entry.tags:
        return None
    with tempfile.TemporaryDirectory() as folder:
        copy = client.download_artifacts(entry.run_id, PROMPT, folder)
        return Prompt.model_validate_json(Path(copy).read_bytes())


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


@retries_outages
def download_adapter(uri: str, model: str, version: str, folder: Path) -> Path:
    """Download a registered adapter into `folder` and return the path for `PeftModel.from_pretrained`.

    Raises:
        InputError: if there is no such model or version, the server lists files outside the folder, or the adapter is not the
            one that was registered.

    """
    client = _existing_client(uri, model)
    entry = client.get_model_version(model, _require_version(client, model, version))
    listed = client.list_artifacts(entry.run_id, "adapter")
    names.check((item.path for item in listed), f"{model} version {version}")
    if folders := [item.path for item in listed if item.is_dir]:
        raise InputError(
            f"an adapter must consist of files, but it has the folders {folders}",
            f"{model} version {version}",
        )
    folder.mkdir(parents=True, exist_ok=True)
    copy = Path(client.download_artifacts(entry.run_id, "adapter", str(folder)))
    if damage := files.damage(str(copy), entry.tags.get("adapter_digest")):
        raise InputError(damage, f"{model} version {version}")
    return copy


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
    client = _existing_client(uri, model)
    version = _require_version(client, model, version)
    with Lock(client, model) as lock:
        current = _aliases(client, model)
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
        return _aliases(client, model)


def promote_challenger(uri: str, model: str) -> Aliases:
    """Promote the challenger if the gate decided so; do nothing if it is champion already.

    Raises:
        RetuneError: if there is no challenger, no gate decided on it, or the gate kept the champion.
        ChampionChanged: if the champion has changed since the gate decided.

    """
    client = _existing_client(uri, model)
    current = _aliases(client, model)
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


def describe(uri: str, model: str) -> dict[str, dict[str, str] | None]:
    """Return for each alias its version and that version's tags; None where it points to none."""
    client = _existing_client(uri, model)
    current = _aliases(client, model)
    described: dict[str, dict[str, str] | None] = {}
    for alias in (CHAMPION, PREVIOUS, CHALLENGER):
        version = getattr(current, alias)
        tags = client.get_model_version(model, version).tags if version else {}
        described[alias] = {"version": version, **tags} if version else None
    return described


def rollback(uri: str, model: str) -> Aliases:
    """Make ``previous`` the champion again; the current champion becomes ``previous``, so twice is back.

    Raises:
        InputError: if there is no champion, or no version before it.

    """
    client = _existing_client(uri, model)
    with Lock(client, model) as lock:
        current = _aliases(client, model)
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
        return _aliases(client, model)


def _require_version(client: Any, model: str, version: str) -> str:
    """Return the version as MLflow writes it: ``03`` is ``3``, so that it compares equal to the champion's."""
    from mlflow.exceptions import MlflowException

    _aliases(client, model)
    try:
        if re.fullmatch("[0-9]{1,9}", version):
            return str(client.get_model_version(model, str(int(version))).version)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    known = sorted((int(v.version) for v in client.search_model_versions(f"name = '{model}'")), reverse=True)
    raise InputError(f"there is no version {version!r}; the newest are {known[:10]}", model)
