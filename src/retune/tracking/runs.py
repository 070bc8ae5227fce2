"""The MLflow side of tracking: experiment, parent run and child runs, each found before it is made.

The same call made twice leaves MLflow as one call does. MLflow chooses run ids itself, so a run is recognised
by its tags: ``retune.key`` names the study's parent run, ``retune.trial`` a trial below it.

mlflow is imported inside the functions: it takes seconds.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from retune import uris
from retune.errors import InputError
from retune.tracking import database

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARENT = "mlflow.parentRunId"
KEY = "retune.key"
TRIAL = "retune.trial"
_MAX_BATCH = 500  # MLflow takes at most 1000 metrics and 100 params or tags in one call
_MAX_VALUE = 5000


def tracking_uri(uri: str) -> str:
    """Return the tracking URI to use: ``MLFLOW_TRACKING_URI``, which a pipeline sets, goes before `uri`.

    A password in it is hidden (`retune.uris`); `connect` knows it.
    """
    return uris.hide(os.environ.get("MLFLOW_TRACKING_URI") or uri)


def address(uri: str) -> str:
    """Return the address to connect to: of a server without name and password, which go into MLflow's own variables.

    MLflow prints addresses in its errors.

    Raises:
        InputError: if the password in `uri` was masked, and this process does not know it.

    """
    whole = uris.reveal(uri)
    if whole is None:
        raise InputError(
            f"the password in {uri} is masked and not known here; set MLFLOW_TRACKING_URI to the whole address",
            "tracking.uri",
        )
    parts = urlsplit(whole)
    if parts.scheme in ("http", "https") and "@" in parts.netloc:
        who, _, place = parts.netloc.rpartition("@")
        name, _, password = who.partition(":")
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(name)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(password)
        return urlunsplit(parts._replace(netloc=place))
    return whole


def place_problem(uri: str) -> str | None:
    """Return why MLflow cannot keep runs at `uri`, which is no server or database; None if it can."""
    scheme, mark, rest = uri.partition("://")
    if (mark and scheme != "file") or uri.startswith(("databricks", "sqlite:")):
        return None
    file = rest if mark else uri
    meant = f"sqlite:///{file}" if file.endswith((".db", ".sqlite")) else "sqlite:///mlflow.db"
    return (
        "must be the address of an MLflow server (https://…) or a database (sqlite:///…), since MLflow no longer keeps "
        f"runs in folders, but got {uri!r}; write {meant}"
    )


def connect(uri: str) -> MlflowClient:
    """Return a client for the server or database at `uri`; nothing is sent yet.

    Raises:
        InputError: if the password in `uri` was masked, and this process does not know it.

    """
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import logging

    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    found = address(uri)
    database.create_if_missing(found)
    return MlflowClient(tracking_uri=found, registry_uri=found)


def artifact_root(uri: str, study: str) -> str | None:
    """Return where a study's artifacts go: beside an SQLite database; None lets the server choose."""
    path = database.path_of(uri)
    return None if path is None else (path.resolve().parent / "mlartifacts" / study).as_uri()


def ensure_experiment(client: MlflowClient, uri: str, study: str) -> str:
    """Return the id of the study's experiment, making it if need be."""
    from mlflow.exceptions import MlflowException

    adopted = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if adopted:
        return adopted
    found = client.get_experiment_by_name(study)
    if found is None:
        try:
            return str(client.create_experiment(study, artifact_location=artifact_root(uri, study)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(study)  # another process was faster
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def is_active(client: MlflowClient, run_id: str) -> bool:
    """Return whether the server knows this run and nobody deleted it."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def find(client: MlflowClient, experiment: str, **tags: str) -> list[Any]:
    """Return the runs that carry all `tags` (``key``, ``trial``, ``parent``), the oldest first."""
    names = {"key": KEY, "trial": TRIAL, "parent": PARENT}
    terms = [f"tags.`{names[tag]}` = '{value}'" for tag, value in tags.items()]
    found: list[Any] = []
    token = None
    while True:
        page = client.search_runs(
            [experiment], " and ".join(terms), order_by=["attributes.start_time ASC"], page_token=token
        )
        found += page
        token = page.token
        if not token:
            return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))


def ensure_run(
    client: MlflowClient, experiment: str, match: dict[str, str], name: str, tags: dict[str, str], start: int
) -> tuple[str, bool]:
    """Return the id of the run that carries the tags in `match`, and whether it was there before."""
    found = find(client, experiment, **match)
    if found:
        return str(found[0].info.run_id), True
    names = {"key": KEY, "trial": TRIAL, "parent": PARENT}
    marks = {names[tag]: value for tag, value in match.items()}
    run = client.create_run(experiment, start_time=start, run_name=name, tags={**tags, **marks})
    return str(run.info.run_id), False


def delete_duplicates(
    client: MlflowClient, experiment: str, parent: str, runs: dict[str, str], trial: str | None = None
) -> int:
    """Delete runs of `trial`, else of any trial, that we have another run for; return how many.

    A request that timed out here may still be carried out by the server later: then a run appears that nobody
    asked for twice.
    """
    match = {"parent": parent} if trial is None else {"parent": parent, "trial": trial}
    doubles = [
        run.info.run_id
        for run in find(client, experiment, **match)
        if runs.get(run.data.tags.get(TRIAL, ""), run.info.run_id) != run.info.run_id
    ]
    for run_id in doubles:
        client.delete_run(run_id)
    return len(doubles)


def log(
    client: MlflowClient,
    run_id: str,
    metrics: list[tuple[str, float, int, int]] | None = None,
    params: dict[str, Any] | None = None,
    tags: dict[str, Any] | None = None,
) -> None:
    """Send metrics (name, value, time in ms, step), params and tags of one run.

    A param is for ever in MLflow; one that has changed since goes to the tag ``param.<name>``.
    """
    from mlflow.entities import Metric, Param, RunTag

    texts = {name: str(value)[:_MAX_VALUE] for name, value in (tags or {}).items()}
    if params:
        known = client.get_run(run_id).data.params
        wanted = {name: str(value)[:_MAX_VALUE] for name, value in params.items()}
        texts |= {f"param.{n}": v for n, v in wanted.items() if known.get(n, v) != v}
        fresh = [Param(n, v) for n, v in wanted.items() if n not in known]
        for start in range(0, len(fresh), 100):
            client.log_batch(run_id, params=fresh[start : start + 100])
    labels = [RunTag(name, value) for name, value in texts.items()]
    for start in range(0, len(labels), 100):
        client.log_batch(run_id, tags=labels[start : start + 100])
    points = [Metric(name, value, at, step) for name, value, at, step in metrics or []]
    for start in range(0, len(points), _MAX_BATCH):
        client.log_batch(run_id, metrics=points[start : start + _MAX_BATCH])


def trial_run(client: MlflowClient, study: str, trial: str, key: str | None = None) -> Any | None:
    """Return the child run of a trial, the newest if several studies share the name; None if there is none.

    Args:
        client: of `connect`.
        study: name of the experiment, unless ``MLFLOW_EXPERIMENT_ID`` says otherwise.
        trial: its name.
        key: the study's ``search_digest`` (tag ``retune.key`` of the parent), to tell searches apart.

    """
    experiment = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if experiment is None:
        found = client.get_experiment_by_name(study)
        if found is None:
            return None
        experiment = found.experiment_id
    if key is None:
        runs = find(client, experiment, trial=trial)
        return runs[-1] if runs else None
    for parent in find(client, experiment, key=key):
        if runs := find(client, experiment, trial=trial, parent=parent.info.run_id):
            return runs[0]
    return None


def is_remote(uri: str) -> bool:
    """Return whether `uri` names a server rather than a database opened by this process."""
    return urlsplit(uri).scheme in ("http", "https")
