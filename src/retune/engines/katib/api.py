"""The engine's calls to the Kubernetes API; transient failures are retried."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from retune.errors import InputError, Interrupted, RetuneError

GROUP, VERSION = "kubeflow.org", "v1beta1"
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
# 401: the service account's token on disk was just renewed
_TRANSIENT = {401, 408, 409, 429, 500, 502, 503, 504}
_TIMEOUT = (10, 60)  # seconds to connect, to answer

Object = dict[str, Any]


def connect() -> tuple[client.ApiClient, str]:
    """Return a client with the pod's service account or the kubeconfig, and the namespace of these credentials.

    Raises:
        InputError: if neither exists.

    """
    configuration = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
        return client.ApiClient(configuration), _SERVICE_ACCOUNT.read_text().strip()
    except config.ConfigException:
        pass
    file = os.environ.get("KUBECONFIG")  # the library reads the variable only once, at import
    try:
        config.load_kube_config(config_file=file, client_configuration=configuration)
        _, active = config.list_kube_config_contexts(config_file=file)
    except (config.ConfigException, OSError) as error:
        raise InputError(
            f"a Kubernetes cluster is needed: run in a pod, or set KUBECONFIG ({error})"
        ) from error
    return client.ApiClient(configuration), str(active["context"].get("namespace") or "default")


class Api:
    """The objects of one namespace.

    Args:
        namespace: default: that of the credentials.
        patience: seconds for which a failing call is retried.
        should_stop: called between two attempts.

    """

    def __init__(
        self,
        namespace: str | None = None,
        patience: float = 900.0,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        connection, own_namespace = connect()
        self.namespace = namespace or own_namespace
        self._patience, self._should_stop = patience, should_stop
        self._custom, self._batch = client.CustomObjectsApi(connection), client.BatchV1Api(connection)
        self._core = client.CoreV1Api(connection)

    def objects(self, plural: str, selector: str) -> list[Object]:
        """Return Katib's objects (``experiments``, ``trials``) with these labels, the oldest first."""
        reply = self._call(
            self._custom.list_namespaced_custom_object, GROUP, VERSION, self.namespace, plural,
            label_selector=selector,
        )  # fmt: skip
        return sorted(reply["items"], key=_by_age)

    def get(self, plural: str, name: str) -> Object | None:
        """Return one of Katib's objects, None if there is none."""
        reply: Object | None = self._call(
            self._custom.get_namespaced_custom_object,
            GROUP,
            VERSION,
            self.namespace,
            plural,
            name,
            absent=None,
        )
        return reply

    def create_experiment(self, content: Object) -> Object:
        """Create an Experiment, or return the existing one with its name and labels.

        It exists if an earlier request succeeded but its reply was lost, or if another engine was faster.
        """
        try:
            created: Object = self._call(
                self._custom.create_namespaced_custom_object, GROUP, VERSION, self.namespace, "experiments", content,
                transient=_TRANSIENT - {409},
            )  # fmt: skip
            return created
        except Conflict:
            existing = self.get("experiments", content["metadata"]["name"])
            if (
                existing is None
                or not content["metadata"]["labels"].items() <= existing["metadata"]["labels"].items()
            ):
                raise
            return existing

    def patch_experiment(self, name: str, change: Object) -> Object:
        """Merge a change into an Experiment."""
        reply: Object = self._call(
            self._custom.patch_namespaced_custom_object, GROUP, VERSION, self.namespace, "experiments", name, change
        )  # fmt: skip
        return reply

    def delete_experiment(self, name: str) -> None:
        """Delete an Experiment with its trials and their pods, and wait until it is gone."""
        until = time.monotonic() + self._patience
        while self.get("experiments", name) is not None:
            self._call(
                self._custom.delete_namespaced_custom_object, GROUP, VERSION, self.namespace, "experiments", name,
                propagation_policy="Foreground", absent=None,
            )  # fmt: skip
            self._pause(
                RetuneError(f"experiment {name} in {self.namespace} is not deleted; look at its finalizers"),
                until,
                1.0,
            )

    def jobs(self, selector: str) -> dict[str, Object]:
        """Return Jobs by name."""
        reply = self._call(self._batch.list_namespaced_job, self.namespace, label_selector=selector)
        return {job["metadata"]["name"]: job for job in reply["items"]}

    def create_job(self, content: Object) -> None:
        """Create a Job unless one of that name exists."""
        try:
            self._call(
                self._batch.create_namespaced_job, self.namespace, content, transient=_TRANSIENT - {409}
            )
        except Conflict:
            return

    def delete_job(self, name: str) -> None:
        """Delete a Job with its pod, if it exists."""
        self._call(
            self._batch.delete_namespaced_job,
            name,
            self.namespace,
            propagation_policy="Background",
            absent=None,
        )

    def everywhere(self, plural: str) -> list[Object]:
        """Return Katib's objects of all namespaces; [] if Katib's CustomResourceDefinitions do not exist.

        Raises:
            InputError: if the credentials do not allow it.

        """
        reply = self._call(
            self._custom.list_cluster_custom_object, GROUP, VERSION, plural, absent={"items": []}
        )
        return list(reply["items"])

    def config_map(self, name: str) -> Object | None:
        """Return a ConfigMap, None if there is none."""
        content: Object | None = self._call(
            self._core.read_namespaced_config_map, name, self.namespace, absent=None
        )
        return content

    def replace_config_map(self, content: Object) -> None:
        """Write a ConfigMap back.

        Raises:
            Conflict: if it was changed since it was read.

        """
        name = content["metadata"]["name"]
        self._call(
            self._core.replace_namespaced_config_map,
            name,
            self.namespace,
            content,
            transient=_TRANSIENT - {409},
        )

    def _call(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        until = time.monotonic() + self._patience
        while True:
            try:
                return self._once(method, *arguments, **options)
            except _TransientError as error:
                self._pause(error, until)

    def _once(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        has_default, default = "absent" in options, options.pop("absent", None)
        transient = options.pop("transient", _TRANSIENT)
        try:
            # As JSON: building the client's models of a long list takes more CPU time than all else here
            reply = method(*arguments, _request_timeout=_TIMEOUT, _preload_content=False, **options)
            return json.loads(reply.data)
        except ApiException as error:
            if error.status == 404 and has_default:
                return default
            if error.status in transient:
                raise _TransientError(_server_message(error)) from error
            if error.status == 409:
                raise Conflict(_server_message(error)) from error
            kind = InputError if error.status in (400, 403, 404, 422) else RetuneError
            raise kind(
                f"Kubernetes refused in namespace {self.namespace}: {_server_message(error)}"
            ) from error
        except (HTTPError, OSError) as error:
            raise _TransientError(f"the Kubernetes API cannot be reached: {error}") from error

    def _pause(self, error: Exception, until: float, seconds: float = 2.0) -> None:
        if self._should_stop():
            raise Interrupted(
                f"stopped on request while the Kubernetes API was unreachable: {error}"
            ) from error
        if time.monotonic() > until:
            raise RetuneError(f"{error} (tried for {self._patience:.0f} s)") from error
        time.sleep(min(seconds, self._patience / 10))


class Conflict(RetuneError):
    """An object of that name already exists, or was changed meanwhile."""


class _TransientError(Exception):
    """An error that a retry may resolve."""


def ended(thing: Object) -> str | None:
    """Return the condition in which an Experiment or Trial has ended, None while it runs."""
    over = ("Succeeded", "Failed", "Killed", "EarlyStopped", "MetricsUnavailable")
    for condition in reversed(conditions(thing)):
        if condition["type"] in over and condition["status"] == "True":
            return str(condition["type"])
    return None


def conditions(thing: Object) -> list[Object]:
    """Return the conditions of an object, the oldest first."""
    return (thing.get("status") or {}).get("conditions") or []


def end_message(thing: Object) -> str:
    """Return the message of the newest condition that is true."""
    messages = [c.get("message") or c.get("reason") or "" for c in conditions(thing) if c["status"] == "True"]
    return messages[-1] if messages else ""


def _by_age(thing: Object) -> tuple[str, str]:
    return thing["metadata"]["creationTimestamp"], thing["metadata"]["name"]


def _server_message(error: ApiException) -> str:
    """Return the message in an error's body, which is a Status object."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return f"{error.status} {error.reason}"
