"""The record of the mixed data (`mix.json`) as tables for a person."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Facts = list[tuple[str, str]]
_COUNTS = ("read", "empty", "duplicate", "shared", "too_long", "available")


def number(value: Any) -> str:
    """Return a number with five significant digits, a count with separators; a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.5g}" if math.isfinite(value) else str(value)


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
    columns = ["source", "format", "share", *_COUNTS, *splits]
    rows = []
    for source in sources:
        share = source.get("share")
        row = [str(source.get("name", "–")), str(source.get("format", "–"))]
        row.append("–" if share is None else f"{share:.0%}")
        row += [number(source.get(name)) for name in _COUNTS]
        row += [number(source.get("splits", {}).get(name, {}).get("records")) for name in splits]
        rows.append(row)
    return {"title": "Sources; records", "columns": columns, "rows": rows}
