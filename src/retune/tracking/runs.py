"""The MLflow side of tracking: experiment, parent run and child runs, each looked up before it is created.

All functions are idempotent. MLflow assigns run ids itself, so a run is identified by its tags: ``retune.key`` for the study's
parent run, ``retune.trial`` for a trial below it.

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
_MAX_BATCH = 500  # MLflow accepts at most 1000 metrics, and 100 params or tags, in one call
_MAX_VALUE = 5000  # characters of a tag or param


def tracking_uri(uri: str) -> str:
    """Return the tracking URI to use: ``MLFLOW_TRACKING_URI``, which a pipeline sets, takes precedence over `uri`.

    A password in it is masked (`retune.uris`); `connect` uses the real one.
    """
    return uris.hide(os.environ.get("MLFLOW_TRACKING_URI") or uri)


def address(uri: str) -> str:
    """Return the address to connect to; user name and password of a server are moved into MLflow's own variables.

    In the address MLflow would print them in its errors.

    Raises:
        InputError: if the password in `uri` was masked, and this process does not know it.

    """
    revealed = uris.reveal(uri)
    if revealed is None:
        raise InputError(
            f"the password in {uri} is masked and not known here; set MLFLOW_TRACKING_URI to the whole address",
            "tracking.uri",
        )
    parts = urlsplit(revealed)
    if parts.scheme in ("http", "https") and "@" in parts.netloc:
        credentials, _, host = parts.netloc.rpartition("@")
        name, _, password = credentials.partition(":")
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(name)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(password)
        return urlunsplit(parts._replace(netloc=host))
    return revealed


def uri_problem(uri: str) -> str | None:
    """Return why MLflow cannot keep runs at `uri`, if it is neither a server nor a database; else None."""
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
    result = address(uri)
    database.create_if_missing(result)
    return MlflowClient(tracking_uri=result, registry_uri=result)


def artifact_root(uri: str, study: str) -> str | None:
    """Return where a study's artifacts go: next to an SQLite database; None lets the server choose."""
    path = database.path_of(uri)
    return None if path is None else (path.resolve().parent / "mlartifacts" / study).as_uri()


def ensure_experiment(client: MlflowClient, uri: str, study: str) -> str:
    """Return the id of the study's experiment, creating or restoring it if necessary."""
    from mlflow.exceptions import MlflowException

    adopted = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if adopted:
        return adopted
    result = client.get_experiment_by_name(study)
    if result is None:
        try:
            return str(client.create_experiment(study, artifact_location=artifact_root(uri, study)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            result = client.get_experiment_by_name(study)  # another process was faster
    if result.lifecycle_stage == "deleted":
        client.restore_experiment(result.experiment_id)
    return str(result.experiment_id)


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
    """Return the runs that have all `tags` (``key``, ``trial``, ``parent``), the oldest first."""
    names = {"key": KEY, "trial": TRIAL, "parent": PARENT}
    terms = [f"tags.`{names[tag]}` = '{value}'" for tag, value in tags.items()]
    result: list[Any] = []
    token = None
    while True:
        page = client.search_runs(
            [experiment], " and ".join(terms), order_by=["attributes.start_time ASC"], page_token=token
        )
        result += page
        token = page.token
        if not token:
            return sorted(result, key=lambda run: (run.info.start_time, run.info.run_id))


def ensure_run(
    client: MlflowClient, experiment: str, match: dict[str, str], name: str, tags: dict[str, str], start: int
) -> tuple[str, bool]:
    """Return the id of the run with the tags in `match`, creating it if necessary, and whether it existed."""
    result = find(client, experiment, **match)
    if result:
        return str(result[0].info.run_id), True
    names = {"key": KEY, "trial": TRIAL, "parent": PARENT}
    match_tags = {names[tag]: value for tag, value in match.items()}
    run = client.create_run(experiment, start_time=start, run_name=name, tags={**tags, **match_tags})
    return str(run.info.run_id), False


def delete_duplicates(
    client: MlflowClient, experiment: str, parent: str, runs: dict[str, str], trial: str | None = None
) -> int:
    """Delete runs of `trial`, or of any trial, that are not the known one in `runs`; return how many.

    A server may still carry out a request that timed out here. After the retry there are then two runs.
    """
    match = {"parent": parent} if trial is None else {"parent": parent, "trial": trial}
    duplicates = [
        run.info.run_id
        for run in find(client, experiment, **match)
        if runs.get(run.data.tags.get(TRIAL, ""), run.info.run_id) != run.info.run_id
    ]
    for run_id in duplicates:
        client.delete_run(run_id)
    return len(duplicates)


def log(
    client: MlflowClient,
    run_id: str,
    metrics: list[tuple[str, float, int, int]] | None = None,
    params: dict[str, Any] | None = None,
    tags: dict[str, Any] | None = None,
) -> None:
    """Send metrics (name, value, time in ms, step), params and tags of one run.

    MLflow does not allow a param to change, so a changed one becomes the tag ``param.<name>``.
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
        study: name of the experiment, unless ``MLFLOW_EXPERIMENT_ID`` is set.
        trial: its name.
        key: the study's ``search_digest`` (tag ``retune.key`` of the parent), to distinguish searches.

    """
    experiment = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if experiment is None:
        result = client.get_experiment_by_name(study)
        if result is None:
            return None
        experiment = result.experiment_id
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
