"""`retune trial`: train and validate one setting; the same program under every engine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from retune import store
from retune.cli import _options
from retune.cli._say import say
from retune.errors import EXIT_FAILED, InputError
from retune.processes import stop_signals
from retune.records import Role, TrialRecord, now
from retune.study import TUNABLE, Study, load, parse
from retune.study.training import WORDS

if TYPE_CHECKING:
    from retune.events import Event


_VISIBLE = ("rank", "alpha", "dropout", "learning_rate", "weight_decay")


class _Number(click.ParamType):  # type: ignore[type-arg]
    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float:
        """Return a whole number as int, so that records show 16 and not 16.0."""
        try:
            return int(value)
        except ValueError:
            try:
                return float(value)
            except ValueError:
                self.fail(f"must be a number, but got {value!r}", param, ctx)


def _hyper_parameters(function: Callable[..., None]) -> Callable[..., None]:
    """Add an option for each key that a search can tune; the help shows the common ones only, to fit a screen."""
    for name in reversed(TUNABLE):
        variable = f"RETUNE_HP_{name.upper()}"
        kind = click.STRING if name in WORDS else _Number()
        hidden = name not in _VISIBLE
        function = click.option(
            "--" + name.replace("_", "-"),
            name,
            type=kind,
            envvar=variable,
            help=f"Environment variable {variable}.",
            hidden=hidden,
        )(function)
    return function


@click.command(cls=_options.StudyCommand)
@click.argument("study")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--data", required=True, metavar="URI", help="Folder of mixed data (retune mix).")
@click.option(
    "--out", required=True, metavar="URI", help="Folder for the record, the adapter and checkpoints."
)
@click.option("--trial", "name", help="Name in the study.  [default: trial-<number>]")
@click.option(
    "--number", type=click.IntRange(min=0), default=1, show_default=True, help="Place in the study."
)
@click.option(
    "--role", type=click.Choice(get_args(Role)), default="search", show_default=True, help="base: no adapter."
)
@click.option("--seed", type=click.IntRange(min=0), help="Random seed.  [default: the study's]")
@_hyper_parameters
def command(
    study: str, overrides: tuple[str, ...], data: str, out: str, name: str | None, number: int, role: Role,
    seed: int | None, **setting: float | str | None,
) -> None:  # fmt: skip
    """Train and validate one setting of STUDY: a YAML file, or a resolved study as JSON (.json path or URI, or - for stdin).

    \b
    Examples:
      retune trial study.yaml --data artifacts/data --out artifacts/t1 --rank 16 --learning-rate 2e-4
      RETUNE_HP_RANK=16 retune trial s3://b/study.json --data s3://b/data --out s3://b/t1
      torchrun --nproc-per-node 8 -m retune trial study.yaml --data … --out …

    Every other tunable key of `training` also has an option and a variable (docs/trial.md); values not given come from the
    study. Each measurement is a line on stdout: `<time> validation_loss=<value>`. SIGTERM saves a checkpoint; run the
    command again to resume.

    \b
    Exit codes: 0 done; 1 failed (trial.json has the reason); 2 bad input; 75 interrupted, run again
    """
    # Before the imports, which take seconds: a stop meanwhile must not be lost
    with stop_signals() as signals:
        from retune import models, outages

        if "://" in study:  # in a pod of a search: if its record cannot be written, the training is lost
            outages.wait_long()
        chosen = _read(study, overrides)
        store.require_writable(out, "--out")
        models.import_libraries(chosen.model)
        from retune.training.resident import ResidentBase
        from retune.trials.run_trial import run_trial
        from retune.trials.task import TrialTask

        assignment = {key: value for key, value in setting.items() if value is not None}
        task = TrialTask(
            trial=name or f"trial-{number:03d}",
            number=number,
            role=role,
            assignment={} if role == "base" else assignment,
            seed=chosen.seed if seed is None else seed,
            folder=out,
            rungs=_rungs(chosen, role),
        )
        printer = _Printer()
        record = run_trial(chosen, data, task, ResidentBase(chosen.model), printer, lambda: signals() > 0)
    printer.end(record)
    if record.status != "completed":
        say(f"failed: {record.reason}", fg="red", err=True)
        sys.exit(EXIT_FAILED)


def _rungs(study: Study, role: Role) -> tuple[float, ...]:
    """Return the rungs at which losses are compared; Katib's median stopping has only the first."""
    stopping = study.search.stopping
    if stopping is None or role not in ("default", "search"):
        return ()
    return stopping.rungs[:1] if study.engine.kind == "katib" else stopping.rungs


def _read(study: str, overrides: tuple[str, ...]) -> Study:
    if study != "-" and not study.endswith(".json"):
        return load(Path(study), overrides)
    if overrides:
        raise InputError(f"a resolved study takes no overrides, but got {list(overrides)}", study)
    import json

    try:
        content = json.loads(sys.stdin.buffer.read() if study == "-" else store.read(study))
    except (OSError, ValueError) as error:
        raise InputError(f"the study must be readable JSON: {error}", study) from error
    if not isinstance(content, dict):
        raise InputError("a study is a JSON object", study)
    return parse(content, study)


class _Printer:
    """Prints metrics to stdout, one per line, for Katib's collector and for people, and the rest to stderr.

    Of several processes (torchrun) only the first prints.
    """

    def __init__(self) -> None:
        self.silent = os.environ.get("RANK", "0") != "0"
        self.measured: set[str] = set()

    def __call__(self, event: Event) -> None:
        if self.silent:
            return
        if event.kind == "metric":
            self.measured.add(event.name)
            say(f"{now()} {event.name}={event.value!r}")
        elif event.kind == "note":
            say(event.text, err=True)
        elif event.kind == "progress":
            text = f"step {event.step}/{event.steps}  loss {event.loss:.4f}  {event.tokens_per_second:,.0f} tokens/s"
            say(text, err=True)

    def end(self, record: TrialRecord) -> None:
        """Print the final value of each metric that was not printed yet, since any of them may be an objective.

        Of a trial that was finished before, all measurements are printed: Katib collects them from this pod's output.
        """
        if self.silent:
            return
        points = [] if self.measured else record.curves.get("validation_loss", [])
        for point in points:
            say(f"{point.time or record.finished} validation_loss={point.value!r}")
        done = self.measured | {"validation_loss" for _ in points}
        for name, value in record.values.items():
            if name not in done:
                say(f"{record.finished} {name}={value!r}")
