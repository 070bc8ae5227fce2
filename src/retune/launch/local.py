"""Running a study on this machine: its steps in a child process, whose progress file is polled."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from retune.errors import FULL, REMEDIES, DiskFull, Interrupted, RetuneError
from retune.launch.run import ERROR_FILE
from retune.processes import PARENT
from retune.steps.search import STOP_FILE
from retune.study import Study
from retune.workspace import folders, locks, progress

POLL_SECONDS = 0.25
KEPT_LOGS = 9  # of earlier runs


@dataclass(frozen=True)
class Log:
    """The log of the latest run's steps; logs of earlier runs are in the same folder, named by the time of their last line."""

    path: Path

    @property
    def error(self) -> Path:
        """The file with the error of the step that failed."""
        return self.path.with_suffix(".error")

    def rotate(self) -> None:
        """Rename the log of the previous run, and delete all but the newest logs of earlier runs."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.error.unlink(missing_ok=True)
        if self.path.exists():
            moment = self.path.stat().st_mtime_ns
            stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(moment / 1e9))
            self.path.rename(
                self.path.with_name(f"{self.path.stem}-{stamp}.{moment // 1000 % 1_000_000:06}.log")
            )
        earlier = sorted(self.path.parent.glob(f"{self.path.stem}-*.log"))
        for old in earlier[:-KEPT_LOGS]:
            old.unlink(missing_ok=True)

    def failure(self, code: int = 1) -> str:
        """Return which step failed and its error, so that users need not search the log.

        Args:
            code: the exit code of the steps' process.
        """
        kept = self.error.read_text(encoding="utf-8", errors="replace") if self.error.exists() else ""
        full = code == DiskFull.exit_code
        # On a full disk the file may be empty, or end in mid-word
        if kept and (not full or any(os.strerror(number) in kept for number in FULL)):
            return kept[:2000]
        text = self.path.read_text(errors="replace") if self.path.exists() else ""
        begun = re.findall(r"^step (\w+)$", text, re.M)
        step = f"the step {begun[-1]!r}" if begun else "the run"
        if full:
            return f"{step} failed: {os.strerror(errno.ENOSPC)}, not even the error could be written; {REMEDIES[errno.ENOSPC]}"
        return f"{step} ended without an error message, so it was probably killed (is there memory enough?)"


def run(
    study: Study,
    watch: Callable[[progress.Progress | None], None],
    stops: Callable[[], int] = lambda: 0,
) -> None:
    """Run the steps of a study that are not up to date, on this machine.

    Args:
        study: the resolved study, checked by `retune.steps.check`.
        watch: called about four times a second with the latest progress. An error in it ends the run.
        stops: returns how many stops were requested so far. The first lets running trials save a checkpoint, the
            second ends the run at once.

    Raises:
        Interrupted: if it was stopped; run it again to resume.
        RetuneError: if a step failed, with its error and the path of the log.

    """
    work = folders.work_folder(study)
    with locks.only_writer(work / "run.lock"):
        (work / STOP_FILE).unlink(missing_ok=True)
        (work / "progress.json").unlink(missing_ok=True)
        log = Log(work / "logs" / "pipeline.log")
        log.rotate()
        process = _start(study, work, log)
        requested = 0
        try:
            while process.poll() is None:
                watch(progress.read(work / "progress.json"))
                requested = stops()
                if requested == 1:
                    (work / STOP_FILE).touch()
                elif requested > 1:
                    break
                time.sleep(POLL_SECONDS)
        finally:
            _end(process)
            (work / STOP_FILE).unlink(missing_ok=True)
        if requested and process.returncode != 0:
            raise Interrupted("stopped; running trials saved a checkpoint. Run the same command to resume")
        if process.returncode != 0:
            failure = log.failure(process.returncode)
            # The error's class does not survive the process, but its text holds the system's words
            kind = DiskFull if any(os.strerror(number) in failure for number in FULL) else RetuneError
            raise kind(f"{failure}; the whole log is {log.path}")


def _start(study: Study, work: Path, log: Log) -> subprocess.Popen[bytes]:
    arguments = work / "logs" / "study.json"
    arguments.write_text(study.model_dump_json())
    command = [sys.executable, "-m", "retune.launch.run", str(arguments)]
    env = {**os.environ, PARENT: str(os.getpid()), ERROR_FILE: str(log.error)}
    env |= {"PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1"}
    with log.path.open("w") as out:
        # In a session of its own, so that Ctrl-C reaches this process only, which then stops the steps by the stop file
        return subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the steps' whole session, if it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
