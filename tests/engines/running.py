"""Searches of the local engine for the tests: in this process, and in one that is killed again and again."""

import os
import subprocess
import sys
import time
from pathlib import Path

from retune.engines.local import LocalEngine
from retune.steps import mix
from retune.study import load
from tests.conftest import DEMO, SMALL
from tests.engine_run import EngineRun

ROOT = Path(__file__).resolve().parents[2]


class Run(EngineRun):
    """One run of the engine with what it reported."""

    def __init__(self, study, folder, should_stop=lambda: False, react=None):
        self.events = []
        self.react = react
        recipe = mix.recipe(study)
        mix.mix(recipe)
        self.engine = LocalEngine(
            study, recipe.folder, str(folder), Path(folder) / "work", 1, self._observe, should_stop
        )

    def _observe(self, event):
        self.events.append(event)
        if self.react:
            self.react(self.engine, event)

    @property
    def results(self):
        return {
            r.trial: (r.assignment, r.status, r.values.get("validation_loss"), r.adapter_digest)
            for r in self.outcome.records
        }


def whole_search(overrides, folder):
    """Run the demo's study, made small, to its end, as if from `folder`."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        return Run(load(DEMO, [*SMALL, *overrides]), folder / "search").go()
    finally:
        os.chdir(before)


def start(overrides, folder):
    """Start the same search in a process of its own."""
    script = (
        "from tests.engines.running import DEMO, SMALL, Path, Run, load\n"
        f"Run(load(DEMO, [*SMALL, *{list(overrides)!r}]), Path('search')).go()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def kill_until_done(overrides, folder, draw, seconds, kills, patience):
    """Start the search repeatedly, kill it `kills` times after random times up to `seconds`, then let it end."""
    killed = 0
    while True:
        process = start(overrides, folder)
        try:
            process.wait(timeout=draw.uniform(*seconds) if killed < kills else patience)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
            time.sleep(1)  # the workers end by themselves
    assert process.returncode == 0
    assert killed > 0
