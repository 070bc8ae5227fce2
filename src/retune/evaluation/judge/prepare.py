"""From two models and a file of questions to a form that can be sent to people."""

from __future__ import annotations

import json
from dataclasses import dataclass

from retune import adapter, store
from retune.data.prompts import Prompt
from retune.errors import InputError, RetuneError
from retune.evaluation.bench import Candidate, check_candidates
from retune.evaluation.judge import answers, form, key
from retune.evaluation.judge import questions as questionnaire
from retune.study import Model
from retune.study.sentences import read_sections

GENERATED, KEY, FORM = "generated.json", "key.json", "form.html"


@dataclass(frozen=True)
class Prepared:
    """What was written, how many questions are in the form, and which had equal answers and are not."""

    form_uri: str
    key_uri: str
    comparisons: int
    equal: list[str]


def prepare(
    base: str | None,
    a: Candidate,
    b: Candidate,
    questions_uri: str,
    count: int,
    seed: int,
    out_uri: str,
    new_tokens: int = 512,
    batch_size: int = 8,
    report: answers.Report = lambda event: None,
    prompts: answers.Prompts | None = None,
    revision: str | None = None,
    dtype: str = "auto",
) -> Prepared:
    """Generate both models' answers and write ``generated.json``, ``key.json`` and ``form.html`` below `out_uri`.

    A run that was killed carries on with the same answers, names and form. Answers that are equal without the white
    space around them are not shown; `retune.evaluation.judge.score` counts them as ties.

    Args:
        base: a folder, an ``s3://`` folder or a hub name; None: the one that the adapters name.
        a, b: the two models. count: questions drawn from the file by `seed`.
        new_tokens: the most tokens of an answer.
        report: see `answers.generate`. prompts: the prompt of each of the two models; Alpaca's by default.
        revision, dtype: of the base, as in a study's section `model`.

    Raises:
        InputError: with every problem of questions and models, before the base is loaded.
        RetuneError: if a model gives no finite output, or both answer every question alike.

    """
    questions, problems = _questions(questions_uri, count)
    try:
        named = common_base(a, b) if base is None else base
        (model,) = read_sections("--base", (Model, {"base": named, "revision": revision, "dtype": dtype}))
        problems += check_candidates(model, [a, b])
    except InputError as error:
        problems += error.problems
    if problems:
        raise InputError(problems, "retune judge prepare")
    first, second = answers.contestant(a), answers.contestant(b)
    if first.adapter_digest == second.adapter_digest:
        raise InputError(
            f"--a and --b are two different models, but {a.name} and {b.name} have the same weights"
        )
    drawn = questionnaire.draw(questions, count, seed)
    prompts = prompts or {"a": Prompt(), "b": Prompt()}
    fresh = answers.unanswered(model, {"a": first, "b": second}, drawn, seed, new_tokens, batch_size, prompts)
    generated_uri = store.join(out_uri, GENERATED)
    record = answers.resume(fresh, generated_uri)
    record.batch_size = batch_size
    record = answers.generate(model, record, generated_uri, report, prompts)
    if all(question.answers["a"] == question.answers["b"] for question in record.questions):
        raise RetuneError(
            f"{a.name} and {b.name} answer all {count} questions alike: there is nothing to judge"
        )
    blind_key = key.fetch(record, store.join(out_uri, KEY))
    store.write(store.join(out_uri, FORM), form.build(blind_key, record).encode())
    equal = [question.id for question in blind_key.questions if question.token is None]
    return Prepared(
        store.join(out_uri, FORM), store.join(out_uri, KEY), len(blind_key.questions) - len(equal), equal
    )


def common_base(*candidates: Candidate) -> str:
    """Return the base that the adapters of these models say they were trained on.

    Raises:
        InputError: if one of them names none, or they name different ones.
    """
    named: set[str] = set()
    problems: list[str] = []
    for candidate in candidates:
        if candidate.adapter_uri is None:
            continue
        try:
            config = json.loads(store.read(store.join(candidate.adapter_uri, "adapter_config.json")))
            named.add(str(config["base_model_name_or_path"] or ""))
        except FileNotFoundError:
            damage = adapter.damage(candidate.adapter_uri)
            problems += [f"{candidate.name}: {reason}" for reason in damage]
        except (ValueError, KeyError, TypeError):
            problems.append(
                f"{candidate.name}: without --base an adapter names its base, but that at {candidate.adapter_uri} does not"
            )
    if not problems and (len(named) != 1 or "" in named):
        problems.append(f"without --base the adapters name one base, but they name {sorted(named)}")
    if problems:
        raise InputError(problems)
    return named.pop()


def _questions(uri: str, count: int) -> tuple[list[questionnaire.Question], list[str]]:
    """Return the questions of the file, and its problems."""
    try:
        questions = questionnaire.read(uri)
    except InputError as error:
        return [], [f"questions: {problem}" for problem in error.problems]
    if count > len(questions):
        return [], [
            f"questions: -n is at most the number of questions, but got {count} and {uri} holds {len(questions)}"
        ]
    return questions, []
