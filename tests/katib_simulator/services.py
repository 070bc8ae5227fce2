"""The suggestion pods: ours run as `retune serve`, Katib's own as stand-ins with the same contract.

The stand-ins have Katib's names, settings and answers (any place in the range, printed as Python prints it, off our
levels) and hyperopt's faults, but not its mathematics: `tpe` samples near the best reported trial.
"""

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from retune.suggestion import messages as katib

DEFAULT_LIMIT = 100 * 2**20  # trap 1: what a container gets without `resources`
KATIBS = {
    "random": {"random_state"},
    "tpe": {"gamma", "prior_weight", "n_EI_candidates", "random_state"},
    "multivariate-tpe": {"n_startup_trials", "n_ei_candidates", "random_state"},
    "bayesianoptimization": {
        "base_estimator",
        "n_initial_points",
        "acq_func",
        "acq_optimizer",
        "random_state",
    },
    "cmaes": {"sigma", "restart_strategy", "random_state"},
}


class Ours:
    """A container of our image: the real `retune serve`, killed if it needs more memory than it is given."""

    def __init__(self, entry):
        command = entry.get("command", ["retune", "serve"])
        assert command[:2] == ["retune", "serve"], command
        words = [sys.executable, "-m", "retune", "serve", *command[2:], "--port", "0", "--host", "127.0.0.1"]
        self.process = subprocess.Popen(
            [*words, "--die-with-parent"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        line = self.process.stdout.readline()
        assert re.fullmatch(r"serving on 127\.0\.0\.1:\d+\n", line), line
        self.address = line.split()[-1]
        self.limit = _bytes(entry.get("resources", {}).get("limits", {}).get("memory"))

    @property
    def alive(self):
        """Whether it runs; it is killed here if it has outgrown its limit."""
        if self.process.poll() is None and self.memory() > self.limit:
            self.kill()
        return self.process.poll() is None

    def memory(self):
        """Bytes in memory, without what a forked service shares with the server that forked it (tests/forked.py)."""
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        resident, shared = (int(re.search(rf"{name}:\s+(\d+)", text)[1]) for name in ("Rss", "Shared_Dirty"))
        return (resident - shared) * 1024

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()


class Script:
    """A container whose command is a Python script; what it prints is in `log`."""

    def __init__(self, entry, log):
        self.log = log
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", entry["command"][2]],
                env={**os.environ, "PORT": "0"},
                stdout=out,
                stderr=out,
            )
        while '["serving"' not in log.read_text():
            assert self.process.poll() is None, log.read_text()
            time.sleep(0.05)
        self.address = f"127.0.0.1:{json.loads(log.read_text().splitlines()[0])[1]}"

    @property
    def alive(self):
        return self.process.poll() is None

    def kill(self):
        self.process.kill()
        self.process.wait()


class Katibs:
    """A container with one of Katib's own services."""

    def __init__(self, entry):
        self.algorithm, self.alive = entry["algorithmName"], True
        self._server = grpc.server(ThreadPoolExecutor(2))
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                method, getattr(katib, f"{name}Request").FromString, lambda reply: reply.SerializeToString()
            )
            for name, method in {
                "GetSuggestions": self._suggest,
                "ValidateAlgorithmSettings": self._validate,
            }.items()
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(katib.SERVICE, handlers),)
        )
        checks = health.HealthServicer()
        checks.set(katib.HEALTH_SERVICE, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(checks, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def kill(self):
        self.alive = False
        self._server.stop(0)

    def _validate(self, request, context):
        values = {entry.name: entry.value for entry in request.experiment.spec.algorithm.algorithm_settings}
        for name in sorted(set(values) - KATIBS[self.algorithm]):
            text = f"unknown setting {name} for algorithm {self.algorithm}"
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
        if not 0 < float(values.get("gamma", 0.25)) < 1:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "gamma should be in the range of (0, 1)")
        return katib.ValidateAlgorithmSettingsReply()

    def _suggest(self, request, context):
        spec = request.experiment.spec
        settings = {entry.name: entry.value for entry in spec.algorithm.algorithm_settings}
        draw = random.Random(f"{settings.get('random_state')} {request.total_request_number}")
        best = self._best(request) if self.algorithm != "random" else None
        reply = katib.GetSuggestionsReply()
        for _ in range(request.current_request_number):
            entry = reply.parameter_assignments.add()
            for parameter in spec.parameter_specs.parameters:
                near = best.get(parameter.name) if best and draw.random() < 0.7 else None
                entry.assignments.add(name=parameter.name, value=_drawn(parameter, draw, near))
        return reply

    def _best(self, request):
        sign = 1 if request.experiment.spec.objective.type == katib.MINIMIZE else -1
        metric = request.experiment.spec.objective.objective_metric_name
        done = []
        for trial in request.trials:
            for found in trial.status.observation.metrics:
                if found.name == metric:
                    pairs = trial.spec.parameter_assignments.assignments
                    # As in Katib's service, an empty value raises
                    done.append((sign * float(found.value), {pair.name: pair.value for pair in pairs}))
        return min(done, key=lambda pair: pair[0])[1] if len(done) >= 3 else None


def _drawn(parameter, draw, near):
    feasible = parameter.feasible_space
    if feasible.list:
        return near or draw.choice(list(feasible.list))
    low, high = float(feasible.min), float(feasible.max)
    log = feasible.distribution == katib.LOG_UNIFORM
    start, end = (math.log(low), math.log(high)) if log else (low, high)
    place = draw.uniform(start, end)
    if near is not None:
        center = math.log(float(near)) if log else float(near)
        place = min(max(draw.gauss(center, (end - start) / 10), start), end)
    value = min(max(math.exp(place) if log else place, low), high)
    if feasible.step:
        step = float(feasible.step)
        value = round(value / step) * step  # multiples of the step, whatever `min` is
    return str(round(value)) if parameter.parameter_type == katib.INT else repr(value)


def _bytes(quantity):
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    return int(quantity[:-2]) * units[quantity[-2:]] if quantity else DEFAULT_LIMIT
