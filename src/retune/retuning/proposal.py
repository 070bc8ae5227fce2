"""The files of a pull request: the version to promote as JSON, the comparison as Markdown, the report as HTML."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from retune import store
from retune.errors import InputError
from retune.steps.outcome import Outcome
from retune.study.sentences import sentences

BRANCH = "retune/{model}"
_ROWS = 5


class Pin(BaseModel):
    """The version that a repository pins as champion. Merging the file approves it.

    Attributes:
        model, version: the version to promote.
        champion: the version that the gate compared it with, if any.
        study, trial, folder: its origin.
        objective, value: its metric.
        adapter_digest: of its files.
    """

    model_config = ConfigDict(extra="ignore")

    model: str
    version: str
    champion: str | None = None
    study: str = ""
    trial: str = ""
    folder: str = ""
    objective: str = ""
    value: float | None = None
    adapter_digest: str | None = None


def pin(outcome: Outcome) -> Pin:
    """Return the pin of a study's challenger."""
    trial = next(record for record in outcome.records() if record.trial == outcome.gate.trial)
    metric = outcome.selection.metric
    return Pin(
        model=outcome.model, version=outcome.gate.challenger, champion=outcome.gate.champion, study=outcome.study,
        trial=trial.trial, folder=outcome.folder, objective=metric, value=trial.objective(metric),
        adapter_digest=trial.adapter_digest,
    )  # fmt: skip


def read_pin(path: Path) -> Pin:
    """Return the pin in a file.

    Raises:
        InputError: if it holds no pin.
    """
    try:
        return Pin.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise InputError(sentences(error, Pin), str(path)) from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"must be a file written by `retune ci run --pull-request`, but {error}", str(path)
        ) from error


def files(outcome: Outcome, folder: str, page: str) -> dict[str, bytes]:
    """Return the files of a proposal by their path in the repository."""
    name = f"{folder.strip('/')}/{outcome.model}" if folder.strip("/.") else outcome.model
    found = {
        f"{name}.json": (pin(outcome).model_dump_json(indent=2) + "\n").encode(),
        f"{name}.md": page.encode(),
    }
    if store.exists(outcome.report):
        found[f"{name}.html"] = store.read(outcome.report)
    return found


def title(outcome: Outcome) -> str:
    """Return one line: what is proposed."""
    return f"Promote {outcome.model} version {outcome.gate.challenger}"


def page(outcome: Outcome, reasons: Sequence[str], gpu_hours: float) -> str:
    """Return the comparison as Markdown: the gate's rules, the best settings beside base and default, findings."""
    gate, selection = outcome.gate, outcome.selection
    against = f"champion version {gate.champion}" if gate.champion else "no champion so far"
    lines = [
        f"# {title(outcome)}", "",
        f"{selection.chosen} of study {outcome.study} passed its gate; {against}. Merging makes it the champion; "
        "reverting the merge brings the previous one back.", "",
        "## Gate", "", "| rule | outcome | |", "|---|---|---|",
        *(f"| {_cell(rule['rule'])} | {rule['outcome']} | {_cell(rule['text'])} |" for rule in gate.rules),
        "", "## Settings", "", *_settings(outcome), "",
    ]  # fmt: skip
    if selection.findings:
        lines += ["## Notes", "", *(f"- {finding}" for finding in selection.findings), ""]
    lines += ["## Why it ran", "", *(f"- {reason}" for reason in reasons), ""]
    lines += [
        f"{outcome.trials} settings, {outcome.failed} failed; {gpu_hours:.3g} GPU hours. Records: `{outcome.folder}`",
        "",
    ]
    return "\n".join(lines)


def _settings(outcome: Outcome) -> list[str]:
    selection = outcome.selection
    roles = {selection.base: "base", selection.default: "default", selection.chosen: "chosen"}
    rows = [row for row in selection.rows if row.role != "repeat"]
    shown = [row for row in rows if row in rows[:_ROWS] or row.trial in roles]
    names = list(next((row.assignment for row in shown if row.assignment), {}))
    heads = ["trial", "", *names, selection.metric, *selection.tasks]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in shown:
        scores = [f"{100 * row.scores[task]:.1f} %" if task in row.scores else "" for task in selection.tasks]
        values = [_value(row.assignment.get(name)) for name in names]
        cells = [row.trial, roles.get(row.trial, ""), *values, f"{row.objective:.5g}", *scores]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _value(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(text: object) -> str:
    return str(text).replace("|", "/").replace("\n", " ")
