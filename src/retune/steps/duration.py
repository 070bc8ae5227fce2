"""A rough estimate of a study's duration on a machine without a GPU, to tell an hour from a week before it begins."""

from __future__ import annotations

import re
from math import prod
from pathlib import Path

from retune import cores, gpus
from retune.data.mixing import Preview
from retune.evaluation.decoding.adapters import tensor_shapes
from retune.study import Study

# Measured on an AMD EPYC: the demo's base on 999 records of Alpaca trained at 20,000 tokens per second on two cores
_FLOPS_PER_CORE = 30e9
_FIXED_SECONDS = 20.0  # starting processes, loading the base, the steps after the search, the report


def parameters(base: str, folder: Path | None) -> float | None:
    """Return the number of parameters of a base, from its files or its name (``SmolLM2-135M``); None if neither has it."""
    if folder is not None:
        try:
            shapes = [
                shape for file in folder.glob("*.safetensors") for shape in tensor_shapes(file).values()
            ]
        except (OSError, ValueError):
            shapes = []  # damaged files are reported by `base_facts`
        if shapes:
            return float(sum(prod(shape) for shape in shapes))
    sizes = re.findall(
        r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([mb])(?![A-Za-z0-9])", base.rpartition("/")[2], re.IGNORECASE
    )
    return float(sizes[-1][0]) * (1e6 if sizes[-1][1].lower() == "m" else 1e9) if sizes else None


def seconds(study: Study, preview: Preview, size: float) -> float:
    """Return the estimated seconds of a study's trials on the cores of this machine, without its benchmarks.

    A token costs 4 floating-point operations per parameter in training, since gradients of the frozen weights are not
    computed, and 2 in validation (Kaplan et al. 2020, section 2.1, counts 2 each for the forward pass, for the gradients of
    the activations and for those of the weights).
    """
    search = study.search
    tokens = 4 * study.training.epochs * preview.train + 2 * preview.validation
    return _FIXED_SECONDS + search.planned_trials * tokens * preview.tokens * size / (
        _FLOPS_PER_CORE * cores.available()
    )


def estimate(study: Study, preview: Preview, folder: Path | None) -> str | None:
    """Return the estimate as a line for people; None if there is none: on a GPU or a cluster, or a base of unknown size."""
    size = parameters(study.model.base, folder)
    if size is None or study.engine.kind != "local" or gpus.visible():
        return None
    trials = study.search.planned_trials
    longer = ", benchmarks aside" if study.benchmark.tasks or study.scored else ""
    needed = words(seconds(study, preview, size))
    return f"about {needed} on the {cores.available()} cores of this machine{longer}: {trials} trials with base and repeats"


def words(seconds: float) -> str:
    """Return a rough time, e.g. ``4 minutes``, ``3 hours``, ``12 days``."""
    for length, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= 1.5 * length or (name == "minute"):
            count = max(1, round(seconds / length))
            return f"{count:,} {name}{'s' * (count > 1)}"
    raise AssertionError
