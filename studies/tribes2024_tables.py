"""Compare what `retune select` makes of the scores in Tables 4a and 4b of Tribes et al. 2024 with what is printed there.

`python studies/tribes2024_tables.py` writes docs/results/tribes2024-tables.md; with --check it fails if that page differs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from retune.report.scoreboard import grid, markdown
from retune.selection.ranking import pareto
from retune.selection.score_files import compare_scores
from retune.selection.scoreboard import Line, Scoreboard

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests/selection/tribes2024"
PAGE = ROOT / "docs/results/tribes2024-tables.md"
NAMES = {"mmlu": "MMLU", "bbh": "BBH", "drop": "DROP", "humaneval": "HumanEval"}
HEAD = """# The paper's tables, made again

Written by `python studies/tribes2024_tables.py`. The scores of Tables 4a and 4b of Tribes et al. 2024 (arXiv:2312.00949), typed
into [`tables.csv`](../../tests/selection/tribes2024/tables.csv), go through `retune select`; its marks, bold and statistics are
compared with the printed ones ([`printed.json`](../../tests/selection/tribes2024/printed.json)). No model was run for this page."""


def models(board: Scoreboard, method: str) -> list[Line]:
    """Return the tuned models of a method, by their rank."""
    (table,) = [table for table in board.tables if table.method == method]
    return [line for line in table.lines if line.role != "base"]


def marks(board: Scoreboard, printed: dict[str, Any]) -> list[str]:
    """Return one line a table on the Pareto marks, and one a column where the bold differs."""
    lines = []
    for method, ranks in printed["pareto"].items():
        ours = [line.place for line in models(board, method) if line.pareto]
        if ours == ranks:
            lines.append(f"- Pareto marks of {method}: the same, ranks {', '.join(map(str, ranks))}.")
        else:
            lines.append(
                f"- **Pareto marks of {method} differ**: printed {ranks}, from the printed scores {ours}."
            )
    for method, columns in printed["bold"].items():
        for task, ranks in columns.items():
            ours = [line.place for line in models(board, method) if task in line.best]
            if ours != ranks:
                best = max(line.scores[task] for line in models(board, method))
                lines.append(
                    f"- **Bold in {NAMES[task]} of {method} differs**: printed rank {ranks}, but ranks {ours} all have {100 * best:.2f}."
                )
    same = sum(len(columns) for columns in printed["bold"].values()) - sum("Bold" in line for line in lines)
    lines.append(f"- Bold in the other {same} columns: the same.")
    return lines


def statistics(board: Scoreboard, printed: dict[str, Any]) -> str:
    """Return Table 1 compared with ours; a cell that differs shows both."""
    found = {(s.method, s.task): s for s in board.statistics if s.models == "10 best"}
    rows = []
    for method, tasks in printed["table_1"].items():
        for task, numbers in tasks.items():
            own = found[method, task]
            assert own.sd is not None
            ours = [100 * value for value in (own.min, own.max, own.mean, own.sd)]
            cells = [
                f"{mine:.2f}" if f"{mine:.2f}" == f"{theirs:.2f}" else f"**{mine:.3f}, printed {theirs:.2f}**"
                for mine, theirs in zip(ours, numbers, strict=True)
            ]
            rows.append([method, NAMES[task], *cells])
    for task, value in printed["default"].items():
        (own,) = [s for s in board.statistics if s.models == "default setting" and s.task == task]
        shown = f"{100 * own.mean:.2f}"
        rows.append(
            ["Default HPs", NAMES[task], "", "", shown if shown == f"{value:.2f}" else f"**{shown}**", ""]
        )
    return grid(["method", "task", "min", "max", "avg.", "st. d."], rows, left=(0, 1))


def with_loss(board: Scoreboard) -> str:
    """Return what the marks would be with the rank by loss as a fifth coordinate."""
    counts = []
    for method in ("NOMAD", "NNI-TPE"):
        ranked = models(board, method)
        front = pareto([(-(line.place or 0), *(line.scores[task] for task in NAMES)) for line in ranked])
        counts.append(f"{sum(front[:10])} of the ten best of {method}")
    return f"With the rank by loss as a fifth coordinate {' and '.join(counts)} would be marked, which is not what is printed."


def exact_mean(board: Scoreboard) -> str:
    """Return the mean HumanEval score of NOMAD's ten best from whole numbers of right answers."""
    right = sum(round(164 * line.scores["humaneval"]) for line in models(board, "NOMAD")[:10])
    return (
        f"HumanEval's scores are shares of 164: in whole answers NOMAD's mean is {right} / 1640 = {right / 16.4:.3f}, "
        "so 16.94 does not come from rounding the scores first."
    )


def sentences(board: Scoreboard) -> list[str]:
    """Return what the printed scores say to the paper's sentence on best and worst models."""
    lines = []
    for method in ("NOMAD", "NNI-TPE"):
        ranked = models(board, method)
        best, worst = ranked[:10], ranked[10:]
        (base,) = [line for table in board.tables if table.method == method for line in table.lines[-1:]]
        for task in ("mmlu", "humaneval"):
            least = min(best, key=lambda line: line.scores[task])
            above = [line for line in [*worst, base] if line.scores[task] > least.scores[task]]
            shown = ", ".join(
                f"{'the model without tuning' if line is base else f'rank {line.place}'} ({100 * line.scores[task]:.2f})"
                for line in above
            )
            weakest = f"rank {least.place} with {100 * least.scores[task]:.2f}"
            said = f"lies below {shown}" if above else "lies above all of them"
            lines.append(f"- {method}, {NAMES[task]}: the weakest of the 10 best, {weakest}, {said}.")
    return lines


def page() -> str:
    """Return the page."""
    board = compare_scores([str(FOLDER / "tables.csv")])
    printed = json.loads((FOLDER / "printed.json").read_text())
    parts = [
        HEAD,
        "## Marks and bold",
        "\n".join(marks(board, printed)),
        f"The marks are dominance over the four scores among the twenty models of a table. {with_loss(board)}",
        "## Table 1",
        statistics(board, printed),
        f"Standard deviations are those of a sample (n - 1). {exact_mean(board)}",
        "## A sentence of the text",
        'The paper says: "The 10 best models outscore the 10 worst models and the baseline for MMLU and HumanEval." It holds on average; model '
        "by model the printed scores say:",
        "\n".join(sentences(board)),
        "## What `retune select --scores tests/selection/tribes2024/tables.csv` prints",
        "\n".join(
            f"##{line}" if line.startswith("#") else line for line in markdown(board).rstrip().splitlines()
        ),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    text = page()
    if "--check" in sys.argv:
        sys.exit(
            0
            if PAGE.exists() and PAGE.read_text() == text
            else f"run {sys.argv[0]}: {PAGE.name} is out of date"
        )
    PAGE.write_text(text)
