"""A worker process of the local engine: loads the base model once and runs trials on it, one after another or side by side.

The protocol is JSON lines: tasks on standard input, events on standard output, everything else on standard error.
The first line of input is ``{"study": ..., "data_uri": ..., "pack": ...}``, each further one a TrialTask; end of input
ends the worker. With `pack` above 1, the tasks received train side by side.
Events: ``ready``; ``progress`` and ``metric`` of a running trial; ``done`` with the TrialRecord;
``refused`` if the input is invalid (exit code 2); ``stopped`` if something could not be read or written, such as on a
full disk, which is not the fault of the setting. SIGTERM saves checkpoints (exit code 75).
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TextIO

from retune.errors import (
    EXIT_BAD_INPUT,
    EXIT_INTERRUPTED,
    DiskFull,
    InputError,
    Interrupted,
    RetuneError,
    as_retune_error,
    sanitized,
)
from retune.processes import die_with_parent

if TYPE_CHECKING:
    from retune.events import Event
    from retune.records import TrialRecord
    from retune.trials.side_by_side import SideBySide
    from retune.trials.task import TrialTask


def _reserve_stdout() -> TextIO:
    """Return the real standard output, for events alone; what libraries print goes to standard error."""
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return events


def main() -> None:
    """Run the tasks from standard input."""
    die_with_parent()
    events = _reserve_stdout()
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    # Ctrl-C signals the whole process group; the engine decides what ends
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def emit(kind: str, **content: Any) -> None:
        events.write(json.dumps({"kind": kind, **content}) + "\n")

    def report(event: Event) -> None:
        if event.kind == "note":
            print(sanitized(f"{event.trial}: {event.text}" if event.trial else event.text), file=sys.stderr)
        else:
            emit(**asdict(event))

    def done(record: TrialRecord) -> None:
        emit("done", trial=record.trial, record=record.model_dump(mode="json"))

    setup = json.loads(sys.stdin.readline())

    from retune import models
    from retune.study import Study
    from retune.training.resident import ResidentBase
    from retune.trials.run_trial import run_trial
    from retune.trials.side_by_side import SideBySide, with_trial

    study = Study.model_validate(setup["study"])
    models.import_libraries(study.model)
    base = ResidentBase(study.model)
    emit("ready")
    try:
        if setup["pack"] > 1:
            several = SideBySide(study, setup["data_uri"], base, report, stopped.is_set)
            _side_by_side(several, done, stopped.is_set)
        else:
            for task in map(_task, sys.stdin):
                report_trial = with_trial(report, task.trial)
                done(run_trial(study, setup["data_uri"], task, base, report_trial, stopped.is_set))
                if stopped.is_set():
                    break
    except InputError as error:
        emit("refused", reason=str(error))
        sys.exit(EXIT_BAD_INPUT)
    except (RetuneError, OSError) as error:
        reported = as_retune_error(error)
        # A full disk is an `Interrupted` too, but nobody has requested it
        if isinstance(reported, DiskFull) or not isinstance(reported, Interrupted):
            emit("stopped", reason=str(reported), full=isinstance(reported, DiskFull))
        sys.exit(reported.exit_code)
    if stopped.is_set():
        sys.exit(EXIT_INTERRUPTED)


def _task(line: str) -> TrialTask:
    from retune.trials.task import TrialTask

    return TrialTask.model_validate_json(line)


def _side_by_side(
    several: SideBySide, done: Callable[[TrialRecord], None], stopped: Callable[[], bool]
) -> None:
    """Run the tasks that come on standard input side by side, as many as the memory allows."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    waiting: deque[TrialTask] = deque()
    more = True
    while (more or waiting or several.running) and not (stopped() and not several.running):
        while more and not (lines.empty() and (waiting or several.running)):
            line = lines.get()
            more = line is not None
            if line is not None:
                waiting.append(_task(line))
        while waiting and several.fits(waiting[0]):
            if (record := several.start(waiting.popleft())) is not None:
                done(record)
        for record in several.step():
            done(record)
        waiting.extend(several.set_aside())


if __name__ == "__main__":
    main()
