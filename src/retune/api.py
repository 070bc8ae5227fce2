"""The Python API: the commands of the command line as functions.

Each function does what the command of the same name does, on the same folders, so either can resume a study that the
other began. The functions neither print nor install signal handlers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from retune.errors import InputError

if TYPE_CHECKING:
    from retune.events import Event
    from retune.records import BenchRecord
    from retune.selection.scoreboard import Scoreboard
    from retune.space import Assignment
    from retune.steps.outcome import Outcome
    from retune.study import Study
    from retune.workspace.progress import Progress


def run(
    study: Study,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    stops: Callable[[], int] = lambda: 0,
) -> Outcome:
    """Run a study on this machine: mix, search, benchmark, select, register, gate, promote, report.

    Finished steps and trials are not run again, so the same call resumes after a stop or a crash.

    Args:
        study: from `load`, or built in Python. Its paths must be absolute or relative to the current folder.
        on_progress: called about four times a second with the step, the trials done, the best so far and the
            seconds left. An error raised in it ends the run.
        stops: called as often; returns how many stops were requested. The first lets the running trials save a
            checkpoint, the second ends the run at once.

    Returns:
        the chosen trial, the gate's decision, and where report and records are.

    Raises:
        InputError: with all problems of the study, before any work.
        Interrupted: after a stop; run again to resume.
        RetuneError: if a step failed.

    """
    from retune import outages
    from retune.launch import local
    from retune.steps import outcome
    from retune.steps.plan import checked

    _require_study("run", study)
    states = checked(study)
    with outages.long_waits():
        if not all(states.values()):
            local.run(study, lambda progress: on_progress(progress) if progress else None, stops)
        return outcome.read(study)


def _require_study(function: str, given: object) -> None:
    from retune.study import Study

    if not isinstance(given, Study):
        raise InputError(
            f"retune.{function} takes a retune.Study, but got an object of type {type(given).__name__}; "
            "make one with retune.load(path), or with retune.Study.model_validate(keys) from a dictionary"
        )


def suggest(study: Study, count: int = 1) -> list[Assignment]:
    """Return the settings that a study would try next; nothing is run or written.

    Args:
        study: where it was run before, the suggestion is based on its finished and running trials.
        count: number of settings.

    Raises:
        InputError: if the algorithm cannot search this study's space.

    """
    from retune import search
    from retune.workspace.search_folder import SearchFolder

    _require_study("suggest", study)
    folder = SearchFolder.of(study)
    history = folder.ledger.observations() if folder else []
    return search.suggest(
        study.search.algorithm,
        study.search.space,
        search.Objective.of(study.search),
        study.search.settings,
        history,
        count,
        study.seed,
    )


def bench(
    base: str,
    data: Mapping[str, str],
    adapters: Mapping[str, str] | None = None,
    out: str = "bench",
    on_event: Callable[[Event], None] = lambda event: None,
    seed: int = 0,
    **settings: Any,
) -> list[BenchRecord]:
    """Score a base model, untuned and with adapters, on benchmarks.

    Args:
        base: a folder, an ``s3://`` folder or a hub name.
        data: file or folder of each task to run, e.g. ``{"mmlu": "data/mmlu"}``.
        adapters: URI of each adapter by the name it gets in the records.
        out: folder or URI for the records; finished ones made from the same inputs are kept.
        on_event: called with `Answering` about once a second, and with `Scored` after each task.
        seed: decides which questions a limit draws.
        settings: further keys of a study's section `benchmark`, e.g. ``limit=100``, ``protocol="lm-eval"``; and
            ``revision`` and ``dtype`` of its section `model`.

    Raises:
        InputError: with every problem of settings, files and adapters, before the model is loaded.

    """
    from retune.evaluation import bench as benches
    from retune.study import Benchmark, Model
    from retune.study.sentences import read_sections

    model_keys: dict[str, Any] = {key: settings.pop(key) for key in ("revision", "dtype") if key in settings}
    model, benchmark = read_sections(
        "retune.bench",
        (Model, {"base": base, **model_keys}),
        (Benchmark, {"tasks": list(data), "data": dict(data), **settings}),
    )
    candidates = [benches.Candidate("base")]
    candidates += [benches.Candidate(name, uri) for name, uri in (adapters or {}).items()]
    return benches.run(model, candidates, benchmark, seed, out, on_event)


def select(
    source: Study | Mapping[str, str] | Sequence[str] | str,
    *,
    weights: Mapping[str, float] | None = None,
    order: Sequence[str] | None = None,
) -> Scoreboard:
    """Return the comparison of all scored models, and the choice among them; nothing is changed.

    Args:
        source: a study whose search is finished; or tables of scores, folders of `bench` or searches, as a list, by the
            name of their method, or a single one.
        weights: with tables: weights of the mean that chooses; default: equal.
        order: with tables: compare task after task instead. The rule of a study is its section `select`.

    Raises:
        InputError: if the rule is unusable, or scores were made from different questions.
        RetuneError: if the search is not finished.

    """
    from retune.study import Study

    if isinstance(source, Study):
        if weights or order:
            raise InputError(
                "the rule of a study is its section `select`; give `weights` or `order` with tables only"
            )
        from retune.steps.tables import tables

        return tables(source)
    from retune.selection.score_files import compare

    if isinstance(source, str):
        source = [source]
    sources = (
        [f"{name}={path}" for name, path in source.items()] if isinstance(source, Mapping) else list(source)
    )
    return compare(sources, weights, order or ())


def promote(
    model: str, tracking: str = "sqlite:///mlflow.db", version: str | None = None, rollback: bool = False
) -> dict[str, dict[str, str] | None]:
    """Move the alias `champion` of a registered model; return its champion, previous and challenger afterwards.

    Args:
        model: name of the registered model. tracking: MLflow's URI.
        version: promote this version, whatever its gate decided; default: the challenger, if it passed the gate.
        rollback: make the previous champion the champion again.

    Raises:
        RetuneError: if the gate or another promotion forbids it.

    """
    from retune.registry import promotion, versions
    from retune.registry.aliases import aliases

    if rollback and version is not None:
        raise InputError(
            f"give `rollback` or `version`, not both, but got version={version!r}", "retune.promote"
        )
    if rollback:
        promotion.rollback(tracking, model)
    elif version is not None:
        promotion.promote(tracking, model, version, aliases(tracking, model).champion)
    else:
        promotion.promote_challenger(tracking, model)
    return versions.describe(tracking, model)
