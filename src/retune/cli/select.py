"""`retune select`: select a model from scores, with the tables and tests behind the choice."""

from __future__ import annotations

import click

from retune.cli import _options
from retune.cli._say import say, say_data


@click.command("select", cls=_options.StudyCommand)
@click.argument("study_file", metavar="[STUDY]", required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--scores",
    "sources",
    multiple=True,
    metavar="[METHOD=]PATH",
    help="Instead of a study: a .csv or .json table, a folder of `retune bench`, or a search; may be repeated.",
)
@click.option("--tasks", metavar="TASK,…", help="With --scores: the tasks that count; default: all.")
@click.option(
    "--weights", metavar="TASK=W,…", help="With --scores: weights of the mean score; default: equal."
)
@click.option("--order", metavar="TASK,…", help="With --scores: compare task after task instead.")
@click.option("--best", type=click.IntRange(min=1), default=10, show_default=True, help="Best models shown.")
@click.option(
    "--worst", type=click.IntRange(min=0), default=10, show_default=True, help="Worst models shown."
)
@click.option("--out", metavar="FILE", help="Write the tables there too, as Markdown.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of Markdown.")  # fmt: skip
def command(
    study_file: str | None,
    overrides: tuple[str, ...],
    sources: tuple[str, ...],
    tasks: str | None,
    weights: str | None,
    order: str | None,
    best: int,
    worst: int,
    out: str | None,
    as_json: bool,
) -> None:
    """Select a model from the scores of a finished study, or from external scores.

    Prints the best and worst models by loss with default and base, the statistics of each method, the rank
    correlation of loss and score, and the model selected by the rule: `select` in the study file, or --weights or
    --order. The selected model is tested against base, default and runner-up, question by question if the answers are
    stored, to show how much is chance. The study is not changed.

    A table has one row per model with the columns model, method, role (search, default, base), loss or rank, and one
    column per task, optionally with <task>_n or <task>_stderr. Only `model` and a task are needed.

    \b
    Examples:
      retune select study.yaml
      retune select study.yaml select.rule=lexicographic 'select.order=[humaneval, mmlu]' --out choice.md
      retune select --scores bench/
      retune select --scores scores.csv --weights mmlu=2,humaneval=1
      retune select --scores NOMAD=artifacts/a/search-0123 --scores TPE=artifacts/b/search-4567 --json
    """
    from retune import store
    from retune.report.scoreboard import markdown

    if (study_file is None) == (not sources):
        raise click.UsageError("give a study file or --scores, one of the two")
    if study_file is not None and (tasks or weights or order):
        raise click.UsageError(
            "the rule of a study is in its file; override it with select.weights=… or select.order=…"
        )
    if study_file is not None:
        from retune import study
        from retune.steps.tables import tables

        board = tables(study.load(study_file, overrides), best, worst)
    else:
        from retune.selection.score_files import compare_scores

        board = compare_scores(sources, weights, order, tasks, best, worst)
    if out:
        store.write(out, markdown(board).encode())
    if as_json:
        say_data(board.to_json().decode(), nl=False)
    else:
        say(markdown(board), nl=False)
