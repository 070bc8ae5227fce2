"""Terminal output of a run: the steps, a progress bar, and the final table."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from retune.cli._console import Console

if TYPE_CHECKING:
    from retune.steps.outcome import Outcome
    from retune.workspace.progress import Progress as StudyProgress

BEST_ROWS = 5
_SHORT = {"learning_rate": "lr", "weight_decay": "decay"}
LABELS = {
    "mix": "mix the data",
    "search": "search",
    "benchmark": "benchmark",
    "select": "select",
    "register": "register",
    "promote": "gate and promote",
    "report": "report",
}


class Display:
    """Shows which steps are up to date and the progress of the running one.

    In a terminal by a progress bar; elsewhere by a line whenever a trial is done. Each step ends with a line of its own.

    Args:
        states: step -> whether it is up to date before the run.
        quiet: show nothing.

    """

    def __init__(self, states: dict[str, bool], quiet: bool = False) -> None:
        self._states = states
        self._open = [step for step, done in states.items() if not done]
        self._console = Console(quiet=quiet, stderr=True)
        self._bar = Progress(
            _column("description"), BarColumn(bar_width=24), _column("fields[count]", justify="right"),
            _column("fields[best]"), _column("fields[left]"), console=self._console, transient=True,
            disable=not self._console.is_terminal,
        )  # fmt: skip
        self._task: TaskID | None = None
        self._trials: dict[str, TaskID] = {}
        self._step = ""
        self._last = (-1, -1)

    def __enter__(self) -> Display:
        for step, done in self._states.items():
            if done:
                self._console.print(_marked("✓", "green", f" {LABELS[step]}: up to date"))
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish(self._open if kind is None else ())
        self._bar.stop()

    def update(self, progress: StudyProgress | None) -> None:
        """Show the latest progress."""
        if progress is None:
            return
        if progress.step != self._step:
            # A short step may begin and end between two looks
            done = self._open.index(progress.step) if progress.step in self._open else 0
            self._finish(self._open[:done])
            self._step = progress.step
        if self._step not in LABELS:
            return
        if self._task is None:
            self._task = self._bar.add_task(LABELS[self._step], total=None, count="", best="", left="")
        share = progress.done + sum(progress.running.values())
        total = progress.total or len(progress.running) or None
        best = "" if progress.best is None else f"best {progress.best:.4f}"
        if progress.base is not None and best:
            best += f" (base {progress.base:.4f})"
        if progress.stopped:
            best += f", {progress.stopped} stopped early"
        if progress.failed:
            best += f", {progress.failed} failed"
        left = "" if progress.left is None else f"about {duration(progress.left)} left"
        name = LABELS[self._step]
        if progress.settings:
            name = f"{name}: {progress.settings_done} of {progress.settings} settings; with base and repeats"
        self._bar.update(
            self._task,
            description=name,
            completed=round(share, 2),
            total=total,
            count=f"{int(share)}/{total}"
            if progress.total
            else f"{100 * share / total:.0f} %"
            if total
            else "",
            best=best,
            left=left,
        )
        self._show_trials(progress)
        if (
            not self._console.is_terminal
            and progress.step == "search"
            and progress.total
            and (progress.done, progress.total) != self._last
        ):
            self._last = (progress.done, progress.total)
            text = f"search: {_counted(progress)}, {best or 'no result yet'}, {left or 'time left not known yet'}"
            self._console.print(text, soft_wrap=True)  # a pipe or log has no width

    def _show_trials(self, progress: StudyProgress) -> None:
        """Show a line for each running trial: its share, epochs and last loss."""
        for name in [name for name in self._trials if name not in progress.running]:
            self._bar.remove_task(self._trials.pop(name))
        for name, share in progress.running.items() if progress.settings else ():
            if name not in self._trials:
                self._trials[name] = self._bar.add_task(f"  {name}", total=1, count="", best="", left="")
            facts = [f"epoch {progress.epochs[name]:.1f}"] if name in progress.epochs else []
            facts += [f"loss {progress.losses[name]:.4f}"] if name in progress.losses else []
            self._bar.update(
                self._trials[name], completed=share, count=f"{100 * share:.0f} %", best=", ".join(facts)
            )

    def _finish(self, steps: Iterable[str]) -> None:
        """Take the bars of the running step away, and print a line for each of these steps."""
        for task in (*([] if self._task is None else [self._task]), *self._trials.values()):
            self._bar.remove_task(task)
        self._task, self._trials = None, {}
        for step in list(steps):
            self._open.remove(step)
            self._console.print(_marked("✓", "green", f" {LABELS[step]}"))


def _counted(progress: StudyProgress) -> str:
    """Return how far a search is: in settings of the study, and in trials, which include base and repeats."""
    trials = f"{progress.done} of {progress.total} trials"
    if not progress.settings:
        return trials
    return f"{progress.settings_done} of {progress.settings} settings ({trials}, with base and repeats)"


def show_outcome(outcome: Outcome, study_file: str, overrides: tuple[str, ...]) -> None:
    """Print the best trials with base and default, the decision, and the next commands."""
    from retune.selection.comparison import summary

    console = Console()
    if not console.is_terminal:
        console.width = 110  # wide enough for the table: a pipe or log has no width
    selection = outcome.selection
    console.print()
    console.print(_table(outcome))
    if outcome.pareto:
        console.print(_pareto_table(outcome))
    for name, spread in selection.spread.items():
        console.print(
            f"{_label(name, outcome)}: {spread.mean:.4f} ± {spread.sd:.4f} over {spread.n} seeds (mean, standard deviation)"
        )
    if outcome.failed:
        console.print(f"{outcome.failed} of {outcome.trials} trials failed; the report says why")
    if outcome.stopped_by != "trials":
        console.print(f"the search was ended by its limit of {outcome.stopped_by}", style="yellow")
    for finding in selection.findings:
        console.print(_marked("note:", "yellow", f" {finding}"))
    console.print(f"chosen: {selection.chosen}, {selection.rule}")
    for against in (selection.base, selection.default):
        found = [comparison for comparison in selection.comparisons if comparison.against == against]
        if found:
            console.print(f"  {summary(found)}")
    _print_decision(console, outcome)
    _print_commands(console, outcome, study_file, overrides)


def _print_decision(console: Console, outcome: Outcome) -> None:
    """Print what the gate decided, and the rules that were not met."""
    model, gate = outcome.model, outcome.gate
    if gate.decision == "same":
        decision = Text(f"{model} version {gate.challenger} is the champion already")
    elif gate.decision == "keep":
        left = gate.champion or "(none)"
        decision = _marked("not promoted", "yellow", f": {model} version {left} stays the champion")
    elif gate.waits:
        decision = _marked(
            "passed", "green", f": {model} version {gate.challenger} waits for `retune promote`"
        )
    else:
        decision = _marked("promoted", "green", f": {model} version {gate.challenger} is now the champion")
    console.print(decision)
    for rule in gate.rules:
        if not rule["passed"]:
            console.print(_marked("  ✗", "red", f" {rule['text']}"))


def _print_commands(console: Console, outcome: Outcome, study_file: str, overrides: tuple[str, ...]) -> None:
    """Print what to open, and the commands that show, continue and undo the study."""
    kept = [override for override in overrides if override.partition("=")[0] != "search.trials"]
    again = shlex.join(["retune", "run", study_file, *kept, f"search.trials={outcome.trials * 2}"])
    tracking = shlex.quote(_relative(outcome.tracking))
    console.print()
    for line in (
        f"open   {shlex.quote(_relative(outcome.report))}",
        f"look   mlflow ui --backend-store-uri {tracking}",
        f"more   {again}",
        f"undo   retune promote {outcome.model} --rollback --tracking {tracking}",
    ):
        console.print(line, soft_wrap=True)


def _table(outcome: Outcome) -> Table:
    selection = outcome.selection
    singles = [row for row in selection.rows if row.role != "repeat"]
    best = [row for row in singles if row.role != "base"][:BEST_ROWS]
    marked = [row for row in singles if row.trial in (selection.base, selection.default, selection.chosen)]
    rows = sorted({row.trial: row for row in best + marked}.values(), key=lambda row: singles.index(row))
    names = list(next((row.assignment for row in rows if row.assignment), {}))
    table = Table(
        title=f"{outcome.study}: {outcome.trials} settings",
        title_justify="left",
        title_style="bold",
        box=SIMPLE,
    )
    for heading in (
        "trial",
        *(_SHORT.get(name, name) for name in names),
        _words(selection.metric),
        "gain",
    ):
        table.add_column(
            heading, justify="left" if heading == "trial" else "right", no_wrap=heading == "trial"
        )
    for task in selection.tasks:
        table.add_column(task, justify="right", no_wrap=True)
    for row in rows:
        gain = "" if row.role == "base" or row.gain_over_base is None else f"{row.gain_over_base:+.4f}"
        scores = [f"{100 * row.scores[task]:.1f}" if task in row.scores else "" for task in selection.tasks]
        values = [_value(row.assignment.get(name)) for name in names]
        style = "bold" if row.trial == selection.chosen else None
        table.add_row(_label(row.trial, outcome), *values, f"{row.objective:.4f}", gain, *scores, style=style)
    return table


def _pareto_table(outcome: Outcome) -> Table:
    first = outcome.pareto[0]
    names = [*first.assignment, *first.values]
    table = Table(
        title=f"Pareto set: no other setting is better in all of {_words(', '.join(first.values))}",
        title_justify="left",
        title_style="bold",
        box=SIMPLE,
    )
    for heading in ("trial", *(_SHORT.get(name, _words(name)) for name in names)):
        table.add_column(heading, justify="left" if heading == "trial" else "right")
    for row in outcome.pareto:
        values = [f"{row.values[name]:.4f}" for name in row.values]
        table.add_row(_label(row.trial, outcome), *map(_value, row.assignment.values()), *values)
    return table


def _column(field: str, **options: Any) -> TextColumn:
    """Return a column of the progress bars with a field of each task, as it is."""
    return TextColumn(f"{{task.{field}}}", markup=False, **options)


def _marked(mark: str, colour: str, text: str) -> Text:
    """Return a line whose first words are coloured."""
    return Text.assemble((mark, colour), text)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _label(trial: str, outcome: Outcome) -> str:
    selection = outcome.selection
    notes = {selection.base: "base", selection.default: "default"}
    return trial.removeprefix("trial-") + (f" {notes[trial]}" if trial in notes else "")


def _value(value: object) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _relative(uri: str) -> str:
    """Return a path below the current folder relative to it, which is shorter to read and to type."""
    here = f"{Path.cwd()}/"
    return uri.replace(f"sqlite:///{here}", "sqlite:///").removeprefix(here)


def duration(seconds: float) -> str:
    """Return a duration for display: ``48 s``, ``3:05``, ``2 h 10 min``."""
    if seconds < 60:
        return f"{math.ceil(seconds)} s"
    if seconds < 3600:
        return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
