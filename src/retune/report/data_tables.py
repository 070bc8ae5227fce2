"""Records as tables for people: the mixed data (`mix.json`), and the comparisons of a selection."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from retune.selection.comparison import p_value, points
from retune.selection.record import Selection

Facts = list[tuple[str, str]]
VERDICTS = {
    "better": "better",
    "worse": "worse",
    "noise": "no difference beyond noise",
    "equal": "the same questions right",
    "untested": "not tested: neither answers nor their number known",
}
_COUNTS = ("read", "empty", "duplicate", "shared", "held_out", "too_long", "available")


def decimals(values: Sequence[float]) -> int | None:
    """Return the decimals for a column of values, so that the largest has five significant digits.

    None if the column would not be readable that way; each value is then written with five significant digits of its own.
    """
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if not 1e-4 <= largest < 1e6:
        return None
    return max(0, 4 - math.floor(math.log10(largest)))


def number(value: Any, places: int | None = None) -> str:
    """Return a number with `places` decimals, or five significant digits; an integer with separators; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    return f"{value:.5g}" if places is None else f"{value:.{places}f}"


def brief(value: Any) -> str:
    """Return a hyper-parameter with three significant digits, enough to distinguish neighbouring levels."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.3g}"
    return number(value)


def signed(value: float) -> str:
    """Return a correlation with its sign."""
    return f"{value:+.2f}".replace("-", "−")


def data_tables(mix: Mapping[str, Any]) -> tuple[Facts, list[dict[str, Any]]]:
    """Return single facts, and tables with `title`, `columns` and `rows`, of a mix record.

    Args:
        mix: the content of `mix.json`; keys that are missing are left out.

    """
    names = ("digest", "recipe", "seed", "max_length", "tokenizer")
    facts = [(name.replace("_", " "), number(mix[name])) for name in names if mix.get(name) is not None]
    tables = []
    if mix.get("splits"):
        tables.append(_splits(mix["splits"]))
    if mix.get("sources"):
        tables.append(_sources(mix["sources"]))
    return facts, tables


def comparison_rows(selection: Selection) -> list[dict[str, str]]:
    """Return the chosen model against the others, a row a task.

    Keys: `model`, `task`, `scores`, `difference`, `interval`, `only` (questions that one alone got right), `p`,
    `verdict` (``better``, ``worse``, …) and `words`.
    """
    return [
        {
            "model": f"{c.against} ({c.who})",
            "task": c.task,
            "scores": f"{100 * c.first:.2f} − {100 * c.second:.2f}",
            "difference": points(c.difference),
            "interval": "–" if c.low is None or c.high is None else f"{points(c.low)} to {points(c.high)}",
            "only": "–" if c.first_only is None else f"{c.first_only} : {c.second_only}",
            "p": "–" if c.p_holm is None else p_value(c.p_holm),
            "verdict": c.verdict,
            "words": VERDICTS[c.verdict],
        }
        for c in selection.comparisons
    ]


def comparison_notes(selection: Selection) -> list[str]:
    """Return notes on how to read the comparisons, a sentence each."""
    found = selection.comparisons
    notes = ["Differences in points of a percent."]
    if any(c.paired for c in found):
        tests = sorted({c.test for c in found if c.paired})
        notes.append(
            f"Intervals by bootstrap over pairs of answers to one question, p by {' and '.join(tests)}."
        )
    if any(not c.paired and c.p is not None for c in found):
        notes.append(
            "If the answers were not kept, interval and p are those of independent scores; these are too cautious, since models "
            "mostly get the same questions right."
        )
    if any(c.p is not None for c in found):
        notes.append("All p are adjusted for their number (Holm); below 0.05 is beyond noise.")
    notes.append(
        "The chosen model was chosen by these very scores, so they flatter it: trust a difference that is clear."
    )
    return notes


def correlation_words(selection: Selection) -> list[str]:
    """Return one sentence a task on whether a better objective goes with a better score."""
    found = []
    for task, a in selection.associations.items():
        interval = (
            "" if a.low is None or a.high is None else f", 95 % interval {signed(a.low)} to {signed(a.high)}"
        )
        found.append(
            f"Rank correlation of {selection.metric.replace('_', ' ')} with {task} over {a.n} models: "
            f"Spearman {signed(a.spearman)}{interval}, p {p_value(a.spearman_p)}; Kendall {signed(a.kendall)}, "
            f"p {p_value(a.kendall_p)}."
        )
    return found


def _splits(splits: Mapping[str, Any]) -> dict[str, Any]:
    columns = ["split", "records", "tokens read", "cut short"]
    parts = ("prompt", "completion", "total")
    columns += [f"{part}: median, 95 %, longest" for part in parts]
    rows = []
    for name, split in splits.items():
        row = [
            name,
            number(split.get("records")),
            number(split.get("tokens")),
            number(split.get("truncated")),
        ]
        for part in parts:
            length = split.get("lengths", {}).get(part)
            row.append(" / ".join(number(length[key]) for key in ("p50", "p95", "max")) if length else "–")
        rows.append(row)
    return {"title": "Splits; lengths in tokens", "columns": columns, "rows": rows}


def _sources(sources: list[Mapping[str, Any]]) -> dict[str, Any]:
    splits = list(dict.fromkeys(name for source in sources for name in source.get("splits", {})))
    counts = [name for name in _COUNTS if name != "held_out" or any(source.get(name) for source in sources)]
    columns = ["source", "format", "share", *counts, *splits]
    rows = []
    for source in sources:
        share = source.get("share")
        row = [str(source.get("name", "–")), str(source.get("taken") or source.get("format", "–"))]
        row.append("–" if share is None else f"{share:.0%}")
        row += [number(source.get(name)) for name in counts]
        row += [number(source.get("splits", {}).get(name, {}).get("records")) for name in splits]
        rows.append(row)
    return {"title": "Sources; records", "columns": columns, "rows": rows}
