"""The report of a study: one HTML file without scripts, network requests or other files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from retune import store
from retune.records import AnswersRecord, BenchRecord, GateRecord, Record, TrialRecord
from retune.report.data_tables import (
    brief,
    comparison_notes,
    comparison_rows,
    correlation_words,
    data_tables,
    decimals,
    number,
)
from retune.report.figures import draw
from retune.report.importance import MIN_TRIALS
from retune.report.style import to_svg, words
from retune.selection.choice import select
from retune.selection.pareto import pareto_set
from retune.selection.record import Row, Selection
from retune.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = {
    "history": (
        "Objective over the trials",
        "Dotted: the untuned base. Dashed: the default setting. The line is the best so far.",
    ),
    "parallel-coordinates": (
        "Settings",
        "One line a trial, grey for the worst; the three best are thick, the best has dots.",
    ),
    "importance": (
        "What mattered",
        "Share of the differences between trials that each hyper-parameter explains (fANOVA).",
    ),
    "loss-curves": ("Training curves", "Measured on the validation set after each epoch."),
    "scores": (
        "Objective and benchmarks",
        "If the points do not fall in a line, the objective alone is a poor judge.",
    ),
}


def write_report(
    study: Study,
    mix: dict[str, Any] | Record | None,
    trials: Sequence[TrialRecord],
    benches: Sequence[BenchRecord],
    selection: Selection | None,
    gate: GateRecord | None,
    out: Path | str,
    answers: AnswersRecord | None = None,
    drawn: dict[str, Figure] | None = None,
) -> None:
    """Write the report to `out`.

    Args:
        study: as it was run.
        mix: the record of the mixed data (`mix.json`).
        trials: all trials.
        benches: all scores.
        selection: which trial was chosen; None for an unfinished study: then the selection from the results so far is shown.
        gate: None if nothing was registered.
        out: path or URI of the HTML file; written atomically.
        answers: of base, default and winner to held-out prompts; None where they were not recorded.
        drawn: the figures, if `retune.report.figures.draw` has drawn them.

    """
    page = render(study, mix, trials, benches, selection, gate, answers, drawn)
    store.write(str(out), page.encode())


def render(
    study: Study,
    mix: dict[str, Any] | Record | None,
    trials: Sequence[TrialRecord],
    benches: Sequence[BenchRecord],
    selection: Selection | None,
    gate: GateRecord | None,
    answers: AnswersRecord | None = None,
    drawn: dict[str, Figure] | None = None,
) -> str:
    """Return the page as HTML; see `write_report`. Every text is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "number": number,
        "brief": brief,
        "signed": _signed,
        "words": words,
        "setting": _setting,
        "minute": _minute,
    }
    template = environment.from_string(Path(__file__).with_name("page.html").read_text())
    selection = selection or select(
        trials, benches, study.search.objective, study.select, study.benchmark.tasks
    )
    content = mix.model_dump(mode="json") if isinstance(mix, Record) else (mix or {})
    tasks = selection.tasks or sorted({bench.task for bench in benches})
    mix_facts, mix_tables = data_tables(content)
    return template.render(
        study=study,
        selection=selection,
        gate=gate,
        gate_title=_gate_title(gate) if gate else "",
        headline=_headline(study, trials, selection),
        cards=_cards(trials, selection),
        figures=_figures(study, trials, selection, drawn),
        metric=words(selection.metric),
        parameters=_parameters(study, trials),
        rows=selection.rows,
        places=decimals([row.objective for row in selection.rows]),
        pareto=pareto_set(trials, study.search),
        tasks=tasks,
        bench_rows=[row for row in selection.rows if row.scores],
        best_scores=_best_scores(selection.rows, tasks),
        protocols=_protocols(benches),
        comparisons=comparison_rows(selection),
        comparison_notes=comparison_notes(selection),
        correlations=correlation_words(selection),
        answers=answers,
        speakers=_answer_labels(answers, selection) if answers else {},
        failed=[t for t in trials if t.objective(selection.metric) is None and t.status != "early_stopped"],
        mix_facts=mix_facts,
        mix_tables=mix_tables,
        facts=_facts(study, trials),
        commands=_commands(study, gate),
        study_yaml=yaml.safe_dump(
            study.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True
        ),
    )


def _answer_labels(answers: AnswersRecord, selection: Selection) -> dict[str, str]:
    """Return the label of each model that answered, by its trial."""
    roles = {selection.base: "untuned base", selection.default: "default setting", selection.chosen: "chosen"}
    if selection.chosen == selection.default:
        roles[selection.chosen] = "default setting, chosen"
    return {trial: f"{roles[trial]}, {trial}" if trial in roles else trial for trial in answers.trials}


def _signed(value: float, places: int | None = None) -> str:
    if not value:
        return "0"
    return (f"{value:+.4g}" if places is None else f"{value:+.{places}f}").replace("-", "−")


def _minute(rfc3339: str) -> str:
    return rfc3339[:16].replace("T", " ") + " UTC"


def _setting(assignment: dict[str, Any]) -> str:
    return ", ".join(f"{words(name)} {brief(value)}" for name, value in assignment.items()) or "–"


def _headline(study: Study, trials: Sequence[TrialRecord], selection: Selection) -> str:
    row = selection.row(selection.chosen)
    searched = _settings_tried(trials)
    if row is None:
        return f"No adapter was chosen from {searched} settings."
    return (
        f"{row.trial} was chosen from {searched} settings that {study.search.algorithm} tried: "
        f"{_setting(row.assignment)}."
    )


def _settings_tried(trials: Sequence[TrialRecord]) -> int:
    proxies = sum(trial.role == "proxy" for trial in trials)
    return proxies or sum(trial.role in ("default", "search") for trial in trials)


def _cards(trials: Sequence[TrialRecord], selection: Selection) -> list[dict[str, str]]:
    row = selection.row(selection.chosen)
    if row is None:
        return []
    metric = words(selection.metric)
    cards = [{"label": metric, "value": number(row.objective), "look": "", "note": f"{row.trial}, chosen"}]
    for label, gained, name in (
        ("gain over the untuned base", row.gain_over_base, selection.base),
        ("gain over the default setting", row.gain_over_default, selection.default),
    ):
        reference = selection.row(name)
        if gained is None or reference is None:
            continue
        share = f", {gained / abs(reference.objective):+.1%}" if reference.objective else ""
        note = (
            f"base {number(reference.objective)}" if name == selection.base else number(reference.objective)
        )
        look = "good" if gained > 0 else "bad" if gained < 0 else ""
        note = f"{'base' if name == selection.base else 'default'} {number(reference.objective)}{share}"
        cards.append({"label": label, "value": _signed(gained), "look": look, "note": note})
    spread = selection.spread_for(row.trial)
    if spread is not None:
        note = f"standard deviation of {spread.n} seeds, setting of {spread.trial}"
        cards.append({"label": "spread over seeds", "value": f"{spread.sd:.3g}", "look": "", "note": note})
    hours = sum(t.seconds for t in trials) / 3600
    failed = sum(t.status == "failed" for t in trials)
    time = f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
    searched = _settings_tried(trials)
    repeats = sum(t.role == "repeat" for t in trials)
    whole = sum(t.role in ("default", "search") for t in trials) if selection.proxy_pairs else 0
    stopped = sum(t.status == "early_stopped" for t in trials)
    what = [
        f"{searched} settings",
        *([f"{whole} of them on all data"] if whole else []),
        *([f"{repeats} repeats"] if repeats else []),
        *(["the base"] if len(trials) > searched + whole + repeats else []),
    ]
    ended = [f"{failed} failed", *([f"{stopped} stopped early"] if stopped else [])]
    note = f"in all: {', '.join(what)}; {', '.join(ended)}"
    cards.append({"label": f"{len(trials)} trials", "value": time, "look": "", "note": note})
    return cards


def _figures(
    study: Study, trials: Sequence[TrialRecord], selection: Selection, drawn: dict[str, Figure] | None
) -> list[dict[str, Any]]:
    from markupsafe import Markup

    drawn = drawn or draw(trials, study.search.space, study.search.objective, selection)
    shown = []
    for name, (title, note) in FIGURES.items():
        if name in drawn:
            shown.append({"title": title, "svg": Markup(to_svg(drawn[name], name, title)), "note": note})
        elif name == "importance":
            few = f"Too few trials to tell: at least {MIN_TRIALS} settings that completed are needed."
            shown.append({"title": title, "svg": "", "note": few})
    return shown


def _parameters(study: Study, trials: Sequence[TrialRecord]) -> list[str]:
    names = list(study.search.space.names)
    more = {name for trial in trials for name in trial.assignment} - set(names)
    return names + sorted(more)


def _best_scores(rows: Sequence[Row], tasks: Sequence[str]) -> dict[str, float | None]:
    return {
        task: max((row.scores[task] for row in rows if task in row.scores), default=None) for task in tasks
    }


def _protocols(benches: Sequence[BenchRecord]) -> list[str]:
    notes = {
        f"{b.task}: {b.n} questions, {b.shots} examples in the prompt, protocol {b.protocol}, {b.dtype}"
        for b in benches
    }
    return sorted(notes)


def _gate_title(gate: GateRecord) -> str:
    titles = {
        "promote": f"version {gate.challenger} becomes champion",
        "keep": "not promoted" if gate.champion is None else f"version {gate.champion} stays champion",
        "same": f"version {gate.challenger} is the champion already",
    }
    return f"version {gate.challenger} waits to be promoted" if gate.waits else titles[gate.decision]


def _facts(study: Study, trials: Sequence[TrialRecord]) -> list[tuple[str, str]]:
    """Return what the results depend on (base, data, software, machine), with several values if trials differ."""

    def among(values: Sequence[Any]) -> str:
        return ", ".join(sorted({str(value) for value in values if value not in (None, "")})) or "–"

    packages = sorted({name for trial in trials for name in trial.versions})
    return [
        ("base model", among([t.base for t in trials]) if trials else study.model.base),
        ("base revision", among([t.base_revision for t in trials] or [study.model.revision])),
        ("data digest", among([t.data_digest for t in trials])),
        ("settings digest", among([t.settings_digest for t in trials])),
        ("device", among([t.device for t in trials])),
        ("seed", str(study.seed)),
        ("algorithm", " ".join([study.search.algorithm, *_settings(study.search.settings)])),
        *[(name, among([t.versions.get(name) for t in trials])) for name in packages],
    ]


def _settings(settings: dict[str, Any]) -> list[str]:
    return [f"{name}={value}" for name, value in settings.items()]


def _commands(study: Study, gate: GateRecord | None) -> str:
    lines = [
        "retune run study.yaml",
        "",
        "# the trials in MLflow",
        f"mlflow ui --backend-store-uri {study.tracking.uri}"
        if not study.tracking.uri.startswith("http")
        else f"# {study.tracking.uri}",
    ]
    if gate is not None:
        lines += [
            "",
            "# which version is champion; back to the one before",
            f"retune promote {gate.model} --tracking {study.tracking.uri} --show",
            f"retune promote {gate.model} --tracking {study.tracking.uri} --rollback",
        ]
    return "\n".join(lines)
