"""A retuning from beginning to end: plan, acquire the lease, run within the budget, propose or promote, notify."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from retune import gpus, outages
from retune.errors import Interrupted, RetuneError, first_line
from retune.registry import promotion
from retune.registry.aliases import aliases
from retune.retuning import changes, forge, proposal
from retune.retuning.lease import HEARTBEAT_SECONDS, Lease, Retuning, Retunings, stop_when
from retune.steps import outcome as outcomes
from retune.steps import plan as steps_plan
from retune.steps.outcome import Outcome
from retune.study import Study

Stops = Callable[[], int]
Runner = Callable[[Study, Stops], None]


@dataclass(frozen=True)
class Options:
    """How to retune.

    Attributes:
        gpu_hours: budget of all retunings of the last `days` together; None: no limit.
        pull_request: folder of the repository for the proposal; None: no pull request.
        on_cluster: whether the steps run in pods.
        beat_seconds: time between two heartbeats, see `retune.retuning.lease`.
    """

    gpu_hours: float | None = None
    days: float = 30.0
    pull_request: str | None = None
    on_cluster: bool = False
    beat_seconds: float = HEARTBEAT_SECONDS


@dataclass
class Plan:
    """What a retuning would do, and why.

    Attributes:
        steps: the steps that are out of date; if empty, nothing starts.
        reasons: a line for each input that changed.
        inputs: digests of all inputs.
        spent, left: GPU hours; `left` is None without a budget.
        gpus: the number of GPUs that the run would hold.
        last: number and state of the last retuning.
        holder: owner of a retuning that is running now, according to its record.
        waits: a sentence on a version that passed its gate but was not proposed yet.
    """

    steps: list[str]
    reasons: list[str]
    inputs: dict[str, str]
    spent: float
    left: float | None
    gpus: int
    last: str | None = None
    holder: str | None = None
    waits: str | None = None

    @property
    def starts(self) -> bool:
        """Whether a study would run."""
        return bool(self.steps) and self.holder is None and (self.left is None or self.left > 0)


@dataclass
class Result:
    """The outcome of a retuning; `retuning` is its number, None if nothing had to be done."""

    study: str
    retuning: int | None = None
    reasons: list[str] = field(default_factory=list)
    decision: str | None = None
    model: str = ""
    challenger: str | None = None
    champion: str | None = None
    promoted: bool = False
    pull_request: str | None = None
    gpu_hours: float = 0.0
    report: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    def sentence(self) -> str:
        """Return one sentence for people."""
        if self.retuning is None:
            return f"{self.study}: nothing changed, nothing started"
        version = f"{self.model} version {self.challenger}"
        if self.promoted:
            text = f"{version} is the champion now"
        elif self.decision == "promote":
            text = f"{version} passed its gate and waits for approval: {self.pull_request or f'retune promote {self.model}'}"
        elif self.decision == "same":
            text = f"{version} is the champion already"
        else:
            text = f"{self.model} keeps its champion, {self.champion or 'none'}; version {self.challenger} did not pass its gate"
        return f"{self.study}: {text} ({self.gpu_hours:.3g} GPU hours; {'; '.join(self.reasons)})"


def plan(study: Study, options: Options) -> Plan:
    """Return what would start and why; nothing is run or written.

    Raises:
        InputError: if a file of the study is missing, or a pull request could not be made from here.
    """
    if options.pull_request is not None:
        forge.require_repository()
    states = steps_plan.plan(study)
    now = changes.inputs(study)
    entries = Retunings(study.root).entries()
    finished = [entry for entry in entries if entry.state == "done" and entry.inputs]
    last = entries[-1] if entries else None
    steps = [step for step, done in states.items() if not done]
    lines = changes.reasons(finished[-1].inputs if finished else None, now) if steps else []
    if steps and last is not None and last.state in ("stopped", "failed"):
        lines.append(
            f"retuning {last.number} {last.state}: {first_line(last.problem or 'no reason was noted')}"
        )
    if steps and not lines:
        lines = [f"not up to date: {', '.join(steps)}"]
    spent = Retunings(study.root).spent(options.days, entries)
    holder = (
        f"retuning {last.number} since {last.started} ({last.owner})"
        if last and last.state == "running"
        else None
    )
    return Plan(
        steps=steps, reasons=lines, inputs=now, spent=round(spent, 6), gpus=held_gpus(study, options.on_cluster),
        left=None if options.gpu_hours is None else round(max(0.0, options.gpu_hours - spent), 6),
        last=f"retuning {last.number}: {last.state}" if last else None, holder=holder,
        waits=_unproposed(study, entries) if options.pull_request is not None and not steps else None,
    )  # fmt: skip


def run(
    study: Study,
    planned: Plan,
    options: Options,
    runner: Runner,
    signals: Stops,
    notify: Callable[[str], None],
    env: Mapping[str, str],
) -> Result:
    """Carry out a plan and return its outcome.

    Args:
        study: already checked by the caller.
        planned: the result of `plan` for the same `options`.
        options: how to retune.
        runner: runs the study; returns when it has ended, or when its second argument requests a stop.
        signals: returns the number of stops requested by signals.
        notify: sends a notification.
        env: the environment, which names the forge and its token.

    Raises:
        AlreadyRunning: if another retuning of the study is running.
        Interrupted: if the budget is used up or a stop was requested; run again to resume.
        RetuneError: if a step, the push or the pull request failed.
    """
    if not planned.steps and planned.waits is None:
        return Result(study.name)
    target = None
    if options.pull_request is not None:  # so that a missing token is reported before GPU time is spent
        forge.require_repository()
        target = forge.Forge.from_environment(env)
    retunings = Retunings(study.root, options.beat_seconds)
    earlier = retunings.spent(options.days)
    if planned.steps and options.gpu_hours is not None and earlier >= options.gpu_hours:
        text = _used_up(options, earlier)
        notify(f"{study.name}: not started: {text}")
        raise Interrupted(text)
    try:
        with outages.long_waits(), retunings.acquire(planned.gpus, planned.inputs, planned.reasons) as lease:
            notify(
                f"{study.name}: retuning {lease.entry.number} starts: {'; '.join(planned.reasons or [planned.waits or ''])}"
            )
            if planned.steps:
                _run(study, lease, options, retunings, runner, signals)
            _record_decision(lease.entry, outcome := outcomes.read(study))
            if outcome.gate.waits and target is not None:
                lease.entry.pull_request = propose(
                    outcome, target, str(options.pull_request), planned.reasons, lease.gpu_hours
                )
    except (RetuneError, OSError) as error:
        notify(f"{study.name}: retuning {'stopped' if isinstance(error, Interrupted) else 'failed'}: {error}")
        raise
    entry = lease.entry
    result = Result(
        study.name, entry.number, planned.reasons, entry.decision, entry.model, entry.challenger, entry.champion,
        entry.promoted, entry.pull_request, entry.gpu_hours, outcome.report,
    )  # fmt: skip
    notify(result.sentence())
    return result


def propose(outcome: Outcome, target: forge.Forge, folder: str, reasons: list[str], gpu_hours: float) -> str:
    """Push a branch with the proposed champion and open a pull request.

    Args:
        outcome: of the study; its challenger is proposed.
        target: the forge of this CI job.
        folder: of the repository for the files.
        reasons: why the retuning ran.
        gpu_hours: that it held.

    Returns:
        the address of the request, or the name of the branch if the job runs on no forge.

    Raises:
        RetuneError: if the push or the request is refused.

    """
    branch = proposal.BRANCH.format(model=outcome.model)
    page = proposal.page(outcome, reasons, gpu_hours)
    forge.push(branch, proposal.files(outcome, folder, page), proposal.title(outcome))
    if target.kind is None:
        return f"branch {branch}"
    return target.open(branch, proposal.title(outcome), page)


def apply_pin(uri: str, wanted: proposal.Pin, revert: bool = False) -> str:
    """Make the version of a merged pin the champion; return a sentence on what changed.

    Args:
        uri: MLflow tracking URI.
        wanted: the pin.
        revert: roll back if the pin names the previous champion, as after the revert of a merge.

    Raises:
        ChampionChanged: if the champion is no longer the one that the gate compared it with.
        InputError: if there is no such version.
    """
    present = aliases(uri, wanted.model)
    if present.champion == wanted.version:
        return f"{wanted.model} version {wanted.version} is the champion already"
    if revert and present.previous == wanted.version:
        promotion.rollback(uri, wanted.model)
        return f"{wanted.model} is back at version {wanted.version}; it was {present.champion}"
    promotion.promote(uri, wanted.model, wanted.version, wanted.champion)
    return f"{wanted.model} version {wanted.version} is the champion now; it was {present.champion or 'none'}"


def held_gpus(study: Study, on_cluster: bool) -> int:
    """Return how many GPUs a run holds; 1 for a run on CPUs, whose hours count the same."""
    search, per_pod = study.search, study.cluster.gpus
    if study.engine.kind == "katib":
        return max(1, search.at_once * per_pod)
    if on_cluster:
        return max(1, per_pod)
    here = len(gpus.visible())
    return max(1, here if search.parallel == "auto" else min(search.at_once, here))


def _run(
    study: Study, lease: Lease, options: Options, retunings: Retunings, runner: Runner, signals: Stops
) -> None:
    others = [entry for entry in retunings.entries() if entry.number != lease.entry.number]
    earlier = retunings.spent(options.days, others)
    left = None if options.gpu_hours is None else options.gpu_hours - earlier
    stops = stop_when(lease, left, signals)
    try:
        runner(study, stops)
    except RetuneError as error:
        if lease.lost:
            raise Interrupted(
                "another retuning has taken over because this one missed its heartbeats"
            ) from error
        if isinstance(error, Interrupted) and left is not None and stops() > signals():
            raise Interrupted(f"{_used_up(options, earlier + lease.gpu_hours)}; {error}") from error
        raise


def _used_up(options: Options, spent: float) -> str:
    return (
        f"the budget of {options.gpu_hours:g} GPU hours in {options.days:g} days is used up ({spent:.3g} held); "
        "a later run resumes what was started, once there is budget again"
    )


def _record_decision(entry: Retuning, outcome: Outcome) -> None:
    gate = outcome.gate
    entry.decision, entry.model = gate.decision, gate.model
    entry.challenger, entry.champion = gate.challenger, gate.champion
    entry.promoted = gate.decision == "promote" and not gate.waits


def _unproposed(study: Study, entries: list[Retuning]) -> str | None:
    """Return the version that waits for approval but was not proposed, for example because the forge was unreachable."""
    with suppress(RetuneError, FileNotFoundError):
        gate = outcomes.read(study).gate
        proposed = any(entry.challenger == gate.challenger and entry.pull_request for entry in entries)
        if (
            gate.waits
            and not proposed
            and aliases(study.tracking.uri, gate.model).champion != gate.challenger
        ):
            return f"{gate.model} version {gate.challenger} passed its gate but was not proposed yet"
    return None
