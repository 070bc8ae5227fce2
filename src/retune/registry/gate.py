"""The gate: decides whether a challenger becomes champion, by a pure function that records its reasons.

A rule fails if a number that it needs was not measured. A gain must reach the larger of the study's minimum and the standard
deviation over seeds, since a smaller one may be chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from retune.records import BenchRecord, GateRecord, TrialRecord, now
from retune.selection.ranking import gain
from retune.selection.record import Spread
from retune.study import Gate, Objective


@dataclass(frozen=True)
class ChampionFacts:
    """What the registry knows of the current champion.

    Attributes:
        version: in the registry.
        objective: its value on the validation data of the challenger's study; None if not measured.
        scores: by task.
        adapter_digest: to recognise a challenger that is the same adapter.
        data_digest: of the validation data that `objective` was measured on; empty if unknown.
        base: name or path of its base model; base_revision: its pinned revision.

    """

    version: str
    objective: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    adapter_digest: str | None = None
    data_digest: str = ""
    trial: str = ""
    study: str = ""
    base: str = ""
    base_revision: str | None = None


def decide(
    gate: Gate,
    objective: Objective,
    model: str,
    version: str,
    challenger: TrialRecord,
    scores: Sequence[BenchRecord],
    base: TrialRecord | None,
    base_scores: Sequence[BenchRecord] = (),
    default: TrialRecord | None = None,
    champion: ChampionFacts | None = None,
    spread: Spread | None = None,
    study: str = "",
) -> GateRecord:
    """Decide whether to promote.

    Args:
        gate: the limits of the study.
        objective: the metric of the search.
        model: name in the registry.
        version: the challenger's version there.
        challenger: its trial.
        scores: its benchmark scores.
        base: the untuned base, on the same data.
        base_scores: its benchmark scores.
        default: the default setting; compared for information only.
        champion: None before the first promotion.
        spread: of the challenger's setting over seeds.
        study: name of the study.

    Returns:
        The record; ``promote`` if every rule passed, ``same`` if the challenger is the champion.

    """
    own = challenger.objective(objective.metric)
    sd = spread.sd if spread else None
    rules = [_completed(challenger, objective, own)]
    rules.append(
        _better("base", "the untuned base", objective, own, _of(base, objective), gate.min_gain_over_base, sd)
    )
    if champion is not None:
        name = f"champion version {champion.version}"
        minimum = gate.min_gain_over_champion
        rules.append(_better("champion", name, objective, own, champion.objective, minimum, sd))
    rules += _scores(gate, scores, base_scores, champion)
    rules += _notes(objective, own, default, spread, champion, challenger)
    decision: Literal["promote", "keep", "same"]
    if champion and champion.adapter_digest and champion.adapter_digest == challenger.adapter_digest:
        decision = "same"
    elif all(rule["passed"] for rule in rules):
        decision = "promote"
    else:
        decision = "keep"
    return GateRecord(
        model=model,
        challenger=version,
        champion=champion.version if champion else None,
        decision=decision,
        rules=rules,
        trial=challenger.trial,
        study=study,
        data_digest=challenger.data_digest,
        decided=now(),
    )


NOISE = 2.0
"""Standard deviations over seeds that a gain must have to be beyond noise."""


def beyond_noise(record: GateRecord) -> bool:
    """Return whether each gain that the gate requires is at least `NOISE` times the standard deviation over seeds.

    Without a measured spread (`search.repeats`) nothing is known about the noise, so the answer is no.
    """
    gains = [rule for rule in record.rules if rule["rule"].startswith("better than ")]
    return bool(gains) and all(
        rule["gain"] is not None and rule["spread"] is not None and rule["gain"] >= NOISE * rule["spread"]
        for rule in gains
    )


def _rule(name: str, passed: bool, text: str, *, binding: bool = True, **numbers: Any) -> dict[str, Any]:
    outcome = ("passed" if passed else "failed") if binding else "noted"
    return {"rule": name, "passed": passed or not binding, "outcome": outcome, "text": text, **numbers}


def _of(trial: TrialRecord | None, objective: Objective) -> float | None:
    return trial.objective(objective.metric) if trial else None


def _completed(challenger: TrialRecord, objective: Objective, own: float | None) -> dict[str, Any]:
    if own is None:
        text = f"{challenger.trial} has no finite {objective.metric} (status {challenger.status})"
    else:
        text = f"{challenger.trial} completed with {objective.metric} {own:.6g}"
    return _rule("completed", own is not None, text, value=own)


def _better(
    name: str,
    reference_name: str,
    objective: Objective,
    own: float | None,
    reference: float | None,
    minimum: float,
    sd: float | None,
) -> dict[str, Any]:
    rule = f"better than {name}"
    numbers: dict[str, Any] = {"value": own, "reference": reference, "least": minimum, "spread": sd}
    if own is None or reference is None:
        missing = "the challenger" if own is None else reference_name
        text = f"{missing} has no {objective.metric} on this validation data, so no gain is shown"
        return _rule(rule, False, text, gain=None, **numbers)
    gained = gain(own, reference, objective)
    needed = max(minimum, sd or 0.0)
    passed = gained > 0 and gained >= needed
    if minimum >= (sd or 0.0):
        limit = f"at least {minimum:.6g}" if minimum > 0 else "more than 0"
    else:
        limit = f"at least the spread over seeds, {sd:.6g},"
    text = (
        f"{objective.metric} {own:.6g} against {reference:.6g} of {reference_name}: "
        f"gain {gained:+.6g}, {limit} is needed"
    )
    return _rule(rule, passed, text, gain=gained, **numbers)


def _scores(
    gate: Gate,
    scores: Sequence[BenchRecord],
    base_scores: Sequence[BenchRecord],
    champion: ChampionFacts | None,
) -> list[dict[str, Any]]:
    own = {bench.task: bench for bench in scores}
    of_base = {bench.task: bench.score for bench in base_scores}
    of_champion = champion.scores if champion else {}
    rules = []
    for task in sorted(own.keys() | of_base.keys() | of_champion.keys()):
        name = f"score on {task}"
        source = (
            f"champion version {champion.version}" if champion and task in of_champion else "the untuned base"
        )
        reference = of_champion.get(task, of_base.get(task))
        bench = own.get(task)
        numbers: dict[str, Any] = {
            "value": bench.score if bench else None,
            "stderr": bench.stderr if bench else None,
            "n": bench.n if bench else None,
            "reference": reference,
            "most": gate.max_score_loss,
        }
        if bench is None:
            rules.append(
                _rule(name, False, f"{source} has a score on {task}, the challenger has none", **numbers)
            )
        elif reference is None:
            text = f"{task} {bench.score:.4f}: neither champion nor base has a score to compare with"
            rules.append(_rule(name, False, text, **numbers))
        else:
            lost = reference - bench.score
            text = (
                f"{task} {bench.score:.4f} (stderr {bench.stderr:.4f}, n {bench.n}) against {reference:.4f} "
                f"of {source}: change {bench.score - reference:+.4f}, a loss of at most {gate.max_score_loss:g} is allowed"
            )
            # 1e-12: a loss of exactly the limit must pass in spite of the subtraction's rounding
            rules.append(_rule(name, lost <= gate.max_score_loss + 1e-12, text, delta=-lost, **numbers))
    return rules


def _notes(
    objective: Objective,
    own: float | None,
    default: TrialRecord | None,
    spread: Spread | None,
    champion: ChampionFacts | None,
    challenger: TrialRecord,
) -> list[dict[str, Any]]:
    """Return rules that inform but do not decide."""
    notes = []
    reference = _of(default, objective)
    if own is not None and reference is not None:
        gained = gain(own, reference, objective)
        text = (
            f"{objective.metric} {own:.6g} against {reference:.6g} of the default setting: gain {gained:+.6g}"
        )
        notes.append(
            _rule("default setting", True, text, binding=False, gain=gained, value=own, reference=reference)
        )
    if spread is None:
        text = "the spread over seeds was not measured: a gain may be due to the seed"
        notes.append(_rule("spread over seeds", True, text, binding=False))
    else:
        text = f"{spread.n} seeds: mean {spread.mean:.6g}, standard deviation {spread.sd:.6g}"
        numbers = {"mean": spread.mean, "sd": spread.sd, "n": spread.n}
        notes.append(_rule("spread over seeds", True, text, binding=False, **numbers))
    other = champion is not None and (champion.base, champion.base_revision) != (
        challenger.base,
        challenger.base_revision,
    )
    if champion is not None and champion.base and other:
        text = f"the champion has another base: {champion.base} ({champion.base_revision})"
        notes.append(_rule("base model", True, text, binding=False))
    return notes
