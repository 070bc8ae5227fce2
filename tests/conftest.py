"""Small real studies for every test: the demo's base model and data, cut to a few seconds of work."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import forked

pytest_plugins = ["tests.slow"]

# Before anything imports NumPy or torch, here or in a program that a test starts: two pytest workers with a thread for each core wait
# for each other in every matrix product.
for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

# A slow machine is no failure: what is fast is measured in benchmarks/, never asserted here.
settings.register_profile("retune", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("retune")

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "examples/01-first-study/study.yaml"
SMALL = [
    "data.train=40", "data.validation=20", "training.epochs=1", "search.trials=4", "search.parallel=2", "search.repeats=0",
    "search.algorithm=random", "benchmark.tasks=[]", "benchmark.data={}", "select.weights={}", "engine.threads=1",
    "report.answers=0",
]  # fmt: skip


def pytest_configure():
    """Fork the program, except in tests that need a new interpreter."""
    forked.install()


def pytest_unconfigure():
    """End the server that forks."""
    forked.Popen.end()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Give the tests marked `fresh`, and the fixtures set up for them, new interpreters."""
    forked.Popen.on = item.get_closest_marker("fresh") is None
    return (yield)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Return a function that loads the demo study, made small, with further overrides; its output is in tmp_path."""
    from retune.study import load

    monkeypatch.chdir(tmp_path)
    return lambda *overrides: load(DEMO, [*SMALL, *overrides])


@pytest.fixture
def retune(tmp_path):
    """Return a function that starts the real program in tmp_path; what is left running at the end is killed."""
    started = []

    def start(*words: str, **env: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-m", "retune", *words], cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1", **env},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        process.stderr.close()


def wait_for(condition, seconds=60, message="the condition never held"):
    """Wait until `condition()` is true and return its value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(message)
