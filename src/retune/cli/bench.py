"""`retune bench`: score a base model and adapters on benchmarks."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from retune.cli import _options
from retune.cli._say import say, say_data, say_over
from retune.errors import InputError
from retune.study import TASKS, Benchmark, Model
from retune.study.sentences import read_sections

if TYPE_CHECKING:
    from retune.evaluation.bench import Candidate
    from retune.events import Event
    from retune.records import BenchRecord


@click.command("bench")
@click.option(
    "--model",
    "base",
    required=True,
    metavar="BASE",
    help="Base model: a folder, an s3:// folder or a hub name.",
)
@click.option("--revision", metavar="SHA", help="Revision of a hub name.")
@_options.dtype()
@click.option(
    "--adapter", "adapters", multiple=True, metavar="[NAME=]URI", help="An adapter to score; may be repeated."
)
@click.option(
    "--tasks", required=True, metavar="TASK,…", help=f"Of {', '.join(TASKS)}, or of an installed package."
)
@click.option("--data", multiple=True, metavar="TASK=PATH", help="File or folder of a task, local or a URI.")
@click.option(
    "--protocol",
    type=click.Choice(["instruct-eval", "lm-eval"]),
    default="instruct-eval",
    show_default=True,
    help="lm-eval: lm-evaluation-harness' own tasks.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), help="Questions per task at most, drawn evenly over its subjects."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Decides which questions a limit draws.")
@_options.batch_size()
@click.option(
    "--allow-code-execution", is_flag=True, help="Let humaneval run model-generated code, in a sandbox."
)
@click.option(
    "--temperature", type=float, default=0.0, show_default=True, help="humaneval: sampling temperature."
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="humaneval: answers per problem.",
)
@click.option(
    "--out",
    default="bench",
    show_default=True,
    metavar="DIR",
    help="Output folder; finished records are kept.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the scores as JSON lines.")
def command(
    base: str,
    revision: str | None,
    dtype: str,
    adapters: tuple[str, ...],
    tasks: str,
    data: tuple[str, ...],
    protocol: str,
    limit: int | None,
    seed: int,
    batch_size: int,
    allow_code_execution: bool,
    temperature: float,
    samples: int,
    out: str,
    as_json: bool,
) -> None:
    """Score a base model, untuned and with adapters, by the protocol of Instruct-Eval or of lm-evaluation-harness.

    \b
    Examples:
      retune bench --model models/llama --tasks mmlu,bbh --data mmlu=data/mmlu --data bbh=data/bbh
      retune bench --model llama --adapter seven=runs/7/adapter --tasks mmlu --data mmlu=data/mmlu --limit 570
    """
    settings = {
        "tasks": [task.strip() for task in tasks.split(",") if task.strip()],
        "data": dict(_pair(text, "--data") for text in data),
        "protocol": protocol,
        "limit": limit,
        "batch_size": batch_size,
        "allow_code_execution": allow_code_execution,
        "temperature": temperature,
        "samples": samples,
    }
    model_section = {"base": base, "revision": revision, "dtype": dtype}
    from retune import models, store
    from retune.evaluation import bench

    problems = (
        [] if settings["tasks"] else [f"`--tasks` names one or more of {list(TASKS)}, but got {tasks!r}"]
    )
    try:
        model, benchmark = read_sections("retune bench", (Model, model_section), (Benchmark, settings))
        store.require_writable(out, "--out")
    except InputError as error:
        problems += [_as_options(problem) for problem in error.problems]
    if problems:
        with suppress(ValueError):  # an invalid section is among the problems already
            try:
                models.locate(Model.model_validate(model_section))
            except InputError as error:
                problems += error.problems
        raise InputError(problems, "retune bench")
    records = bench.run(model, candidates(adapters), benchmark, seed, out, None if as_json else _progress)
    if as_json:
        for record in records:
            say_data(json.dumps(record.model_dump(mode="json", exclude={"answers"})))
        return
    _table(records, protocol)
    say(f"records, one answer per question: {out}/<model>/<task>.json")


def _as_options(problem: str) -> str:
    """Return a problem of a study's section `benchmark` with the command's options instead of the study's keys."""
    for key, option in (
        ("under `benchmark.data`", "by `--data TASK=PATH`"),
        ("set `benchmark.allow_code_execution: true`", "pass --allow-code-execution"),
        ("`benchmark.samples ", "`--samples "),
        ("`benchmark.temperature ", "`--temperature "),
    ):
        problem = problem.replace(key, option)
    return problem


def candidates(adapters: tuple[str, ...]) -> list[Candidate]:
    """Return the untuned base and the adapters; the default name is the last distinctive part of an adapter's URI."""
    from retune.evaluation.bench import Candidate

    chosen = [Candidate("base")]
    for text in adapters:
        name, equals, uri = text.partition("=")
        if not equals:
            name, uri = "", text
        parts = [part for part in uri.rstrip("/").split("/") if part not in ("", "adapter", ".", "..")]
        chosen.append(Candidate(name or (parts[-1] if parts else "adapter"), uri))
    return chosen


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise InputError(f"`{option}` has the form TASK=PATH, but got {text!r}", "command line")
    return name, value


def _progress(event: Event) -> None:
    if event.kind == "answering":
        text = f"{event.model} {event.task}: {event.done}/{event.total}, {event.seconds_left:.0f} s left"
        say_over(text)
    elif event.kind == "scored":
        word = "kept" if event.kept else f"{event.n} questions"
        say_over(f"{event.model} {event.task}: {event.score:.4f} ({word})", last=True)


def _table(records: list[BenchRecord], protocol: str) -> None:
    from rich.table import Table

    from retune.cli._console import Console

    tasks = list(dict.fromkeys(record.task for record in records))
    scores = {(r.model, r.task): f"{100 * r.score:.2f} ± {100 * r.stderr:.2f}" for r in records}
    table = Table("model", *tasks, title=f"score and standard error in %, protocol {protocol}")
    for model in dict.fromkeys(record.model for record in records):
        table.add_row(model, *(scores[model, task] for task in tasks))
    Console().print(table)
