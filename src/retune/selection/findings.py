"""Findings: warnings that a person must read before believing the result of a study."""

from __future__ import annotations

from collections.abc import Sequence

from retune.records import TrialRecord
from retune.selection.comparison import MEAN, points
from retune.selection.ranking import gain
from retune.selection.record import Row, Selection
from retune.study import Objective

_EQUAL = 1e-12  # differences up to here come from rounding


def findings(
    selection: Selection, objective: Objective, trials: Sequence[TrialRecord], decisive: str | None
) -> list[str]:
    """Return the findings, one sentence each; `decisive` is the task that chose, or ``mean``."""
    metric = selection.metric
    best = selection.row(selection.ranking[0]) if selection.ranking else None
    base, chosen = selection.row(selection.base), selection.row(selection.chosen)
    sentences = _on_objective(selection, objective, best, base, trials)
    won = chosen.gain_over_base if chosen is not None and chosen is not best else None
    if chosen is not None and won is not None and won <= _EQUAL:
        sentences.append(f"the chosen {chosen.trial} has no better {metric} than the untuned base")
    if chosen is not None:
        sentences += _on_scores(selection, chosen, best, decisive)
    sentences += _on_fidelity(selection, trials)
    failed = [t for t in trials if t.status == "failed"]
    if failed and len(failed) * 4 >= len(trials):
        sentences.append(f"{len(failed)} of {len(trials)} trials failed")
    return sentences


def _on_fidelity(selection: Selection, trials: Sequence[TrialRecord]) -> list[str]:
    """Return what to know about trials that were stopped early or trained on a part of the data."""
    sentences = []
    stopped = sum(t.status == "early_stopped" for t in trials)
    if stopped:
        sentences.append(
            f"{stopped} of {len(trials)} trials were stopped early; such a trial is never chosen, whatever its loss was then"
        )
    parts = [t.proxy for t in trials if t.proxy]
    if not parts:
        return sentences
    of = (
        f"{parts[0]['records']:,} of {parts[0]['of']:,} records"
        if "records" in parts[0]
        else "a part of the data"
    )
    settings, metric, a = len(selection.proxy_pairs), selection.metric, selection.proxy
    if a is None:
        sentences.append(
            f"the search trained on {of}; {settings} settings were trained on both them and all data, too few to say how the "
            f"{metric} on both go together"
        )
        return sentences
    interval = "" if a.low is None or a.high is None else f", 95 % interval {a.low:.2f} to {a.high:.2f}"
    sentences.append(
        f"the search trained on {of}; over the {a.n} settings that were trained on both them and all data, Spearman's "
        f"correlation of the {metric} is {a.spearman:.2f}{interval}"
    )
    return sentences


def _on_objective(
    selection: Selection,
    objective: Objective,
    best: Row | None,
    base: Row | None,
    trials: Sequence[TrialRecord],
) -> list[str]:
    sentences = []
    metric, default = selection.metric, selection.row(selection.default)
    if best is None:
        sentences.append(
            f"no trained setting completed with a {metric} inside the constraints: nothing can be chosen"
        )
    elif selection.chosen is None:
        sentences.append(
            f"nothing can be chosen: no candidate was scored on all of {', '.join(selection.tasks)}"
        )
    if base is None:
        if not any(t.role == "base" and t.status == "completed" for t in trials):
            sentences.append("the untuned base has no result, so no gain can be stated")
    elif best is not None and gain(best.objective, base.objective, objective) <= _EQUAL:
        sentences.append(
            f"best is no better than the untuned base: {metric} {best.objective:.6g} ({best.trial}) "
            f"against {base.objective:.6g}"
        )
    if best is not None and default is not None and best.trial != default.trial:
        sentences += _on_seeds(selection, best, default)
    elif best is not None and default is not None:
        sentences.append(
            f"the search found nothing better than the default setting ({metric} {best.objective:.6g})"
        )
    return sentences


def _on_seeds(selection: Selection, best: Row, default: Row) -> list[str]:
    """Return a warning if the gain over the default setting is no larger than the spread over seeds."""
    spreads = [s.sd for s in (selection.spread.get(best.trial), selection.spread.get(default.trial)) if s]
    difference = abs(best.objective - default.objective)
    if not spreads or difference > max(spreads):
        return []
    return [
        f"the gain over the default setting, {difference:.6g}, is within the spread over seeds "
        f"(standard deviation {max(spreads):.6g})"
    ]


def _on_scores(selection: Selection, chosen: Row, best: Row | None, decisive: str | None) -> list[str]:
    """Return warnings about scores that fell, and about a choice by scores that do not differ significantly."""
    sentences = []
    if best is not None and chosen is not best:
        lead = next((c for c in selection.comparisons if (c.against, c.task) == (best.trial, decisive)), None)
        if lead is not None and lead.verdict != "better":
            sentences.append(
                f"{chosen.trial} was chosen before {best.trial}, which has the best {selection.metric}, for a "
                f"{'mean score' if lead.task == MEAN else 'score'} that differs by {points(lead.difference)} points: "
                f"{'not tested' if lead.verdict == 'untested' else 'no difference beyond noise'}, so it may be luck"
            )
    to_base = [c for c in selection.comparisons if c.against == selection.untuned and c.task != MEAN]
    if to_base and all(c.verdict in ("noise", "equal") for c in to_base):
        sentences.append(
            f"no score of the chosen {chosen.trial} differs from the untuned base's beyond noise: "
            f"{', '.join(f'{c.task} {points(c.difference)} points' for c in to_base)}"
        )
    by_task = {c.task: c for c in selection.comparisons if c.against == selection.untuned}
    worse = [task for task in selection.tasks if task in by_task and by_task[task].difference < -_EQUAL]
    if worse:
        losses = ", ".join(
            f"{task} {points(by_task[task].difference)} points"
            f" ({'beyond noise' if by_task[task].verdict == 'worse' else 'no difference beyond noise'})"
            for task in worse
        )
        sentences.append(f"the chosen {chosen.trial} scores below the untuned base on {losses}")
    return sentences
