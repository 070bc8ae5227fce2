"""The check before any work: everything a study points to, all problems at once, in seconds and without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from retune import models, search, store
from retune.data import mixing
from retune.errors import InputError, RetuneError
from retune.evaluation import bench
from retune.steps import benchmark
from retune.study import Study
from retune.workspace.search_folder import SEARCH, SearchFolder


def check(study: Study) -> None:
    """Check data, base model, tokenizer, target modules, benchmark files and candidates, warm starts and algorithm settings.

    Raises:
        InputError: with every problem found.

    """
    problems = list(dict.fromkeys(_problems(study)))
    if problems:
        raise InputError(problems, f"study {study.name!r}")


def _problems(study: Study) -> Iterator[str]:
    if study.engine.kind == "katib":
        from retune.engines.katib import manifest

        yield from _of(lambda: manifest.check(study))
    else:
        yield from search.validate(study.search.algorithm, study.search.space, study.search.settings)
    yield from _of(lambda: models.locate(study.model))
    yield from _of(lambda: _data(study))
    for uri in study.search.warm_start:
        if not store.exists(store.join(uri, "search.json")):
            yield f"`search.warm_start` names finished searches, but there is no search.json in {uri}"
    yield from _quantization(study)
    yield from _of(lambda: _base(study))
    if study.benchmark.tasks:
        yield from bench.check(study.benchmark)
        yield from _of(lambda: _candidates(study))


def _data(study: Study) -> list[str]:
    """Return what the data was taken for."""
    try:
        base = models.locate(study.model)
    except (InputError, FileNotFoundError, RetuneError):
        base = None  # told above; the rest can still be checked
    return mixing.rehearse(study.data, study.seed, base)


def _quantization(study: Study) -> list[str]:
    """Return why the base cannot be loaded in 4 bits where the trials run: in Katib's pods, or on this machine."""
    if study.model.quantization is None:
        return []
    if study.engine.kind == "katib":
        lacks = f"`model.quantization: {study.model.quantization}` needs `cluster.gpus` above 0, but got 0"
        return [] if study.cluster.gpus else [lacks]
    import torch

    return models.quantization_problems(study.model, torch.cuda.is_available())


def _base(study: Study) -> None:
    """Refuse a base whose tokenizer does not fit, or without the target modules: nothing could be trained on it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from retune.training.targets import target_names

    try:
        base = models.locate(study.model)
        with torch.device("meta"):  # shapes and names alone
            model = AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(base, trust_remote_code=False), trust_remote_code=False
            )
    except (InputError, FileNotFoundError):
        return  # told above
    except (OSError, ValueError) as error:
        raise InputError(f"the base cannot be built from its config.json: {error}", "model.base") from error
    problems = _of(lambda: target_names(model, study.training.target_modules))
    try:
        tokenizer = models.load_tokenizer(study.model)
    except InputError as error:
        problems += [f"{error.subject}: {told}" for told in error.problems]
    else:
        rows = model.get_input_embeddings().weight.shape[0]
        problems += [f"model.base: {told}" for told in models.tokenizer_problems(tokenizer, rows)]
    if problems:
        raise InputError(problems)


def _candidates(study: Study) -> None:
    """Refuse adapters that are gone or fit another base, where a finished search is yet to be benchmarked."""
    try:
        folder = SearchFolder.of(study)
    except (RetuneError, FileNotFoundError):
        return  # the data or the base are not there, which is told above
    if folder is None or not folder.has(SEARCH):
        return
    if folder.stamps.outputs("benchmark", benchmark.inputs(study, folder)) is not None:
        return
    candidates = [bench.Candidate(t.trial, t.adapter_uri, t.adapter_digest) for t in folder.candidates(study)]
    problems = bench.check_candidates(study.model, candidates)
    if problems:
        raise InputError(problems)


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
