"""The files of a pull request: the version to promote as JSON, the comparison as Markdown, the report as HTML."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from retune import store
from retune.errors import InputError
from retune.markdown import plain, row
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
        reason = "it is not JSON" if isinstance(error, ValueError) else str(error)
        raise InputError(
            f"must be a file written by `retune ci run --pull-request`, but {reason}", str(path)
        ) from error


def files(outcome: Outcome, folder: str, page: str) -> dict[str, bytes]:
    """Return the files of a proposal by their path in the repository."""
    name = f"{folder.strip('/')}/{outcome.model}" if folder.strip("/.") else outcome.model
    texts = {
        f"{name}.json": (pin(outcome).model_dump_json(indent=2) + "\n").encode(),
        f"{name}.md": page.encode(),
    }
    if store.exists(outcome.report):
        texts[f"{name}.html"] = store.read(outcome.report)
    return texts


def title(outcome: Outcome) -> str:
    """Return one line: what is proposed."""
    return f"Promote {outcome.model} version {outcome.gate.challenger}"


def page(outcome: Outcome, reasons: Sequence[str], gpu_hours: float) -> str:
    """Return the comparison as Markdown: the gate's rules, the best settings with base and default, findings."""
    gate, selection = outcome.gate, outcome.selection
    against = f"champion version {plain(gate.champion)}" if gate.champion else "no champion so far"
    lines = [
        f"# {plain(title(outcome))}", "",
        f"{plain(selection.chosen)} of study {plain(outcome.study)} passed its gate; {against}. Merging makes it the champion; "
        "reverting the merge brings the previous one back.", "",
        "## Gate", "", "| rule | outcome | |", "|---|---|---|",
        *(row([rule["rule"], rule["outcome"], rule["text"]]) for rule in gate.rules),
        "", "## Settings", "", *_settings(outcome), "",
    ]  # fmt: skip
    if selection.findings:
        lines += ["## Notes", "", *(f"- {plain(finding)}" for finding in selection.findings), ""]
    lines += ["## Why it ran", "", *(f"- {plain(reason)}" for reason in reasons), ""]
    lines += [
        f"{outcome.trials} settings, {outcome.failed} failed; {gpu_hours:.3g} GPU hours. Records: {plain(outcome.folder)}",
        "",
    ]
    return "\n".join(lines)


def _settings(outcome: Outcome) -> list[str]:
    selection = outcome.selection
    roles = {selection.base: "base", selection.default: "default", selection.chosen: "chosen"}
    rows = [one for one in selection.rows if one.role != "repeat"]
    shown = [one for one in rows if one in rows[:_ROWS] or one.trial in roles]
    names = list(next((one.assignment for one in shown if one.assignment), {}))
    heads = ["trial", "", *names, selection.metric, *selection.tasks]
    lines = [row(heads), "|" + "---|" * len(heads)]
    for one in shown:
        scores = [f"{100 * one.scores[task]:.1f} %" if task in one.scores else "" for task in selection.tasks]
        values = [_value(one.assignment.get(name)) for name in names]
        lines.append(row([one.trial, roles.get(one.trial, ""), *values, f"{one.objective:.5g}", *scores]))
    return lines


def _value(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
