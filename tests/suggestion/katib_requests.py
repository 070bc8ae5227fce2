"""A service process, and requests as Katib makes them."""

import re
import signal
import subprocess
import sys

from retune.search import Objective
from retune.suggestion import messages as katib
from retune.suggestion.experiment import experiment_of


class Service:
    """`retune serve` in a process of its own."""

    def __init__(self, port=0, log=subprocess.DEVNULL, options=()):
        command = [sys.executable, "-m", "retune", "serve", "--port", str(port), "--host", "127.0.0.1"]
        self.process = subprocess.Popen(
            [*command, "--die-with-parent", *options], stdout=subprocess.PIPE, stderr=log, text=True
        )
        line = self.process.stdout.readline()
        assert re.fullmatch(r"serving on 127\.0\.0\.1:\d+\n", line), line
        self.address = line.split()[-1]
        self.port = int(self.address.rsplit(":")[-1])

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def close(self):
        if self.process.poll() is None:
            self.kill()
        self.process.stdout.close()


def call(channel, method, request, timeout=60):
    """One call by Katib's method name, with our classes."""
    reply = getattr(katib, f"{method}Reply")
    stub = channel.unary_unary(
        f"/api.v1.beta1.Suggestion/{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=reply.FromString,
    )
    return stub(request, timeout=timeout)


def assignments(reply):
    """The assignments of a reply as dictionaries of text."""
    return [{pair.name: pair.value for pair in entry.assignments} for entry in reply.parameter_assignments]


def experiment(space, algorithm="nomad", settings=None, objective=None, name="study", parallel=4):
    """An Experiment as a user would write it."""
    return experiment_of(
        name, algorithm, space, objective or Objective(), settings or {}, seed=0, parallel=parallel
    )


def add_trial(request, given, condition=katib.SUCCEEDED, loss=None, name=None, done=None):
    """Add a trial to a request, as Katib sends it: text only, times with a second's resolution, no labels."""
    number = len(request.trials)
    trial = request.trials.add(name=name or f"study-{number:04d}")
    for key, value in given.items():
        trial.spec.parameter_assignments.assignments.add(name=key, value=str(value))
    trial.spec.objective.objective_metric_name = request.experiment.spec.objective.objective_metric_name
    trial.status.condition = condition
    trial.status.start_time = f"2026-01-01T00:{number:02d}:00Z" if number < 60 else "2026-01-01T02:00:00Z"
    if condition not in (katib.CREATED, katib.RUNNING):
        trial.status.completion_time = done or f"2026-01-01T01:{number % 60:02d}:00Z"
    if loss is not None:
        trial.status.observation.metrics.add(name="validation_loss", value=str(loss))
    return trial


def ask(trials_of, count, total=None):
    """Turn a request with trials into one that asks for `count` more."""
    trials_of.current_request_number = count
    trials_of.total_request_number = len(trials_of.trials) + count if total is None else total
    return trials_of
