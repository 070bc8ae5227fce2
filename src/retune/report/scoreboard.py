"""The tables of a comparison as Markdown, for a terminal or a document."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from retune.report.data_tables import comparison_notes, comparison_rows, number, signed
from retune.report.style import words
from retune.selection.comparison import p_value
from retune.selection.scoreboard import MEAN_SCORE, PLACE, Correlation, Line, Scoreboard, Statistic, Table

_LEGEND = (
    "The best of each column is bold. \\* Pareto optimal: no other scored model of its table is as good in everything "
    "that counts and better in something. † the default setting. ‡ chosen."
)


def markdown(board: Scoreboard) -> str:
    """Return all tables and the choice as Markdown; scores in percent."""
    selection = board.selection
    parts = [f"# Selection: {board.name}", "## The choice"]
    if selection.chosen is None:
        parts.append("Nothing was chosen.")
    else:
        parts += [f"**{selection.chosen}**, {selection.rule}.", selection.why]
    if selection.findings:
        parts.append("\n".join(f"- {finding}" for finding in selection.findings))
    if selection.comparisons:
        parts += [f"## {selection.chosen} against", _comparisons(board)]
        parts.append(" ".join(comparison_notes(selection)))
    for table in board.tables:
        parts += [f"## Scores{f' of {table.method}' if table.method else ''}", _table(table, board)]
        if table.left_out:
            parts.append(f"{table.left_out} scored models between the best and the worst are not shown.")
    if board.tasks:
        parts.append(_LEGEND)
    if board.statistics:
        parts += ["## Statistics", _statistics(board.statistics)]
    if board.correlations:
        parts += [
            f"## Rank correlation of {words(board.metric)} and score",
            _correlations(board.correlations),
        ]
        sign = "Negative" if board.goal == "minimize" else "Positive"
        parts.append(
            f"{sign}: the better the {words(board.metric)}, the better the score. In brackets the 95 % interval. Models from "
            "both ends of a ranking make it look stronger than among those that one would choose from."
        )
    parts += [f"- {note}" for note in board.notes]
    return "\n\n".join(parts) + "\n"


def _comparisons(board: Scoreboard) -> str:
    head = ["model", "task", "scores", "difference", "95 % interval", "only one right", "p", "in words"]
    keys = ("model", "task", "scores", "difference", "interval", "only", "p", "words")
    rows = [[row[key] for key in keys] for row in comparison_rows(board.selection)]
    return grid(head, rows, left=(0, 1, 7))


def _table(table: Table, board: Scoreboard) -> str:
    metric = board.metric
    stand_in = metric in (PLACE, MEAN_SCORE)
    head = ["rank", "", "model", *([] if metric == PLACE else [words(metric)]), *board.tasks]
    rows = []
    for line in table.lines:
        value = (
            "–"
            if line.objective is None
            else _percent(line.objective)
            if stand_in
            else number(line.objective)
        )
        cells = [] if metric == PLACE else [_bold(value, metric in line.best)]
        cells += [
            _bold(_percent(line.scores[task]), task in line.best) if task in line.scores else "–"
            for task in board.tasks
        ]
        rows.append([str(line.place or "–"), _marks(line), _name(line), *cells])
    return grid(head, rows, left=(1, 2))


def _name(line: Line) -> str:
    return f"{line.model} (untuned base)" if line.role == "base" else line.model


def _marks(line: Line) -> str:
    marks = [(line.pareto, "\\*"), (line.role == "default", "†"), (line.chosen, "‡")]
    return " ".join(mark for shown, mark in marks if shown)


def _statistics(statistics: Sequence[Statistic]) -> str:
    rows = [
        [
            s.method or "–", s.models, s.task, str(s.n), _percent(s.min), _percent(s.max), _percent(s.mean),
            "–" if s.sd is None else _percent(s.sd),
        ]
        for s in statistics
    ]  # fmt: skip
    return grid(["method", "models", "task", "n", "min", "max", "mean", "st. dev."], rows, left=(0, 1, 2))


def _correlations(correlations: Sequence[Correlation]) -> str:
    rows = []
    for c in correlations:
        interval = "" if c.low is None or c.high is None else f" ({signed(c.low)} to {signed(c.high)})"
        spearman = f"{signed(c.spearman)}{interval}"
        rows.append(
            [c.method or "–", c.models, c.task, spearman, p_value(c.spearman_p), signed(c.kendall), p_value(c.kendall_p)]
        )  # fmt: skip
    return grid(["method", "models", "task", "Spearman", "p", "Kendall", "p"], rows, left=(0, 1, 2))


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _bold(text: str, strong: bool) -> str:
    return f"**{text}**" if strong else text


def grid(head: Sequence[str], rows: Sequence[Sequence[str]], left: Iterable[int] = ()) -> str:
    """Return a Markdown table whose columns also line up as plain text; columns in `left` are aligned left."""
    left = set(left)
    widths = [max(3, *(len(row[k]) for row in [head, *rows])) for k in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(w) if k in left else cell.rjust(w)
            for k, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = [f":{'-' * (w - 1)}" if k in left else f"{'-' * (w - 1)}:" for k, w in enumerate(widths)]
    return "\n".join([line(head), line(rule), *(line(row) for row in rows)])
