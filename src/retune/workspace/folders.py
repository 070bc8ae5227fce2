"""The folders of a study; each name has the digest of all that determines the content.

::

    <artifacts>/<study>/
        data-<digest>/            train.jsonl, validation.jsonl, mix.json
        search-<digest>/          study.json, search.json, selection.json, gate.json, report.html
            trials/trial-007/     assignment.json, trial.json, adapter/
            bench/trial-007/      mmlu.json, …
            steps/                the inputs of each finished step, so that it is skipped next time
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from retune import models, store
from retune.data import mixing
from retune.evaluation import bench
from retune.study import Study


def data_folder(study: Study) -> str:
    """Return the URI of the study's mixed data; another recipe or changed files give another folder."""
    return store.join(
        study.root, f"data-{mixing.recipe_digest(study.data, study.seed, models.locate(study.model))}"
    )


def search_folder(study: Study, data_digest: str) -> str:
    """Return the URI of the study's search on the mixed data with this digest."""
    base = models.base_digest(models.locate(study.model))
    scored = bench.data_digests(study.scored)
    return store.join(study.root, f"search-{study.search_digest(data_digest, base, scored)}")


def work_folder(study: Study) -> Path:
    """Return the local folder for logs, locks and progress: the study's own, or if that is a bucket one in the cache."""
    if "://" not in study.root:
        return Path(study.root)
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return cache / "retune" / "work" / hashlib.sha256(study.root.encode()).hexdigest()[:16]
