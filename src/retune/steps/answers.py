"""Answers of the untuned base, the default setting and the winner to a few held-out prompts, generated once.

They are part of the step `benchmark`, whose pod has the models: the winner is what the study's rule selects from the scores so
far. A report only reads them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from retune import adapter, models
from retune.data import mixing
from retune.data.example import Example
from retune.data.prompts import Prompt
from retune.errors import Interrupted, RetuneError
from retune.evaluation.decoding import adapters
from retune.evaluation.decoding.self_check import decoding
from retune.evaluation.prompter import Prompter
from retune.records import Answered, AnswersRecord, TrialRecord, now, versions
from retune.steps import select
from retune.study import Study
from retune.workspace import folders, progress
from retune.workspace.ledger import BASE, DEFAULT
from retune.workspace.search_folder import ANSWERS, SearchFolder

_LOG = logging.getLogger("retune.answers")
_BATCH = 4


def answers(study: Study, folder: SearchFolder) -> AnswersRecord | None:
    """Return the answers of base, default and winner to the first held-out prompts; None if the study wants or has none.

    Existing answers of the same trials and prompts are kept. Errors do not fail the study; they are logged.
    """
    if not study.report.answers:
        return None
    try:
        trials = _answering_trials(folder, select.choice(study, folder).chosen)
        inputs = [
            folder.search.data_digest,
            study.report.model_dump(mode="json"),
            [[trial.trial, trial.adapter_digest] for trial in trials],
        ]
        if folder.done("answers", inputs) is not None:
            return folder.answers
        with folder.stamps.step("answers", inputs) as outputs:
            record = _record(study, folder, trials)
            if record is not None:
                folder.write(ANSWERS, record)
            outputs["questions"] = len(record.questions) if record else 0
    except Interrupted:
        raise
    except (RetuneError, RuntimeError) as error:  # torch raises RuntimeError, also when memory runs out
        _LOG.warning("the report will have no answers of the models: %s", error)
        return None
    return record


def _answering_trials(folder: SearchFolder, chosen: str | None) -> list[TrialRecord]:
    """Return the trials that answer: the base, and default and winner if their adapters were kept; the winner is last."""
    names = dict.fromkeys(name for name in (BASE, DEFAULT, chosen) if name in folder.trials)
    return [folder.trials[n] for n in names if n == BASE or folder.trials[n].adapter_uri]


def _record(study: Study, folder: SearchFolder, trials: list[TrialRecord]) -> AnswersRecord | None:
    data = folder.data(folder.search.data_digest)
    if data is None:
        return None
    uri, mix = data
    examples = [e for e in mixing.load_split(uri, "validation") if not e.is_text][: study.report.answers]
    if not examples or len(trials) < 2:
        return None
    begin = time.monotonic()
    record = AnswersRecord(
        trials=[trial.trial for trial in trials],
        chosen=trials[-1].trial,
        prompt=mix.prompt.kind,
        new_tokens=study.report.new_tokens,
        data_digest=mix.digest,
        questions=[_question(example) for example in examples],
    )
    base = models.load_base(study.model)
    for trial, texts in _generated(study, base, trials, examples, mix.prompt):
        for question, text in zip(record.questions, texts, strict=True):
            if text is not None:
                question.answers[trial] = text
    record.seconds = round(time.monotonic() - begin, 3)
    record.versions = versions("torch", "transformers", "peft", "tokenizers")
    record.finished = now()
    return record


def _question(example: Example) -> Answered:
    *earlier, (_, asked) = example.turns[:-1]
    return Answered(
        question=asked,
        earlier=earlier,
        reference=example.turns[-1][1],
        source=example.source,
        row=example.row,
    )


def _generated(
    study: Study,
    base: models.LoadedBase,
    trials: list[TrialRecord],
    examples: list[Example],
    prompt: Prompt,
) -> Iterator[tuple[str, list[str | None]]]:
    """Yield each trial's answers; None where a prompt leaves no room for one."""
    prompter = Prompter(base.tokenizer, prompt)
    context = models.context(base.model.config) or models.DEFAULT_CONTEXT
    ids = [prompter.ids(prompter.prompt_for(example)) for example in examples]
    short = [index for index, tokens in enumerate(ids) if len(tokens) < context]
    path = folders.work_folder(study) / "progress.json"
    for number, trial in enumerate(trials):
        shown = progress.begin(path, "benchmark")
        shown.running = {f"answers of {trial.trial}": number / len(trials)}
        progress.write(path, shown)
        uri = trial.adapter_uri
        folder = adapter.fetch(uri, trial.adapter_digest) if uri else None
        with ExitStack() as stack:
            tuned: Any = stack.enter_context(adapters.attached(base.model, folder))
            decoder, _ = stack.enter_context(decoding(tuned, base.tokenizer, base.device, context, _BATCH))
            decoder = replace(decoder, ends=prompter.ends)
            generated = decoder.complete(
                [ids[k] for k in short], study.report.new_tokens, prompter.is_complete
            )
        texts = dict(zip(short, map(prompter.response, generated), strict=True))
        yield trial.trial, [texts.get(index) for index in range(len(ids))]
