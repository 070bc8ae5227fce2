"""Rollout of the champion: sets an environment variable of a Deployment or InferenceService to the champion's version.

Kubernetes does the rest: a changed pod template starts a rolling update, which keeps old pods until new ones are ready.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from retune.errors import InputError, RetuneError
from retune.registry.aliases import aliases

GROUPS = {
    "deployment": ("apps", "v1", "deployments"),
    "inferenceservice": ("serving.kserve.io", "v1beta1", "inferenceservices"),
}
"""The supported kinds, with their API group, version and plural."""
PLACEHOLDER = "{version}"
_CONTAINER_LISTS = ("containers", "initContainers")


@dataclass(frozen=True)
class Rollout:
    """The result of a rollout: the champion's version, whether anything changed, and the value before."""

    target: str
    version: str
    value: str
    changed: bool
    before: str | None = None


def rollout(
    uri: str, model: str, target: str, variable: str, template: str, namespace: str | None = None
) -> Rollout:
    """Set an environment variable of the workload that serves a model to the champion's version.

    Args:
        uri: MLflow tracking URI.
        model: name of the registered model.
        target: ``deployment/<name>`` or ``inferenceservice/<name>``.
        variable: name of the variable; a container of the target must have it.
        template: its value, with ``{version}`` for the version.
        namespace: of the target; default: that of the credentials.

    Raises:
        InputError: if the target is no such object, or has no such variable.
        RetuneError: if there is no champion, or the API refuses; nothing is changed then.
    """
    kind, _, name = target.partition("/")
    problems = []
    if kind not in GROUPS or not name:
        problems.append(f"the target is one of {[f'{known}/NAME' for known in GROUPS]}, but got {target!r}")
    if PLACEHOLDER not in template:
        problems.append(
            f"the value of {variable} holds {PLACEHOLDER}, the champion's version, but got {template!r}"
        )
    if problems:
        raise InputError(problems, "retune rollout")
    version = aliases(uri, model).champion
    if version is None:
        raise RetuneError(f"{model} has no champion, so nothing is rolled out; promote a version first")
    value = template.replace(PLACEHOLDER, version)
    group, api_version, plural = GROUPS[kind]
    read, replace = _calls(group, api_version, plural, name, namespace)
    content = read()
    entries = list(_entries(content.get("spec", {}), variable))
    if not entries:
        raise InputError(
            f"a container of {target} must have the environment variable {variable}, but none has",
            "retune rollout",
        )
    before = entries[0].get("value")
    if all(entry.get("value") == value for entry in entries):
        return Rollout(target, version, value, False, before)
    for entry in entries:
        entry["value"] = value
    # It holds the resourceVersion that was read, so a change made meanwhile is refused, not overwritten
    replace(content)
    return Rollout(target, version, value, True, before)


def _entries(node: Any, variable: str) -> Iterator[dict[str, Any]]:
    """Yield the entries of `variable` in the `env` of all containers below `node`, wherever the kind has its pod template."""
    if isinstance(node, dict):
        for key, inner in node.items():
            if key in _CONTAINER_LISTS and isinstance(inner, list):
                for container in inner:
                    yield from (
                        entry for entry in container.get("env") or [] if entry.get("name") == variable
                    )
            else:
                yield from _entries(inner, variable)


def _calls(group: str, version: str, plural: str, name: str, namespace: str | None) -> tuple[Any, Any]:
    """Return functions that read and replace one object."""
    from kubernetes import client
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    from retune.engines.katib.api import connect

    connection, own = connect()
    # Its URLs are those of every named API group, so of Deployments too
    api = client.CustomObjectsApi(connection)
    where = (group, version, namespace or own, plural, name)
    what = f"{plural}.{group} {name} in namespace {where[2]}"

    def call(method: Any, *more: Any) -> Any:
        try:
            return method(*where, *more, _request_timeout=(10, 60))
        except ApiException as error:
            if error.status == 404:
                raise InputError(f"there is no {what}", "retune rollout") from error
            raise RetuneError(
                f"{what}: the API answered {error.status} {error.reason}: {str(error.body)[:300]}"
            ) from error
        except (HTTPError, OSError) as error:
            raise RetuneError(f"{what}: the Kubernetes API cannot be reached: {error}") from error

    return lambda: call(api.get_namespaced_custom_object), lambda body: call(
        api.replace_namespaced_custom_object, body
    )
