"""Where and how the pods of a study run; read by the engine `katib` and by `retune submit`, ignored on a laptop."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from retune import uris
from retune.study.kubernetes import (
    Cpu,
    DataKey,
    EnvName,
    Image,
    Label,
    LabelKey,
    LabelValue,
    Memory,
    Mount,
    Name,
    Resource,
    Size,
    Text,
    number,
)
from retune.study.placement import Affinity, Spread, Toleration
from retune.study.section import Section

SECRET_ENV = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN", "HF_TOKEN",
)  # fmt: skip
"""Variables that belong in a Secret: a study is stored with its artifacts, where many can read it."""
RESERVED_ENV = ("HOME", "PYTHONUNBUFFERED", "PATH", "PYTHONPATH", "LD_PRELOAD", "LD_LIBRARY_PATH")


class Images(Section):
    """The images that `make images` builds, under the names by which the cluster's nodes pull them."""

    train: Image | None = Field(None, description="mixing, trials, selection, registry, report")
    eval: Image | None = Field(None, description="benchmarks, with the code sandbox")


class Volume(Section):
    """An existing PersistentVolumeClaim, mounted into every pod that trains or evaluates."""

    claim: Name
    mount: Mount
    read_only: bool | Literal["trials"] = Field(
        False,
        description="`trials`: in the trials' pods alone, since Kubeflow Pipelines mounts a claim writable in steps",
    )


class CaBundle(Section):
    """A ConfigMap with the certificates of all authorities that the pods trust, including the public ones."""

    config_map: Name
    key: DataKey = "ca.crt"


class Katib(Section):
    """How Katib runs the trials."""

    trial: Literal["Job", "TrainJob"] = Field("Job", description="the kind of object that is one trial")
    runtime: Name = Field("retune", description="TrainingRuntime of TrainJob trials; it has one job, `node`")
    early_stopping: Literal["medianstop"] | None = Field(
        None, description="end trials that are worse than the mean of the finished ones at the same step"
    )
    early_stopping_settings: dict[str, int] = Field(default_factory=dict)
    resume: Literal["Never", "LongRunning", "FromVolume"] = "Never"
    keep: bool = Field(True, description="keep the Experiment and its trials once the search has ended")


class Cluster(Section):
    """Where and how the pods of a study run."""

    namespace: Label | None = Field(
        None, description="default: the pod's own, else that of the kubeconfig's context"
    )
    images: Images = Field(default_factory=Images)
    gpus: int = Field(1, ge=0, le=1024, description="of each pod that trains or evaluates")
    gpu_resource: Resource = "nvidia.com/gpu"
    cpu: Cpu = Field("4", description="the CPU that a pod requests, and at most as many threads of torch")
    cpu_limit: Cpu | None = Field(
        None,
        description="only where the namespace's quota asks for one: a limit slows a pod down on an idle node",
    )
    memory: Memory = "32Gi"
    shared_memory: Size = Field("8Gi", description="size of /dev/shm, which several GPUs need")
    service_account: Name = Field("retune", description="of pipeline steps and trials")
    run_as_user: int | None = Field(
        10001,
        ge=1,
        lt=2**31,
        description="user id of the pods; null: the cluster or the image chooses it, as under OpenShift",
    )
    secrets: list[Name] = Field(
        default_factory=list, description="Secrets whose keys become env: S3 and MLflow credentials"
    )
    secret_keys: list[EnvName] = Field(
        default_factory=list,
        description="keys of these Secrets that pipeline steps get too, besides those of docs/pipelines.md; trials get all",
    )
    env: dict[EnvName, Text] = Field(
        default_factory=dict, description="environment of every pod: HF_ENDPOINT, HTTPS_PROXY, NO_PROXY …"
    )
    ca_bundle: CaBundle | None = Field(
        None, description="certificates of a private authority, for S3, MLflow, hub and proxies"
    )
    pull_secrets: list[Name] = Field(
        default_factory=list, description="Secrets with the registry's credentials"
    )
    volumes: list[Volume] = Field(default_factory=list)
    node_selector: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    tolerations: list[Toleration] = Field(default_factory=list)
    affinity: Affinity | None = Field(None, description="as in a pod's spec")
    topology_spread: list[Spread] = Field(
        default_factory=list, description="`topologySpreadConstraints` of a pod's spec"
    )
    priority_class: Name | None = None
    runtime_class: Name | None = Field(None, description="e.g. `nvidia`, where it is not the nodes' default")
    queue: Label | None = Field(None, description="Kueue's LocalQueue")
    katib: Katib = Field(default_factory=Katib)

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        mounts = [volume.mount for volume in self.volumes]
        problems = [
            f"`{key}` must differ, but duplicates are {sorted({item for item in items if items.count(item) > 1})}"
            for key, items in {
                "volumes.*.mount": mounts,
                "secrets": self.secrets,
                "pull_secrets": self.pull_secrets,
                "topology_spread.*.(topologyKey, whenUnsatisfiable)": [
                    f"{spread.topologyKey} {spread.whenUnsatisfiable}" for spread in self.topology_spread
                ],
            }.items()
            if len(set(items)) < len(items)
        ]
        if self.cpu_limit is not None and number(self.cpu_limit) < number(self.cpu):
            problems.append(f"`cpu_limit` must be at least `cpu`, {self.cpu}, but is {self.cpu_limit}")
        secret = [
            name
            for name, value in self.env.items()
            if name in SECRET_ENV
            or (uris.names_a_secret(name) and len(value) >= 6)
            or uris.mask(value) != value
        ]
        if secret:
            problems.append(
                f"`env` is stored with the study for all to read, so {secret} belong in a Secret of `secrets`"
            )
        reserved = [name for name in self.env if name in RESERVED_ENV or name.startswith("RETUNE_HP_")]
        if reserved:
            problems.append(f"`env` must not set what the pods set themselves, but got {reserved}")
        invalid = [name for name, value in self.env.items() if "${trial" in value or "\0" in value]
        if invalid:
            problems.append(
                f"`env` values may hold neither `${{trial…}}`, which Katib would replace, nor NUL, but {invalid} do"
            )
        return self._checked(problems)
