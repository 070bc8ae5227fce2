"""Versions of a registered model: an adapter is registered as one, looked up by alias or number, and downloaded."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retune import adapter as files
from retune.data.prompts import Prompt
from retune.errors import InputError
from retune.records import BenchRecord, TrialRecord, now
from retune.registry.aliases import CHALLENGER, CHAMPION, PREVIOUS, aliases_of
from retune.registry.client import client_of, existing_client
from retune.registry.gate import ChampionFacts
from retune.registry.lock import Lock
from retune.registry.retry import refusals_in_words, retries_outages
from retune.store import names
from retune.tracking.runs import TRIAL, ensure_experiment, tracking_uri, trial_run

PROMPT = "prompt.json"
"""The artifact beside the adapter with the prompt template: a chat template is too long for a tag."""


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
    client = client_of(uri, model)
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
    """Return the version with this adapter, unless its files are gone: somebody may have deleted the run for good."""
    for version in client.search_model_versions(f"name = '{model}'"):
        same = version.tags.get("adapter_digest") == digest and version.status == "READY"
        if same and _artifacts(client, version.run_id):
            return str(version.version)
    return None


def _artifacts(client: Any, run_id: str) -> list[Any]:
    """Return the files of the adapter in a run; none if `mlflow gc` has removed it."""
    from mlflow.exceptions import MlflowException

    try:
        return list(client.list_artifacts(run_id, "adapter"))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return []
        raise


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


@refusals_in_words()
def version(uri: str, model: str, named: str) -> tuple[str, dict[str, str]]:
    """Return the version that an alias or a number names, and its tags.

    Raises:
        InputError: if there is no such model, alias or version.
    """
    client = existing_client(uri, model)
    current = aliases_of(client, model)
    known = {name: getattr(current, name) for name in (CHAMPION, PREVIOUS, CHALLENGER)}
    if not named.isdigit() and known.get(named) is None:
        available = [name for name, number in known.items() if number]
        raise InputError(
            f"a version must be named by one of the aliases {available} or by its number, but got {named!r}",
            model,
        )
    number = require_version(client, model, known.get(named) or named)
    return number, dict(client.get_model_version(model, number).tags)


def require_version(client: Any, model: str, version: str) -> str:
    """Return the version as MLflow writes it: ``03`` is ``3``, so that it compares equal to the champion's."""
    from mlflow.exceptions import MlflowException

    aliases_of(client, model)
    try:
        if re.fullmatch("[0-9]{1,9}", version):
            return str(client.get_model_version(model, str(int(version))).version)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    known = sorted((int(v.version) for v in client.search_model_versions(f"name = '{model}'")), reverse=True)
    raise InputError(f"there is no version {version!r}; the newest are {known[:10]}", model)


@refusals_in_words()
def describe(uri: str, model: str) -> dict[str, dict[str, str] | None]:
    """Return for each alias its version and that version's tags; None where it points to none."""
    client = existing_client(uri, model)
    current = aliases_of(client, model)
    described: dict[str, dict[str, str] | None] = {}
    for alias in (CHAMPION, PREVIOUS, CHALLENGER):
        version = getattr(current, alias)
        tags = client.get_model_version(model, version).tags if version else {}
        described[alias] = {"version": version, **tags} if version else None
    return described


@refusals_in_words()
def prompt(uri: str, model: str, version: str) -> Prompt | None:
    """Return the prompt template that a registered version was tuned with; None for versions of older releases."""
    client = existing_client(uri, model)
    entry = client.get_model_version(model, require_version(client, model, version))
    if "prompt" not in entry.tags:
        return None
    with tempfile.TemporaryDirectory() as folder:
        copy = client.download_artifacts(entry.run_id, PROMPT, folder)
        return Prompt.model_validate_json(Path(copy).read_bytes())


@retries_outages
def download_adapter(uri: str, model: str, version: str, folder: Path) -> Path:
    """Download a registered adapter into `folder` and return the path for `PeftModel.from_pretrained`.

    Raises:
        InputError: if there is no such model or version, the server lists files outside the folder, or the adapter is not the
            one that was registered.

    """
    client = existing_client(uri, model)
    entry = client.get_model_version(model, require_version(client, model, version))
    listed = _artifacts(client, entry.run_id)
    if not listed:
        raise InputError(
            f"its adapter is gone from MLflow: run {entry.run_id} has no such files any more; promote another version, or "
            "run the study again, which registers its adapter anew",
            f"{model} version {version}",
        )
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
def champion_facts(uri: str, model: str, tasks: Sequence[str] = ()) -> ChampionFacts | None:
    """Return what the registry knows of the champion; None before the first promotion.

    Its objective was measured on its own study's data: compare `data_digest` before using it. If it differs, validate the
    adapter (`download_adapter`) on the new data and replace the value.

    Args:
        uri: MLflow tracking URI.
        model: name in the registry.
        tasks: benchmark tasks whose scores are of interest; all if empty.

    """
    client = client_of(uri, model)
    try:
        champion = aliases_of(client, model).champion
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


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
