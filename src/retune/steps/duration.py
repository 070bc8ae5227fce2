"""How long a study takes on a machine without a GPU, roughly: enough to see an hour from a week before it begins."""

from __future__ import annotations

import os
import re
from math import prod
from pathlib import Path

from retune import gpus
from retune.data.mixing import Preview
from retune.evaluation.decoding.adapters import tensor_shapes
from retune.study import Study

# What training reached on a core of an AMD EPYC: the demo's base, 999 records of Alpaca, 20,000 tokens a second on two cores
_FLOPS_OF_A_CORE = 30e9
_START = 20.0  # seconds: processes, the base, benchmarks of nothing, the report


def parameters(base: str, folder: Path | None) -> float | None:
    """Return the parameters of a base, by its files or else by its name (``SmolLM2-135M``); None where neither tells."""
    if folder is not None:
        try:
            shapes = [
                shape for file in folder.glob("*.safetensors") for shape in tensor_shapes(file).values()
            ]
        except (OSError, ValueError):
            shapes = []  # damaged files are told of elsewhere
        if shapes:
            return float(sum(prod(shape) for shape in shapes))
    named = re.findall(
        r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([mb])(?![A-Za-z0-9])", base.rpartition("/")[2], re.IGNORECASE
    )
    return float(named[-1][0]) * (1e6 if named[-1][1].lower() == "m" else 1e9) if named else None


def seconds(study: Study, seen: Preview, size: float) -> float:
    """Return how long the trials of a study take on the cores of this machine, without its benchmarks.

    A token costs 4 floating-point operations per parameter in training, since gradients of the frozen weights are not
    computed, and 2 in validation (Kaplan et al. 2020, section 2.1, counts 2 each for the forward pass, for the gradients of
    the activations and for those of the weights).
    """
    search = study.search
    tokens = 4 * study.training.epochs * seen.train + 2 * seen.validation
    return _START + search.planned_trials * tokens * seen.tokens * size / (_FLOPS_OF_A_CORE * cores())


def cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def told(study: Study, seen: Preview, folder: Path | None) -> str | None:
    """Return a line for people; None where nothing is known: trials on a GPU or a cluster, a base of unknown size."""
    size = parameters(study.model.base, folder)
    if size is None or study.engine.kind != "local" or gpus.visible():
        return None
    trials = study.search.planned_trials
    longer = ", benchmarks aside" if study.benchmark.tasks or study.scored else ""
    needed = words(seconds(study, seen, size))
    return f"about {needed} on the {cores()} cores of this machine{longer}: {trials} trials with base and repeats"


def words(seconds: float) -> str:
    """Return a rough time, e.g. ``4 minutes``, ``3 hours``, ``12 days``."""
    for length, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= 1.5 * length or (name == "minute"):
            count = max(1, round(seconds / length))
            return f"{count:,} {name}{'s' * (count > 1)}"
    raise AssertionError
