"""The tables of a comparison as Markdown: to read in a terminal, to paste into a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from retune.registry.comparison import p_value, points
from retune.registry.scoreboard import MEAN_SCORE, PLACE, Correlation, Line, Scoreboard, Statistic, Table
from retune.report.data_tables import number
from retune.report.style import words

VERDICTS = {
    "better": "better",
    "worse": "worse",
    "noise": "no difference beyond noise",
    "equal": "the same questions right",
    "untested": "not tested: neither answers nor their number known",
}
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
        parts += [f"## {selection.chosen} against", _comparisons(board), _tests(board)]
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
    rows = []
    for c in board.selection.comparisons:
        interval = "–" if c.low is None or c.high is None else f"{points(c.low)} to {points(c.high)}"
        only = "–" if c.first_only is None else f"{c.first_only} : {c.second_only}"
        p = "–" if c.p_holm is None else p_value(c.p_holm)
        difference = points(c.difference)
        scores = f"{100 * c.first:.2f} − {100 * c.second:.2f}"
        rows.append(
            [
                f"{c.against} ({c.who})",
                words(c.task),
                scores,
                difference,
                interval,
                only,
                p,
                VERDICTS[c.verdict],
            ]
        )
    head = ["model", "task", "scores", "difference", "95 % interval", "only one right", "p", "in words"]
    return grid(head, rows, left=(0, 1, 7))


def _tests(board: Scoreboard) -> str:
    """Return how to read the table of comparisons."""
    found = board.selection.comparisons
    notes = ["Differences in points of a percent."]
    if any(c.paired for c in found):
        tests = sorted({c.test for c in found if c.paired})
        notes.append(
            f"Intervals by bootstrap over pairs of answers to one question, p by {' and '.join(tests)}."
        )
    if any(not c.paired and c.p is not None for c in found):
        notes.append(
            "Where the answers are not kept, interval and p are those of independent scores: careful, since models "
            "mostly get the same questions right."
        )
    if any(c.p is not None for c in found):
        notes.append("All p are adjusted for their number (Holm); below 0.05 is beyond noise.")
    notes.append(
        "The chosen model was chosen by these very scores, so they flatter it: trust a difference that is clear."
    )
    return " ".join(notes)


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
        interval = "" if c.low is None or c.high is None else f" ({_signed(c.low)} to {_signed(c.high)})"
        spearman = f"{_signed(c.spearman)}{interval}"
        rows.append(
            [c.method or "–", c.models, c.task, spearman, p_value(c.spearman_p), _signed(c.kendall), p_value(c.kendall_p)]
        )  # fmt: skip
    return grid(["method", "models", "task", "Spearman", "p", "Kendall", "p"], rows, left=(0, 1, 2))


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


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
