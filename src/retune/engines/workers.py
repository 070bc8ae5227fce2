"""The engine's side of its worker processes: start, send a task, receive events, stop."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from retune import gpus
from retune.engines import spares
from retune.study import Study
from retune.trials.task import TrialTask


@dataclass
class Message:
    """An event from a worker, or ``exit`` with the exit code when its process ended (negative: killed by that signal)."""

    worker: Worker
    kind: str
    content: dict[str, Any] = field(default_factory=dict)


class Worker:
    """One worker process, `retune.engines.worker`.

    Args:
        number: of the worker, from 0; decides its GPU.
        study, data_uri: the study and the folder of its mixed data.
        threads: CPU threads that it may use.
        pack: trials that it may train side by side.
        log: file for its messages.
        events: queue for its events.

    """

    def __init__(
        self,
        number: int,
        study: Study,
        data_uri: str,
        threads: int,
        pack: int,
        log: Path,
        events: queue.Queue[Message],
    ) -> None:
        self.number = number
        self.tasks: dict[str, TrialTask] = {}
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        devices = gpus.visible()
        if devices:
            env["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
        log.parent.mkdir(parents=True, exist_ok=True)
        # Opened here, where a full disk is reported as such, also for a spare process, which opens the file itself
        with log.open("a") as stderr:
            self.process = spares.take(log, threads) or _start(env, stderr)
        self._send({"study": study.model_dump(mode="json"), "data_uri": data_uri, "pack": pack})
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()

    @property
    def task(self) -> TrialTask | None:
        """The trial that runs, or the first of several."""
        return next(iter(self.tasks.values()), None)

    def run(self, task: TrialTask) -> None:
        """Send a task; its events follow on the queue."""
        self.tasks[task.trial] = task
        self._send(task.model_dump(mode="json"))

    def interrupt(self) -> None:
        """Ask the worker to save checkpoints of its trials and end."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        self._close_input()

    def close(self, seconds: float = 10) -> None:
        """End the worker: by closing its input, and after `seconds` by SIGKILL."""
        self._close_input()
        try:
            self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _send(self, content: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        # A worker that is gone is reported by its exit event; the write may fail before that arrives.
        with contextlib.suppress(BrokenPipeError, ValueError):
            self.process.stdin.write(json.dumps(content) + "\n")
            self.process.stdin.flush()

    def _close_input(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):
            self.process.stdin.close()

    def _listen(self, events: queue.Queue[Message]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(json.JSONDecodeError):  # the last line of a killed process may be cut
                content = json.loads(line)
                events.put(Message(self, content.pop("kind"), content))
        events.put(Message(self, "exit", {"code": self.process.wait()}))


def _start(env: dict[str, str], stderr: IO[str]) -> subprocess.Popen[str]:
    """Start a worker in a new interpreter."""
    command = [sys.executable, "-m", "retune.engines.worker"]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, env=env
    )
