"""The check before any work: everything that a study refers to, all problems at once, in seconds and without a GPU."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

from pydantic import ValidationError

from retune import base_files, models, search, store
from retune.data import mixing, plain_tokenizer
from retune.errors import InputError, RetuneError, nearest
from retune.evaluation import bench
from retune.space import Assignment
from retune.steps import base_facts, benchmark, duration, remote
from retune.study import TASKS, File, Study, trainable
from retune.study.scored import MEAN_SCORE
from retune.study.training import EDITING
from retune.tracking import boards, server
from retune.tracking.runs import tracking_uri, uri_problem
from retune.training.targets import in_range, named
from retune.trials.trial_record import METRICS
from retune.workspace.search_folder import SEARCH, SearchFolder


def check(study: Study, network: bool = True, tracking: bool = False) -> list[str]:
    """Check data, base model, target modules, metrics, artifacts, benchmarks, warm starts and algorithm settings.

    Args:
        study: the study.
        network: whether to check what is only reachable over the network.
        tracking: whether to check the MLflow server too. A run does not need it: unsent data waits in the outbox.

    Returns:
        a line for each file with its detected format, and a line for what was not checked.

    Raises:
        InputError: with every problem found.
    """
    notes: list[str] = []
    problems = list(dict.fromkeys(_problems(study, network, tracking, notes)))
    if problems:
        raise InputError(problems, f"study {study.name!r}")
    return notes


def _problems(study: Study, network: bool, tracking: bool, notes: list[str]) -> Iterator[str]:
    skipped = [] if network else remote.network_uris(study)
    if skipped:
        notes.append(f"not checked (--offline): {', '.join(skipped)}")
    yield from search_problems(study)
    base_is_local = study.model.base not in skipped
    # Once, where it is first needed: a base of an unusual architecture takes torch and seconds
    read_facts = functools.cache(lambda: base_facts.read(models.locate(study.model)))
    if base_is_local:
        yield from _problems_of(lambda: models.locate(study.model))
    if not any(source.uri in skipped for source in study.data.sources) and _held_out(study) not in skipped:
        yield from _problems_of(lambda: notes.extend(_data(study, base_is_local, read_facts)))
    for uri in study.search.warm_start:
        if uri not in skipped and not store.exists(store.join(uri, "search.json")):
            yield f"`search.warm_start` names finished searches, but there is no search.json in {uri}"
    if base_is_local:
        yield from _quantization(study)
        yield from _problems_of(lambda: _quantized_base(study))
        yield from _problems_of(lambda: _base(study, read_facts))
    if study.benchmark.tasks and not any(uri in skipped for uri in study.benchmark.data.values()):
        yield from bench.check(study.benchmark)
        if network and base_is_local:
            yield from _problems_of(lambda: _candidates(study))
    if study.scored and not any(uri in skipped for uri in study.benchmark.data.values()):
        yield from bench.check(study.scored)
    if study.artifacts.uri not in skipped:
        yield from remote.artifacts(study)
    yield from boards.problems(study.tracking)
    if study.tracking.uri not in skipped:
        yield from _unusable_server(study)
    if tracking and study.tracking.uri not in skipped:
        yield from remote.tracking(study)


def search_problems(study: Study) -> Iterator[str]:
    """Yield what the search's algorithm or the engine cannot do, and the metrics that no trial measures."""
    if study.engine.kind == "katib":
        from retune.engines.katib import manifest

        yield from _problems_of(lambda: manifest.check(study))
    else:
        wanted = study.search
        objective = search.Objective.of(wanted)
        yield from search.validate(wanted.algorithm, wanted.space, wanted.settings, objective)
    yield from _metrics(study)


def _held_out(study: Study) -> str | None:
    return study.data.validation.uri if isinstance(study.data.validation, File) else None


def _metrics(study: Study) -> Iterator[str]:
    """Yield the metrics that no trial measures; with them every trial would count as failed."""
    metrics = {
        f"search.objective{f'.{k}' if k else ''}.metric": o.metric
        for k, o in enumerate(study.search.objectives)
    }
    metrics |= {f"search.constraints.{k}.metric": c.metric for k, c in enumerate(study.search.constraints)}
    known = (*METRICS, *study.search.scored_tasks, MEAN_SCORE)
    for key, metric in metrics.items():
        if metric in known:
            continue
        near = {
            "val_loss": "validation_loss",
            "eval_loss": "validation_loss",
            "loss": "validation_loss",
        }.get(metric) or nearest(metric, (*known, *TASKS))
        hint = f"did you mean {near!r}?" if near else f"a trial measures {list(known)}"
        yield f"{key}: unknown metric {metric!r}; {hint}"


def _data(study: Study, base_is_local: bool, read_facts: Callable[[], base_facts.BaseFacts]) -> list[str]:
    """Return a line for each file with its detected format and dropped records, and the estimated duration of the study."""
    base, context = None, None
    if base_is_local:
        # A missing base is reported by the caller; the data can be checked without it
        with contextlib.suppress(FileNotFoundError, RetuneError):
            base = models.locate(study.model)
            context = read_facts().context
    preview = mixing.preview(study.data, study.seed, base, context)
    estimate = duration.estimate(study, preview, base)
    return [*preview.lines, *([estimate] if estimate else [])]


def _unusable_server(study: Study) -> list[str]:
    """Return why MLflow cannot keep runs at `tracking.uri`, or refuses us, or is too old.

    A server that does not answer is no problem: the outbox keeps the data until it does.
    """
    used = tracking_uri(study.tracking.uri)
    try:
        problem = uri_problem(used) or server.problem(used)
    except server.Unreachable:
        return []
    return [f"tracking.uri: {problem}"] if problem else []


def _quantization(study: Study) -> list[str]:
    """Return why the base cannot be loaded in 4 bits where the trials run, in Katib's pods or on this machine."""
    if study.model.quantization is None:
        return []
    if editing := _editing(study):
        return [
            f"`init: {editing[0]}` edits the base's weights, which `model.quantization` keeps in 4 bits: remove one of the two"
        ]
    if study.engine.kind == "katib":
        lacks = f"`model.quantization: {study.model.quantization}` needs `cluster.gpus` above 0, but got 0"
        return [] if study.cluster.gpus else [lacks]
    import torch

    return models.quantization_problems(study.model, torch.cuda.is_available())


def _editing(study: Study) -> list[str]:
    """Return the initialisations of the study that edit the base's weights."""
    inits = {study.training.init} | {
        str(value) for p in study.search.space.parameters if p.name == "init" for value in p.values or ()
    }
    return sorted(inits & set(EDITING))


def _quantized_base(study: Study) -> None:
    """Refuse a base whose files are quantised, if this machine cannot load it, or the study edits its weights."""
    try:
        base = models.locate(study.model)
    except InputError:
        return  # reported elsewhere
    if not base_files.is_quantized(base):
        return
    kept = f"the weights of {study.model.base} are quantised"
    problems = []
    if study.model.quantization:
        problems.append(
            f"{kept} already: remove `model.quantization: {study.model.quantization}`, or name the base that is not"
        )
    if editing := _editing(study):
        problems.append(f"`init: {editing[0]}` edits the base's weights, but {kept}: choose another `init`")
    if study.engine.kind == "local" and (reason := models.cannot_load_quantized(base)):
        problems.append(f"{kept}, and cannot be loaded here: {reason}")
    if problems:
        raise InputError(problems, "model.base")


def _base(study: Study, read_facts: Callable[[], base_facts.BaseFacts]) -> None:
    """Refuse a base that cannot be trained on: without the target modules, or with a tokenizer that does not fit."""
    try:
        base = models.locate(study.model)
    except (InputError, FileNotFoundError):
        return  # reported above
    facts = read_facts()
    problems = []
    for assignment in trainable.settings(study.search.space, ("target_modules", "first_layer", "last_layer")):
        problems += _problems_of(lambda assignment=assignment: _targets(study, facts.layers, assignment))  # type: ignore[misc]
    problems = list(dict.fromkeys(problems))
    if facts.context and study.data.max_length > facts.context:
        problems.append(
            f"`data.max_length <= {facts.context}` must hold, the context of the base, but got {study.data.max_length}"
        )
    try:
        tokenizer = plain_tokenizer.load(base) or models.load_tokenizer(study.model)
    except InputError as error:
        problems += [f"{error.subject}: {problem}" for problem in error.problems]
    else:
        problems += [f"model.base: {problem}" for problem in models.tokenizer_problems(tokenizer, facts.rows)]
    if problems:
        raise InputError(problems)


def _targets(study: Study, layers: list[str], assignment: Assignment) -> None:
    """Refuse target modules or a range of blocks that the base does not have, in one assignment of the search space."""
    try:
        chosen = study.training.tuned(assignment)
    except ValidationError:
        return  # the study file's own check reports it
    matches = named(layers, chosen.target_modules)
    in_range(matches, layers, chosen.first_layer, chosen.last_layer)


def _candidates(study: Study) -> None:
    """Refuse adapters that are missing or fit another base, if a finished search is yet to be benchmarked."""
    try:
        folder = SearchFolder.of(study)
    except (RetuneError, FileNotFoundError):
        return  # the data or the base are missing, as reported above
    if folder is None or not folder.has(SEARCH):
        return
    if folder.done("benchmark", benchmark.inputs(study, folder)) is not None:
        return
    candidates = [bench.Candidate(t.trial, t.adapter_uri, t.adapter_digest) for t in folder.candidates(study)]
    problems = bench.check_candidates(study.model, candidates)
    if problems:
        raise InputError(problems)


def _problems_of(action: Callable[[], object]) -> list[str]:
    """Return the problems of the errors that an action raises; none if it raises none."""
    try:
        action()
    except InputError as error:
        return [f"{error.subject}: {problem}" if error.subject else problem for problem in error.problems]
    except FileNotFoundError as error:
        return [f"a file or folder must exist, but there is none: {error}"]
    except RetuneError as error:
        return [str(error)]
    return []
