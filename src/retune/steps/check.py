"""The check before any work: everything a study points to, all problems at once, in seconds and without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from retune import models, search, store
from retune.data import sources
from retune.errors import InputError, RetuneError
from retune.evaluation import bench
from retune.study import Study


def check(study: Study) -> None:
    """Check data, base model, benchmark files, warm starts and algorithm settings.

    Raises:
        InputError: with every problem found.

    """
    problems = list(_problems(study))
    if problems:
        raise InputError(problems, f"study {study.name!r}")


def _problems(study: Study) -> Iterator[str]:
    if study.engine.kind == "katib":  # until the engine is wired into step `search`
        yield "`engine.kind: katib` cannot run yet in this version; use `local`"
    yield from search.validate(study.search.algorithm, study.search.space, study.search.settings)
    yield from _of(lambda: models.locate(study.model))
    for source in study.data.sources:
        yield from _of(lambda source=source: sources.read_source(source))  # type: ignore[misc]
    for uri in study.search.warm_start:
        if not store.exists(store.join(uri, "search.json")):
            yield f"`search.warm_start` names finished searches, but there is no search.json in {uri}"
    if study.benchmark.tasks:
        yield from bench.check(study.benchmark)


def _of(action: Callable[[], object]) -> list[str]:
    """Return the problems that an action raises."""
    try:
        action()
    except InputError as error:
        return [f"{error.subject}: {problem}" if error.subject else problem for problem in error.problems]
    except FileNotFoundError as error:
        return [f"a file or folder must exist, but there is none: {error}"]
    except RetuneError as error:
        return [str(error)]
    return []
