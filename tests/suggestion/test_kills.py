"""A whole study in Katib's way, eight trials at a time, with and without kills of the service."""

import contextlib
import hashlib
import math
import random
import threading

import grpc
import pytest
from katib_requests import Service, add_trial, ask, assignments, call, experiment

from retune.space import tribes2024
from retune.suggestion import messages as katib
from retune.suggestion.experiment import ISSUED
from retune.suggestion.service import UNLIMITED

PARALLEL, TRIALS = 8, 48


def loss(given):
    return (math.log10(float(given["learning_rate"])) + 4.2) ** 2 + (float(given["alpha"]) / 64 - 0.6) ** 2


class Katib:
    """Katib's controllers as a client of the suggestion service: request, store, start trials, observe their end."""

    def __init__(self, seed):
        self.request = katib.GetSuggestionsRequest(experiment=experiment(tribes2024(), parallel=PARALLEL))
        self.chance = random.Random(seed)

    @property
    def running(self):
        return [t for t in self.request.trials if t.status.condition == katib.RUNNING]

    def asked(self):
        """The next request: as many points as trials have ended, the trials in any order."""
        request = katib.GetSuggestionsRequest()
        request.CopyFrom(ask(self.request, PARALLEL - len(self.running)))
        trials = list(request.trials)
        self.chance.shuffle(trials)
        del request.trials[:]
        request.trials.extend(trials)
        return request

    def store(self, reply):
        """Start the trials of a reply and keep its settings, as one status update."""
        for assignment in assignments(reply):
            add_trial(self.request, assignment, katib.RUNNING)
        settings = self.request.experiment.spec.algorithm.algorithm_settings
        for entry in [e for e in settings if e.name == ISSUED]:
            settings.remove(entry)
        settings.extend(reply.algorithm.algorithm_settings)

    def end_some(self, second):
        """Let up to three running trials end, whichever; a fifth of all settings fail."""
        for trial in self.chance.sample(self.running, self.chance.randint(1, 3)):
            values = {pair.name: pair.value for pair in trial.spec.parameter_assignments.assignments}
            trial.status.completion_time = f"2026-01-01T03:{second // 60:02d}:{second % 60:02d}Z"
            if hashlib.sha256(repr(values).encode()).digest()[0] < 256 / 5:
                trial.status.condition = katib.FAILED
            else:
                trial.status.condition = katib.SUCCEEDED
                trial.status.observation.metrics.add(name="validation_loss", value=repr(loss(values)))


class Killed:
    """A service that dies every few calls: before one, under one, or with its reply lost on the way."""

    def __init__(self, seed):
        self.chance, self.service, self.kills = random.Random(seed), Service(), 0

    def suggest(self, request):
        fate = self.chance.choice(["before", "under", "lost", "none", "none", "none"])
        if fate == "before":
            self.die()
        elif fate == "under":
            self.die_under(request)
        elif fate == "lost":
            self.answer(request)
            self.die()
        return self.answer(request)

    def die_under(self, request):
        """Kill it during the call; whether the reply still arrives is up to chance."""
        with grpc.insecure_channel(self.service.address, options=UNLIMITED) as channel:
            asking = threading.Thread(target=self.heard, args=(channel, request))
            asking.start()
            asking.join(timeout=self.chance.uniform(0.0, 0.2))
            self.die()
            asking.join()

    def heard(self, channel, request):
        with contextlib.suppress(grpc.RpcError):
            call(channel, "GetSuggestions", request)

    def answer(self, request):
        if self.service.process.poll() is not None:
            self.service.close()
            self.service = Service()
        with grpc.insecure_channel(self.service.address, options=UNLIMITED) as channel:
            return call(channel, "GetSuggestions", request)

    def die(self):
        self.kills += 1
        self.service.kill()


def study(suggest):
    run, second = Katib(5), 0
    while len(run.request.trials) < TRIALS:
        run.store(suggest(run.asked()))
        assert len(run.running) == PARALLEL
        second += 1
        run.end_some(second)
    return run.request.trials


@pytest.mark.slow
def test_a_study_whose_service_is_killed_ends_in_the_same_trials(service):
    with grpc.insecure_channel(service.address, options=UNLIMITED) as channel:
        undisturbed = study(lambda request: call(channel, "GetSuggestions", request))
    killed = Killed(2)
    try:
        disturbed = study(killed.suggest)
    finally:
        killed.service.close()
    assert list(disturbed) == list(undisturbed)
    assert killed.kills >= 6
    failed = sum(trial.status.condition == katib.FAILED for trial in undisturbed)
    assert 0.1 < failed / TRIALS < 0.4
    settings = {tuple(pair.value for pair in t.spec.parameter_assignments.assignments) for t in undisturbed}
    assert len(settings) == len(undisturbed)
