"""Running a study on this machine: its steps in a process of their own, watched by the progress file."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from retune.errors import FULL, DiskFull, Interrupted, RetuneError
from retune.launch.run import LAST_WORDS
from retune.processes import PARENT
from retune.steps.search import STOP_FILE
from retune.study import Study
from retune.workspace import folders, locks, progress

POLL_SECONDS = 0.25
EARLIER_LOGS = 9


@dataclass(frozen=True)
class Log:
    """Where the steps of the latest run write what they print; earlier runs' logs lie beside it, named by their end."""

    path: Path

    @property
    def words(self) -> Path:
        """The file with the error that a step ended with."""
        return self.path.with_suffix(".error")

    def begin(self) -> None:
        """Put the log of the run before aside, and keep the newest few of those."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.words.unlink(missing_ok=True)
        if self.path.exists():
            moment = self.path.stat().st_mtime_ns
            stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(moment / 1e9))
            self.path.rename(
                self.path.with_name(f"{self.path.stem}-{stamp}.{moment // 1000 % 1_000_000:06}.log")
            )
        earlier = sorted(self.path.parent.glob(f"{self.path.stem}-*.log"))
        for old in earlier[:-EARLIER_LOGS]:
            old.unlink(missing_ok=True)

    def failure(self) -> str:
        """Return which step failed and its own last words, for a person who will not read the whole log."""
        if self.words.exists():
            return self.words.read_text(encoding="utf-8", errors="replace")[:2000]
        text = self.path.read_text(errors="replace") if self.path.exists() else ""
        begun = re.findall(r"^step (\w+)$", text, re.M)
        step = f"the step {begun[-1]!r}" if begun else "the run"
        return f"{step} ended without a word, as one does that is killed (is there memory enough?)"


def run(
    study: Study,
    watch: Callable[[progress.Progress | None], None],
    stops: Callable[[], int] = lambda: 0,
) -> None:
    """Do what is missing of a study on this machine, until it ends.

    Args:
        study: the resolved study, which `retune.steps.check` has found right.
        watch: called about four times a second with the latest progress. An error in it ends the run.
        stops: how often a stop was asked for so far. The first lets running trials save a checkpoint, a second one
            ends the run at once.

    Raises:
        Interrupted: if it was stopped; running it again carries on.
        RetuneError: if a step failed, with its last words and the log to read.

    """
    work = folders.work_folder(study)
    with locks.only_writer(work / "run.lock"):
        (work / STOP_FILE).unlink(missing_ok=True)
        (work / "progress.json").unlink(missing_ok=True)
        log = Log(work / "logs" / "pipeline.log")
        log.begin()
        process = _start(study, work, log)
        asked = 0
        try:
            while process.poll() is None:
                watch(progress.read(work / "progress.json"))
                asked = stops()
                if asked == 1:
                    (work / STOP_FILE).touch()
                elif asked > 1:
                    break
                time.sleep(POLL_SECONDS)
        finally:
            _end(process)
            (work / STOP_FILE).unlink(missing_ok=True)
        if asked and process.returncode != 0:
            raise Interrupted("stopped; running trials saved a checkpoint. Run the same command to carry on")
        if process.returncode != 0:
            told = log.failure()
            kind = DiskFull if any(os.strerror(number) in told for number in FULL) else RetuneError
            raise kind(f"{told}; the whole log is {log.path}")


def _start(study: Study, work: Path, log: Log) -> subprocess.Popen[bytes]:
    arguments = work / "logs" / "study.json"
    arguments.write_text(study.model_dump_json())
    command = [sys.executable, "-m", "retune.launch.run", str(arguments)]
    env = {**os.environ, PARENT: str(os.getpid()), LAST_WORDS: str(log.words)}
    env |= {"PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1"}
    with log.path.open("w") as out:
        # A session of its own: Ctrl-C reaches only us, and we ask for an orderly end by the stop file.
        return subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the pipeline's whole session, if it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
