"""Running a study on Kubeflow Pipelines: upload the package, start a run or a schedule, wait for the run to end."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retune import __version__
from retune.errors import InputError, Interrupted, RetuneError
from retune.launch.cron import six_fields
from retune.launch.package import package
from retune.records import digest
from retune.steps.entry import packed
from retune.study import Study

ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
PATIENCE_SECONDS = 600.0
"""For how long `wait` tolerates an unreachable API."""
MAX_ARGUMENT_BYTES = 10_000
"""The limit of Kubeflow Pipelines on the arguments of a run as JSON."""
_HOSTS = ("KF_PIPELINES_ENDPOINT", "KUBERNETES_SERVICE_HOST")


@dataclass(frozen=True)
class Submitted:
    """A run or a schedule: its id, the page to open, and the uploaded pipeline's version."""

    id: str
    url: str
    version: str

    def as_dict(self) -> dict[str, str]:
        """Return plain data for JSON."""
        return asdict(self)


class Kubeflow:
    """The KFP API of one cluster.

    Args:
        host: its address, e.g. ``http://localhost:8080``; None: the kubeconfig's cluster, or this pod's own.
        namespace: the user's namespace in a multi-user Kubeflow.
        token_file: file with a bearer token, if the address requires one. It is read again for each request: a pod's token
            lasts hours, a run days, and the kubelet renews the file.
        ca: file with the certificate of a private certificate authority.

    """

    def __init__(
        self,
        host: str | None = None,
        namespace: str | None = None,
        token_file: Path | None = None,
        ca: str | None = None,
    ) -> None:
        import kfp

        if host is None and not any(map(os.environ.get, _HOSTS)) and not _has_kubeconfig():
            raise InputError(
                "no cluster is configured: pass --host with the address of Kubeflow Pipelines, or set "
                "KF_PIPELINES_ENDPOINT or KUBECONFIG"
            )
        scheme, separator, _ = (host or "").partition("://")
        if separator and scheme not in ("http", "https"):
            raise InputError(f"--host is an address of http:// or https://, but got {host!r}")
        self._namespace = namespace
        self._host = host or "the cluster of the kubeconfig"
        with self._reported("reach"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._client = kfp.Client(
                host=host,
                namespace=namespace or "kubeflow",
                credentials=_token(token_file) if token_file else None,
                ssl_ca_cert=ca,
            )

    def submit(self, name: str, study: Study, arguments: dict[str, Any]) -> Submitted:
        """Start a run of the pipeline `name`.

        Raises:
            InputError: if the study cannot run on a cluster.
            RetuneError: if the API refuses or cannot be reached.

        """
        _require_short(arguments)
        pipeline, version, label = self._upload(name, study)
        with self._reported("start a run on"):
            run = self._client.run_pipeline(
                experiment_id=self._experiment(study),
                job_name=f"{study.name} {time.strftime('%Y-%m-%d %H:%M')}",
                params=arguments,
                pipeline_id=pipeline,
                version_id=version,
                service_account=study.cluster.service_account,
            )
        return Submitted(run.run_id, self._page("runs", run.run_id), label)

    def schedule(self, name: str, study: Study, arguments: dict[str, Any], cron: str) -> Submitted:
        """Run the pipeline `name` at the times of `cron`; replaces the study's earlier schedule.

        A run is skipped while the previous one is still running, and missed times are not caught up.

        Args:
            name: of the pipeline.
            study: its name is that of the schedule.
            arguments: of each run, see `arguments_of`.
            cron: five fields, or six with seconds first, see `retune.launch.cron`.

        Raises:
            InputError: if the study cannot run on a cluster, or `cron` is invalid.
            RetuneError: if the API refuses or cannot be reached.

        """
        times = six_fields(cron)
        _require_short(arguments)
        pipeline, version, label = self._upload(name, study)
        experiment = self._experiment(study)
        earlier = self._schedules(study, experiment)
        with self._reported("make a schedule on"):
            created = self._client.create_recurring_run(
                experiment_id=experiment,
                job_name=study.name,
                description=f"retune {__version__}",
                cron_expression=times,
                max_concurrency=1,
                no_catchup=True,
                params=arguments,
                pipeline_id=pipeline,
                version_id=version,
                service_account=study.cluster.service_account,
            )
            for old in earlier:  # only now, so that the old schedule is kept if the new one cannot be created
                self._client.delete_recurring_run(old)
        return Submitted(
            created.recurring_run_id, self._page("recurringrun", created.recurring_run_id), label
        )

    def unschedule(self, study: Study) -> int:
        """Delete this study's schedule; return how many there were."""
        schedules = self._schedules(study, self._experiment(study))
        with self._reported("delete a schedule on"):
            for old in schedules:
                self._client.delete_recurring_run(old)
        return len(schedules)

    def complete(self, run: Submitted, stops: Callable[[], int], poll_seconds: float = 10.0) -> None:
        """Wait until a run has succeeded; terminate it when a stop is requested.

        Raises:
            Interrupted: if it was stopped.
            RetuneError: if it ended otherwise, or the API cannot be reached for ten minutes.

        """
        state = self.wait(run.id, lambda state: None, poll_seconds, lambda: stops() > 0)
        if state not in ENDED:
            with self._reported("terminate a run on"):
                self._client.terminate_run(run.id)
            raise Interrupted(f"the run was terminated; its finished trials are kept: {run.url}")
        if state != "SUCCEEDED":
            raise RetuneError(f"the run ended as {state}: {run.url}")

    def wait(
        self,
        run: str,
        watch: Callable[[str], None],
        poll_seconds: float = 10.0,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> str:
        """Return the state in which a run ended: SUCCEEDED, FAILED, CANCELED or SKIPPED.

        KFP's own `wait_for_run_completion` never ends on a cancelled run, and gives up at the first lost reply.

        Args:
            run: the run's id.
            watch: called with every new state.
            poll_seconds: time between two polls.
            should_stop: ends the waiting; the last state seen is returned.

        Raises:
            RetuneError: if the API cannot be reached for ten minutes; the run continues.

        """
        seen, answered = "", time.monotonic()
        while True:
            try:
                with self._reported("ask"):
                    state = (self._client.get_run(run).state or "PENDING").upper()
                answered = time.monotonic()
            except RetuneError:
                if time.monotonic() - answered > PATIENCE_SECONDS:
                    raise
                state = seen
            if state != seen:
                watch(state)
                seen = state
            if state in ENDED or should_stop():
                return state
            time.sleep(poll_seconds)

    def _upload(self, name: str, study: Study) -> tuple[str, str, str]:
        """Return the ids of the pipeline and of its version with this package, uploaded if it is new, and the version's name."""
        content = package(name, study)
        title, label = f"retune-{name}", f"{__version__}-{digest(content)[:12]}"
        with self._reported("upload the pipeline to"), tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{title}.yaml"
            path.write_text(content)
            pipeline = self._client.get_pipeline_id(title)
            if pipeline is None:
                pipeline = self._client.upload_pipeline(
                    str(path), title, namespace=self._namespace
                ).pipeline_id
            for version in self._pages(self._client.list_pipeline_versions, "pipeline_versions", pipeline):
                if version.display_name == label:
                    return pipeline, version.pipeline_version_id, label
            uploaded = self._client.upload_pipeline_version(str(path), label, pipeline_id=pipeline)
            return pipeline, uploaded.pipeline_version_id, label

    def _experiment(self, study: Study) -> str:
        with self._reported("make an experiment on"):
            created = self._client.create_experiment(study.name, namespace=self._namespace)
            return str(created.experiment_id)

    def _schedules(self, study: Study, experiment: str) -> list[str]:
        with self._reported("list the schedules of"):
            schedules = self._pages(
                self._client.list_recurring_runs, "recurring_runs", experiment_id=experiment
            )
            return [run.recurring_run_id for run in schedules if run.display_name == study.name]

    def _pages(self, ask: Callable[..., Any], key: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
        token = ""
        while True:
            page = ask(*args, page_token=token, page_size=100, **kwargs)
            yield from getattr(page, key) or []
            token = page.next_page_token or ""
            if not token:
                return

    def _page(self, kind: str, name: str) -> str:
        return f"{self._client._get_url_prefix()}/#/{kind}/details/{name}"

    @contextmanager
    def _reported(self, verb: str) -> Iterator[None]:
        """Convert the client's errors into one sentence, and discard what it prints."""
        import kfp_server_api
        import urllib3

        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield
        except kfp_server_api.ApiException as error:
            raise RetuneError(
                f"could not {verb} Kubeflow Pipelines at {self._host}: {error.status} {error.reason}: {_text(error.body)}"
            ) from error
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise RetuneError(
                f"could not {verb} Kubeflow Pipelines at {self._host}: {cause(error)}"
            ) from error


def arguments_of(study: Study) -> dict[str, Any]:
    """Return the arguments of a run: the study as JSON, packed if it would be too long for Kubeflow Pipelines."""
    arguments = {"study": study.model_dump_json()}
    return arguments if _length(arguments) <= MAX_ARGUMENT_BYTES else {"study": packed(study)}


def _length(arguments: dict[str, Any]) -> int:
    """Return the bytes of the arguments in the server's JSON: Go's encoder escapes <, > and & with six characters each."""
    text = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
    return len(re.sub("[<>&]", r"\\u0000", text).encode())


def _require_short(arguments: dict[str, Any]) -> None:
    length = _length(arguments)
    if length > MAX_ARGUMENT_BYTES:
        raise InputError(
            f"Kubeflow Pipelines takes arguments of at most {MAX_ARGUMENT_BYTES:,} bytes, but the study has {length:,} even "
            "compressed: shorten its lists (search.parameters, search.warm_start, data.sources, cluster), or start it by "
            "`retune run` in a pod"
        )


def _token(file: Path) -> Any:
    """Return KFP's credentials that read a token from a file; it counts until the file has another one.

    Raises:
        InputError: if the file has none.
    """
    from kfp.client.token_credentials_base import TokenCredentialsBase

    tokens = [file.read_text().strip()]
    if not tokens[0]:
        raise InputError(f"--token-file must hold a token, but {file} is empty")

    class Token(TokenCredentialsBase):  # type: ignore[misc]
        def refresh_api_key_hook(self, config: Any) -> None:
            with contextlib.suppress(OSError):
                tokens[0] = file.read_text().strip() or tokens[0]  # a pipe can be read once
            config.api_key["authorization"] = tokens[0]

    return Token()


def _has_kubeconfig() -> bool:
    from kubernetes import client, config

    try:
        config.load_kube_config(
            config_file=os.environ.get("KUBECONFIG"), client_configuration=client.Configuration()
        )
    except (config.ConfigException, OSError):
        return False
    return True


def cause(error: BaseException) -> str:
    """Return why a connection failed: the innermost reason, without urllib3's names of classes and hosts around it."""
    reason = getattr(error, "reason", None)
    if isinstance(reason, BaseException):
        return cause(reason)
    text = " ".join(str(error).split())
    return re.sub(r"^<?HTTPS?Connection(Pool)?\(.*?\)>?: ", "", text)


def _text(body: object) -> str:
    return " ".join(str(body or "no more was said").split())[:500]
