"""Tables of scores: CSV and JSON files with one row per model."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from retune import store
from retune.errors import InputError
from retune.records import BenchRecord, Role, TrialRecord

_MODEL_COLUMNS = ("model", "method", "role", "loss", "rank")  # all others are tasks
_ROLES = ("search", "default", "base")


@dataclass
class Scored:
    """One model in a source: its loss, its place by the loss or its trial's record, and its scores by task."""

    method: str
    name: str
    role: Role | None = None
    loss: float | None = None
    rank: float | None = None
    trial: TrialRecord | None = None
    benches: dict[str, BenchRecord] = field(default_factory=dict)


def read_table(method: str, path: str) -> list[Scored]:
    """Return the models of a CSV or JSON file; `method` replaces the column of that name, unless it is empty.

    Raises:
        InputError: with every problem of every cell.

    """
    try:
        text = store.read(path).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError("there is no such file", path) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"a table of scores must be UTF-8, but {error.reason} at byte {error.start}", path
        ) from error
    rows = _csv_rows(text, path) if path.endswith(".csv") else _json_rows(text, path)
    return _from_rows(rows, method, path)


def _csv_rows(text: str, path: str) -> list[dict[str, Any]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    reader = csv.DictReader(io.StringIO("\n".join(lines)), restkey="", restval=None)
    rows = [dict(row) for row in reader]
    wrong = [number for number, row in enumerate(rows, 1) if "" in row or None in row.values()]
    if wrong:
        raise InputError(
            f"every row must have as many cells as the header, but these rows do not: {wrong[:5]}", path
        )
    return rows


def _json_rows(text: str, path: str) -> list[dict[str, Any]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON: {error}", path) from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError("a JSON table of scores is a list of objects, one per model, but this is not", path)
    return rows


def _from_rows(rows: Sequence[Mapping[str, Any]], method: str, path: str) -> list[Scored]:
    """Return the models of a table; all problems of all cells at once."""
    problems: list[str] = []
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if not rows or "model" not in columns:
        raise InputError(
            f"a table of scores needs one row per model and a column `model`, but has {columns or 'no row'}",
            path,
        )
    tasks = [c for c in columns if c not in _MODEL_COLUMNS and not c.endswith(("_n", "_stderr"))]
    lonely = [c for c in columns if c.endswith(("_n", "_stderr")) and c.rpartition("_")[0] not in tasks]
    if lonely:
        problems.append(f"`<task>_n` and `<task>_stderr` need a column <task>, but {lonely} have none")

    def number(
        row: Mapping[str, Any], column: str, most: float = math.inf, least: float = 0.0
    ) -> float | None:
        cell = row.get(column)
        if cell is None or cell == "":
            return None
        try:
            value = float(cell)
        except (TypeError, ValueError):
            value = math.nan
        if isinstance(cell, bool) or not (least <= value <= most and math.isfinite(value)):
            rule = f"a number from {least:g} to {most:g}" if math.isfinite(most) else "a finite number"
            problems.append(f"{row.get('model')}: `{column}` must be {rule}, but got {cell!r}")
            return None
        return value

    percent = {task: any((number(row, task, 100) or 0) > 1 for row in rows) for task in tasks}
    # The cells are read again below
    problems[:] = [problem for problem in problems if "must be" not in problem]
    models = []
    for row in rows:
        role = str(row.get("role") or "search")
        if role not in _ROLES:
            problems.append(f"{row.get('model')}: `role` must be one of {list(_ROLES)}, but got {role!r}")
        if not str(row.get("model") or ""):
            problems.append("every row needs a `model`, but one has none")
        model = Scored(method or str(row.get("method") or ""), str(row.get("model")), _role(role))
        model.loss = number(row, "loss", least=-math.inf)
        model.rank = number(row, "rank", least=1)
        for task in tasks:
            share = number(row, task, 100)
            if share is None:
                continue
            scale = 100 if percent[task] else 1
            n, error = number(row, f"{task}_n"), number(row, f"{task}_stderr")
            model.benches[task] = _bench(
                model.name, task, share / scale, int(n or 0), error and error / scale
            )
        models.append(model)
    if problems:
        raise InputError(problems, path)
    return models


def _role(text: str) -> Role | None:
    return text if text in get_args(Role) else None  # type: ignore[return-value]


def _bench(model: str, task: str, score: float, n: int, stderr: float | None) -> BenchRecord:
    """Return the record of a published score; `n` is 0 if the number of questions is not known."""
    if stderr is None:
        stderr = math.sqrt(score * (1 - score) / (n - 1)) if n > 1 else 0.0
    elif n < 1:
        n = 1  # a test needs the standard error alone, but is not made where n is 0
    return BenchRecord(model=model, task=task, score=score, stderr=stderr, n=n, shots=0, protocol="as given")
