"""Whether the pods on a cluster can reach the paths and addresses of a study."""

from __future__ import annotations

from retune.study.data import PROMPTS, File
from retune.study.model import Study
from retune.uris import MARK


def unreachable(study: Study) -> list[str]:
    """Return a problem for each address in the study that its pods cannot reach.

    A local path must lie below a mount of `cluster.volumes`. Tracking must be a server, since several pods cannot write one
    SQLite file.
    """
    paths = {"model.base": study.model.base, "artifacts.uri": study.artifacts.uri}
    paths |= {f"data.sources.{index}.uri": source.uri for index, source in enumerate(study.data.sources)}
    if isinstance(study.data.validation, File):
        paths["data.validation.uri"] = study.data.validation.uri
    if study.data.prompt not in PROMPTS:
        paths["data.prompt"] = study.data.prompt
    tasks = (*study.benchmark.tasks, *study.search.scored_tasks)
    paths |= {f"benchmark.data.{task}": study.benchmark.data[task] for task in tasks}
    paths |= {f"search.warm_start.{index}": uri for index, uri in enumerate(study.search.warm_start)}
    mounts = [volume.mount.rstrip("/") + "/" for volume in study.cluster.volumes]
    problems = [
        f"pods must reach `{key}`: an s3:// address, or a path below a mount of `cluster.volumes` {mounts}, but got {path}"
        for key, path in paths.items()
        if path.startswith(("/", "file://"))
        and not any(f"{path.removeprefix('file://')}/".startswith(mount) for mount in mounts)
    ]
    if study.tracking.uri.startswith(("sqlite:", "/", "file:")):
        problems.append(
            f"`tracking.uri` must be a server that all pods share, http:// or https://, but got {study.tracking.uri}"
        )
    elif MARK in study.tracking.uri:
        problems.append(
            "`tracking.uri` must hold no password, since a cluster keeps runs' settings for all to read: let the pods' "
            f"MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD come from a secret, but got {study.tracking.uri}"
        )
    return problems
