"""A worker process of the local engine: loads the base model once and runs trials on it, one after another.

Speaks JSON lines: tasks come on standard input, events go to standard output, everything else to standard error.
The first line of input is ``{"study": ..., "data_uri": ...}``, each further one a TrialTask; the end of input ends
the worker. Events: ``ready``; ``progress`` and ``metric`` of the running trial; ``done`` with the TrialRecord;
``refused`` where the input can never work (exit code 2); ``stopped`` where something could not be read or written, as on a
full disk, which is no setting's fault. SIGTERM saves the running trial's checkpoint (exit code 75).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
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
)
from retune.processes import die_with_parent

if TYPE_CHECKING:
    from retune.events import Event


def _own_stdout() -> TextIO:
    """Keep the real standard output for events and send whatever libraries print to standard error."""
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return events


def main() -> None:
    """Run the tasks that come on standard input."""
    die_with_parent()
    events = _own_stdout()
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the engine decides

    def emit(kind: str, **content: Any) -> None:
        events.write(json.dumps({"kind": kind, **content}) + "\n")

    def report(event: Event) -> None:
        if event.kind == "note":
            print(event.text, file=sys.stderr)
        else:
            emit(**{**asdict(event), "trial": task.trial})

    setup = json.loads(sys.stdin.readline())

    from retune.study import Study
    from retune.training.resident import ResidentBase
    from retune.training.run_trial import TrialTask, run_trial

    study = Study.model_validate(setup["study"])
    base = ResidentBase(study.model)
    emit("ready")
    for line in sys.stdin:
        task = TrialTask.model_validate_json(line)
        try:
            record = run_trial(study, setup["data_uri"], task, base, report, stopped.is_set)
        except InputError as error:
            emit("refused", reason=str(error))
            sys.exit(EXIT_BAD_INPUT)
        except (RetuneError, OSError) as error:
            told = as_retune_error(error)
            if isinstance(told, DiskFull) or not isinstance(told, Interrupted):
                emit("stopped", reason=str(told), full=isinstance(told, DiskFull))
            sys.exit(told.exit_code)
        emit("done", trial=task.trial, record=record.model_dump(mode="json"))
        if stopped.is_set():
            sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
