"""Checks of what a study uses over the network, artifacts and tracking, before compute is spent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from retune import store
from retune.errors import InputError, RetuneError
from retune.store.local import unwritable
from retune.study import File, Study
from retune.tracking.runs import address

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
SECONDS = 5.0  # a tracking server that is slower than this counts as unreachable


def is_remote(uri: str) -> bool:
    """Return whether a URI is reached over the network."""
    return "://" in uri and not uri.startswith(("file://", "sqlite:"))


def network_uris(study: Study) -> list[str]:
    """Return the URIs of a study that need the network; `--offline` does not check them."""
    uris = [source.uri for source in study.data.sources]
    if isinstance(study.data.validation, File):
        uris.append(study.data.validation.uri)
    uris += [
        study.artifacts.uri,
        study.tracking.uri,
        *study.search.warm_start,
        *study.benchmark.data.values(),
    ]
    base = study.model.base
    is_local = is_remote(base) or Path(base).exists() or not _HUB_NAME.fullmatch(base)
    hub_names = [] if is_local else [base]
    return [*dict.fromkeys([*hub_names, *(uri for uri in (base, *uris) if is_remote(uri))])]


def artifacts(study: Study) -> Iterator[str]:
    """Yield the reason why results cannot be written to `artifacts.uri`, if there is one."""
    uri = study.artifacts.uri
    if is_remote(uri):
        try:
            store.exists(study.root)
        except FileNotFoundError as error:
            yield f"artifacts.uri: {uri} must exist, but does not ({error.strerror})"
        except RetuneError as error:
            yield f"artifacts.uri: {error}"
        return
    folder = Path(uri.removeprefix("file://"))
    yield from _writable(folder, "artifacts.uri")


def tracking(study: Study) -> Iterator[str]:
    """Yield the reason why MLflow cannot be reached, if there is one.

    A run would continue nevertheless, and send its data once the server is back.
    """
    uri = study.tracking.uri
    if uri.startswith("sqlite:///"):
        yield from _writable(Path(uri.removeprefix("sqlite:///").partition("?")[0]).parent, "tracking.uri")
    if not uri.startswith(("http://", "https://")):
        return
    import urllib.error  # imports TLS, which most checks do not need
    import urllib.request

    try:
        request = urllib.request.Request(f"{address(uri).rstrip('/')}/health")
        with urllib.request.urlopen(request, timeout=SECONDS):
            return
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            yield f"tracking.uri: the server {uri} answers with an error ({error.code} {error.reason})"
        elif error.code == 404:
            yield f"tracking.uri: {uri} answers, but it is not an MLflow server: /health is missing"
    except InputError as error:
        yield f"tracking.uri: {error.problems[0]}"
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        yield f"tracking.uri: the MLflow server {uri} does not answer ({reason}); start it, or name another (sqlite:///mlflow.db)"


def _writable(folder: Path, key: str) -> Iterator[str]:
    if problem := unwritable(folder):
        yield f"{key}: {problem}"
