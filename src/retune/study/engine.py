"""The section `engine` of a study: which engine runs the trials."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from retune.study.names import EngineName
from retune.study.section import Section


class Engine(Section):
    """The engine that runs the trials.

    ``local``: worker processes on one machine that keep the base model loaded. ``katib``: a Katib Experiment on the
    Kubernetes cluster of the section `cluster`. Other names are those of installed packages (docs/extend.md).
    """

    kind: EngineName = "local"
    threads: int | None = Field(
        None,
        gt=0,
        description="CPU threads per local trial; default: OMP_NUM_THREADS, or else the cores shared out",
    )
    pack: Annotated[int, Field(gt=0)] | Literal["auto"] = Field(
        "auto",
        description="trials that one local process trains side by side at most; auto: as `search.parallel` has more than "
        "there are GPUs, or cores",
    )
    settings: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="for an engine of another package"
    )
