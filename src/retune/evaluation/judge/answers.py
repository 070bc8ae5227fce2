"""The answers of both models, generated on one loaded base and saved one by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pydantic import ValidationError

from retune import adapter, models, store
from retune.data.prompts import Prompt
from retune.errors import InputError, RetuneError
from retune.evaluation.bench import Candidate
from retune.evaluation.decoding import adapters
from retune.evaluation.decoding.generate import Decoder
from retune.evaluation.decoding.self_check import decoding
from retune.evaluation.judge.questions import Question
from retune.evaluation.judge.record import SIDES, Answered, Contestant, Generated, Side
from retune.evaluation.prompter import NEXT_TURN, Prompter
from retune.events import Answering, Event
from retune.records import digest, now, versions
from retune.study import Model

Report = Callable[[Event], None]

Prompts = Mapping[Side, Prompt]
"""The prompt of each of the two models: the one it was tuned with."""


def unanswered(
    model: Model,
    contestants: dict[Side, Contestant],
    questions: Sequence[Question],
    seed: int,
    new_tokens: int,
    batch_size: int,
    prompts: Prompts,
) -> Generated:
    """Return the record without an answer."""
    tokenizer = models.load_tokenizer(model)
    prompters = {side: Prompter(tokenizer, prompts[side]) for side in SIDES}
    pending = []
    for q in questions:
        texts = list(dict.fromkeys(prompters[side].prompt(q.text) for side in SIDES))
        pending.append(
            Answered(
                id=q.id,
                category=q.category,
                question=q.text,
                prompt=digest(texts[0] if len(texts) == 1 else texts),
            )
        )
    kinds = list(dict.fromkeys(prompts[side].kind for side in SIDES))
    dtype = models.precision(model)
    inputs = {
        "base": model.base,
        "base_digest": models.base_digest(models.locate(model)),
        "dtype": dtype,
        "a": contestants["a"].adapter_digest,
        "b": contestants["b"].adapter_digest,
        "template": kinds[0] if len(kinds) == 1 else {side: prompts[side].kind for side in SIDES},
        "decoding": "greedy",
        "new_tokens": new_tokens,
        "stop": NEXT_TURN.pattern,
        "questions": len(pending),
        "seed": seed,
        "prompts": digest([question.prompt for question in pending]),
    }
    return Generated(models=contestants, inputs=inputs, questions=pending, batch_size=batch_size)


def resume(fresh: Generated, uri: str) -> Generated:
    """Return the record at `uri` if it was made from the same inputs, and `fresh` if there is none.

    Raises:
        InputError: if the record there belongs to another study: people may be filling in its form already.
    """
    if not store.exists(uri):
        return fresh
    try:
        record = Generated.model_validate_json(store.read(uri))
    except ValidationError as error:
        raise InputError(f"{uri} is not a record of generated answers; name another --out") from error
    old, new = record.inputs, fresh.inputs
    changed = [
        f"{name}: {old.get(name)!r} there, {new.get(name)!r} here"
        for name in {**old, **new}
        if name != "base" and old.get(name) != new.get(name)  # the base may be elsewhere now
    ]
    if changed:
        raise InputError(
            f"{uri} belongs to another study ({'; '.join(changed)}); name another --out, or remove that one"
        )
    return record


def generate(model: Model, record: Generated, uri: str, report: Report, prompts: Prompts) -> Generated:
    """Fill in every answer that is missing, and write the record to `uri` after each batch.

    Args:
        prompts: as of `unanswered`.
        report: called after each batch with `Answering`.

    Raises:
        InputError: if a question does not fit into the model's context.
        RetuneError: if a model gives no finite output, or does not fit into memory.
    """
    missing = sum(len(SIDES) - len(question.answers) for question in record.questions)
    if not missing:
        return record
    tokenizer = models.load_tokenizer(model)
    prompters = {side: Prompter(tokenizer, prompts[side]) for side in SIDES}
    tokens = {side: _tokens(model, record, prompters[side]) for side in SIDES}
    base = models.load_base(model)
    context = models.context(base.model.config) or models.DEFAULT_CONTEXT
    spent, begin, generated = record.seconds, time.monotonic(), 0
    for side in SIDES:
        contestant = record.models[side]
        folder = store.download(contestant.adapter_uri) if contestant.adapter_uri else None
        with (
            adapters.attached(base.model, folder) as tuned,
            decoding(tuned, base.tokenizer, base.device, context, record.batch_size) as (decoder, _),
        ):
            decoder = replace(decoder, ends=prompters[side].ends)
            for batch in _batches(record, side, tokens[side]):
                _answer(decoder, side, batch, tokens[side], record.inputs["new_tokens"], prompters[side])
                generated += len(batch)
                seconds = time.monotonic() - begin
                record.seconds = round(spent + seconds, 3)
                record.versions = versions("torch", "transformers", "peft", "tokenizers")
                record.finished = now() if generated == missing else ""
                store.write(uri, record.to_json())
                total = len(SIDES) * len(record.questions)
                left = seconds / generated * (missing - generated)
                report(Answering(contestant.name, "", total - missing + generated, total, round(left, 1)))
    return record


def _tokens(model: Model, record: Generated, prompter: Prompter) -> dict[str, list[int]]:
    """Return each question's prompt as tokens, in the format of the model's training."""
    from transformers import AutoConfig

    ids = [prompter.ids(prompter.prompt(question.question)) for question in record.questions]
    config = AutoConfig.from_pretrained(models.locate(model), trust_remote_code=False)
    context = models.context(config) or models.DEFAULT_CONTEXT
    problems = [
        f"question {question.id}: a prompt leaves room for an answer in the model's context of {context} tokens, "
        f"but this one has {len(one)}"
        for question, one in zip(record.questions, ids, strict=True)
        if len(one) >= context
    ]
    if problems:
        raise InputError(problems)
    return {question.id: list(one) for question, one in zip(record.questions, ids, strict=True)}


def _batches(record: Generated, side: Side, tokens: dict[str, list[int]]) -> list[list[Answered]]:
    """Return the questions that lack this side's answer, longest first, so that a resumed run has the same batches."""
    missing = [question for question in record.questions if side not in question.answers]
    missing.sort(key=lambda question: -len(tokens[question.id]))
    return [missing[k : k + record.batch_size] for k in range(0, len(missing), record.batch_size)]


def _answer(
    decoder: Decoder,
    side: Side,
    batch: list[Answered],
    tokens: dict[str, list[int]],
    new_tokens: int,
    prompter: Prompter,
) -> None:
    try:
        texts = decoder.complete(
            [tokens[question.id] for question in batch],
            new_tokens,
            prompter.is_complete,
        )
    except RetuneError as error:
        raise RetuneError(f"model {side}: {error}") from error
    for question, text in zip(batch, texts, strict=True):
        question.answers[side] = prompter.response(text)


def contestant(candidate: Candidate) -> Contestant:
    """Return the record of a candidate whose adapter was checked."""
    uri = candidate.adapter_uri
    weights = adapter.digest(adapter.read(store.download(uri))) if uri else None
    return Contestant(name=candidate.name, adapter_uri=uri, adapter_digest=weights)
