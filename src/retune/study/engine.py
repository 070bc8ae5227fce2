"""Who runs the trials."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from retune.study.section import Section


class Engine(Section):
    """Who runs the trials.

    ``local``: worker processes on one machine that keep the base model loaded. ``katib``: a Katib Experiment on the
    Kubernetes cluster of the section `cluster`.
    """

    kind: Literal["local", "katib"] = "local"
    threads: int | None = Field(
        None, gt=0, description="CPU threads per local trial; default: the cores shared out"
    )
