"""TensorBoard and Weights & Biases beside MLflow, each by its own library, if a study enables them.

Like the tracker they never stop or delay a training: calls are queued and made by a thread, and a board that fails is dropped
with a warning. The records have all data; a board can be filled from them again.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import netrc
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from retune.records import BenchRecord, TrialRecord
from retune.space import Assignment
from retune.study import Tracking

log = logging.getLogger("retune.tracking")
_CLOSE_SECONDS = 60.0


class TensorBoard:
    """A folder of event files for each trial: its curves by optimiser step, its setting and final values as hparams.

    Args:
        folder: of the search; ``tensorboard --logdir`` shows it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, Any] = {}

    def start(self, trial: str, number: int, role: str, assignment: Assignment, seed: int) -> None:
        """Start a trial; delete the event files of an interrupted attempt."""
        if writer := self._open.pop(trial, None):
            writer.close()
        shutil.rmtree(self.folder / trial, ignore_errors=True)
        self._writer(trial)

    def metric(self, trial: str, name: str, value: float, step: int) -> None:
        """Write one measurement."""
        self._writer(trial).add_scalar(name, value, step)
        self._writer(trial).flush()

    def finish(self, record: TrialRecord) -> None:
        """Write final values and setting."""
        from torch.utils.tensorboard.summary import hparams

        writer = self._writer(record.trial)
        final = {f"final/{name}": value for name, value in record.values.items() if math.isfinite(value)}
        setting = {**record.assignment, "role": record.role, "seed": record.seed}
        for summary in hparams(setting, final):
            writer.file_writer.add_summary(summary)
        for name, value in final.items():
            writer.add_scalar(name, value, record.steps)
        if record.reason:
            writer.add_text("reason", record.reason)
        self._open.pop(record.trial).close()

    def benchmark(self, record: BenchRecord) -> None:
        """Write a score."""
        self._writer(record.model).add_scalar(f"bench/{record.task}", record.score, 0)
        self._open.pop(record.model).close()

    def close(self) -> None:
        """Close what is open."""
        for writer in self._open.values():
            writer.close()
        self._open.clear()

    def _writer(self, trial: str) -> Any:
        if trial not in self._open:
            from torch.utils.tensorboard import SummaryWriter

            self._open[trial] = SummaryWriter(str(self.folder / trial))
        return self._open[trial]


class WandB:
    """A run of Weights & Biases for each trial, in a group for the search; its own variables (WANDB_MODE, …) hold.

    Args:
        project: the project's name, or ``entity/project``. group: of the runs. search: makes their ids.
        folder: local folder for its files.
    """

    def __init__(self, project: str, group: str, search: str, folder: Path) -> None:
        self.entity, _, self.project = project.rpartition("/")
        self.group, self.search, self.folder = group, search, folder
        self._open: dict[str, Any] = {}

    def start(self, trial: str, number: int, role: str, assignment: Assignment, seed: int) -> None:
        """Start a trial or resume its run: the run's id is made from the trial's name."""
        self._run(trial).config.update({**assignment, "role": role, "seed": seed}, allow_val_change=True)

    def metric(self, trial: str, name: str, value: float, step: int) -> None:
        """Log one measurement; its axis is the optimiser step."""
        self._run(trial).log({name: value, "optimiser_step": step})

    def finish(self, record: TrialRecord) -> None:
        """Set final values and end the run, with exit code 1 unless the trial completed."""
        run = self._run(record.trial)
        run.summary.update({name: value for name, value in record.values.items() if math.isfinite(value)})
        run.summary.update({"status": record.status, "seconds": record.seconds})
        if record.reason:
            run.summary["reason"] = record.reason
        self._open.pop(record.trial).finish(exit_code=0 if record.status == "completed" else 1)

    def benchmark(self, record: BenchRecord) -> None:
        """Add a score to the trial's run."""
        self._run(record.model).summary[f"bench/{record.task}"] = record.score
        self._open.pop(record.model).finish()

    def close(self) -> None:
        """End what is open, and the library's own process."""
        import wandb

        for run in self._open.values():
            run.finish(exit_code=255)  # marks it as crashed; a later run resumes it by its id
        self._open.clear()
        wandb.teardown()

    def _run(self, trial: str) -> Any:
        if trial not in self._open:
            import wandb

            self.folder.mkdir(parents=True, exist_ok=True)
            run = wandb.init(
                project=self.project,
                entity=self.entity or None,
                group=self.group,
                name=trial,
                id=f"{self.search}-{trial}",
                resume="allow",
                reinit="create_new",
                dir=str(self.folder),
                settings=wandb.Settings(silent=True, console="off"),
            )
            run.define_metric("*", step_metric="optimiser_step")
            self._open[trial] = run
        return self._open[trial]


Board = TensorBoard | WandB


class Boards:
    """The boards of a study, behind the tracker's own methods.

    Args:
        boards: by name. done: a local file with the names of what was sent completely, so that a repeated run of the study does
            not send it twice.
    """

    def __init__(self, boards: dict[str, Board], done: Path) -> None:
        self._boards, self._done_file = boards, done
        self._done = set(done.read_text().split("\n")) if done.is_file() else set()
        self._shown: set[tuple[str, str, int]] = set()
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, daemon=True, name="boards")
        if boards:
            self._thread.start()

    def start_trial(self, trial: str, number: int, role: str, assignment: Assignment, seed: int) -> None:
        """Start a trial, unless it was sent completely; one that is continued after early stopping is sent again."""
        self._shown = {point for point in self._shown if point[0] != trial}
        self._each(trial, lambda board: board.start(trial, number, role, assignment, seed))

    def metric(self, trial: str, name: str, value: float, step: int) -> None:
        """Show one measurement."""
        if math.isfinite(value):
            self._shown.add((trial, name, step))
            self._each(trial, lambda board: board.metric(trial, name, float(value), int(step)))

    def finish_trial(self, record: TrialRecord) -> None:
        """End a trial, after sending those of its measurements that `metric` was not called with."""
        for name, curve in record.curves.items():
            for point in curve:
                if (record.trial, name, point.step) not in self._shown:
                    self.metric(record.trial, name, point.value, point.step)
        whole = record.status != "early_stopped"
        self._each(record.trial, lambda board: board.finish(record), done=whole)

    def benchmark(self, record: BenchRecord) -> None:
        """Show a score on its trial."""
        self._each(
            f"{record.model} {record.task} {record.inputs_digest}",
            lambda board: board.benchmark(record),
            done=True,
        )

    def close(self) -> None:
        """Wait up to `_CLOSE_SECONDS` for the queued calls, and end."""
        if self._thread.is_alive():
            for name in list(self._boards):
                self._calls.put(self._call(name, lambda board: board.close()))
            self._calls.put(None)
            self._thread.join(_CLOSE_SECONDS)

    def _each(self, what: str, action: Callable[[Board], None], done: bool = False) -> None:
        for name in list(self._boards):
            if f"{name} {what}" not in self._done:
                self._calls.put(self._call(name, action, f"{name} {what}" if done else ""))

    def _call(self, name: str, action: Callable[[Board], None], done: str = "") -> Callable[[], None]:
        def call() -> None:
            board = self._boards.get(name)
            if board is None:
                return
            try:
                action(board)
            except Exception as error:  # any error of the library: a board must not stop a training
                log.warning("%s is not used any more in this run: %s: %s", name, type(error).__name__, error)
                self._boards.pop(name, None)
                return
            if done:
                self._done_file.parent.mkdir(parents=True, exist_ok=True)
                with self._done_file.open("a") as file:
                    file.write(f"{done}\n")

        return call

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


def open_boards(asked: Tracking, study: str, search: str, work: Path) -> Boards:
    """Return the boards that a study enables; a board is opened at its first call.

    Args:
        asked: the study's section. study, search: their names. work: the study's local folder.
    """
    boards: dict[str, Board] = {}
    if asked.tensorboard:
        boards["tensorboard"] = TensorBoard(Path(asked.tensorboard) / study / search)
    if asked.wandb:
        boards["wandb"] = WandB(asked.wandb, f"{study}-{search}", search, work / "tracking" / "wandb")
    return Boards(boards, work / "tracking" / f"{search}.boards")


def problems(asked: Tracking) -> Iterator[str]:
    """Yield the reasons why an enabled board cannot be used on this machine, without importing its library."""
    for key in ("tensorboard", "wandb"):
        if getattr(asked, key) and importlib.util.find_spec(key) is None:
            yield f"tracking.{key}: the package {key} is not installed: pip install 'retune[{key}]', or remove the key"
    if asked.wandb and importlib.util.find_spec("wandb") and not _knows_key():
        yield (
            "tracking.wandb: Weights & Biases needs a login: `wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline to "
            "keep the runs on this machine"
        )


def _knows_key() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
