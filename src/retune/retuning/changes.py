"""Changes of a study's inputs since its last retuning, by their digests."""

from __future__ import annotations

from collections.abc import Mapping

from retune import models
from retune.data import mixing
from retune.evaluation import bench
from retune.records import digest
from retune.study import Study

_NOT_IN_SETTINGS = ("name", "code", "model", "data", "engine", "cluster", "tracking", "artifacts")
"""Sections with digests of their own, and those that only say where a study runs."""
_BUDGETS = {"trials", "parallel", "max_failed", "max_hours"}


def inputs(study: Study) -> dict[str, str]:
    """Return the digest of each input: ``data <file>``, ``benchmark <task>``, ``base``, ``code``, ``study`` and ``budget``.

    Raises:
        InputError: if a file is missing.
    """
    settings = study.model_dump(mode="json", exclude=set(_NOT_IN_SETTINGS))
    settings["search"] = {key: value for key, value in settings["search"].items() if key not in _BUDGETS}
    recipe = study.data.model_dump(mode="json")
    for source in recipe["sources"]:
        source.pop("uri", None)  # files that were moved are still the same data
    model = study.model.model_dump(mode="json", exclude={"base", "revision"})
    digests = {f"data {name}": sha256 for name, sha256 in mixing.source_digests(study.data).items()}
    for used in (study.benchmark, study.scored):
        digests |= {f"benchmark {task}": files for task, files in bench.data_digests(used).items()}
    digests["base"] = study.model.revision or models.base_digest(models.locate(study.model))
    if study.code is not None:
        digests["code"] = study.code
    digests["study"] = digest([settings, recipe, model])
    digests["budget"] = digest({key: getattr(study.search, key) for key in ("trials", "max_hours")})
    return digests


def reasons(before: Mapping[str, str] | None, now: Mapping[str, str]) -> list[str]:
    """Return a line for each input that is new, changed or gone; a single line for a first retuning."""
    if before is None:
        return ["never retuned before"]
    lines = []
    for name in [*now, *(name for name in before if name not in now)]:
        old, new = before.get(name), now.get(name)
        if old != new:
            lines.append(f"{name}: {_short(old)} -> {_short(new)}")
    return lines


def _short(value: str | None) -> str:
    return "none" if value is None else value[:12]
