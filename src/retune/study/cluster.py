"""Where and how the pods of a study run; read by the engine `katib` and by `retune submit`, ignored on a laptop."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from retune.study.section import Section

_QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"
_DNS_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")


class Images(Section):
    """The images that `make images` builds, as the cluster's nodes pull them."""

    train: str | None = Field(None, description="mixing, trials, selection, registry, report")
    eval: str | None = Field(None, description="benchmarks, with the code sandbox")


class Toleration(Section):
    """A taint that the pods tolerate, as in a pod's spec."""

    key: str | None = None
    operator: Literal["Equal", "Exists"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class Volume(Section):
    """An existing PersistentVolumeClaim, mounted into every pod that trains or evaluates."""

    claim: str
    mount: str = Field(pattern=r"^/")
    read_only: bool = False


class Katib(Section):
    """How Katib runs the trials."""

    trial: Literal["Job", "TrainJob"] = Field("Job", description="the kind of object that is one trial")
    runtime: str = Field("retune", description="TrainingRuntime of TrainJob trials; it has one job, `node`")
    early_stopping: Literal["medianstop"] | None = Field(
        None, description="end trials that are worse than the mean of the finished ones at the same step"
    )
    early_stopping_settings: dict[str, int] = Field(default_factory=dict)
    resume: Literal["Never", "LongRunning", "FromVolume"] = "Never"
    keep: bool = Field(True, description="keep the Experiment and its trials once the search has ended")


class Cluster(Section):
    """Where and how the pods of a study run."""

    namespace: str | None = Field(
        None, description="default: the pod's own, else that of the kubeconfig's context"
    )
    images: Images = Field(default_factory=Images)
    gpus: int = Field(1, ge=0, description="of each pod that trains or evaluates")
    gpu_resource: str = "nvidia.com/gpu"
    cpu: str = Field("4", pattern=_QUANTITY)
    memory: str = Field("32Gi", pattern=_QUANTITY)
    shared_memory: str = Field(
        "8Gi", pattern=_QUANTITY, description="size of /dev/shm, which several GPUs need"
    )
    service_account: str = "retune"
    secrets: list[str] = Field(
        default_factory=list, description="Secrets whose keys become env: S3 and MLflow credentials"
    )
    pull_secrets: list[str] = Field(default_factory=list)
    volumes: list[Volume] = Field(default_factory=list)
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: list[Toleration] = Field(default_factory=list)
    queue: str | None = Field(None, description="Kueue's LocalQueue")
    katib: Katib = Field(default_factory=Katib)

    @model_validator(mode="after")
    def _names(self) -> Self:
        named = {"namespace": self.namespace, "service_account": self.service_account, "queue": self.queue}
        wrong = {key: name for key, name in named.items() if name is not None and not _DNS_LABEL.match(name)}
        return self._checked(
            [
                f"`{key}` must be lower-case letters, digits and inner dashes, at most 63 of them, but got {name!r}"
                for key, name in wrong.items()
            ]
        )
