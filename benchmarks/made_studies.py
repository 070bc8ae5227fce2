"""Generated studies and data, to measure everything around the training at any size without training."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

from retune import models, store
from retune.data import mixing
from retune.records import GateRecord, Metric, TrialRecord
from retune.space import Parameter, Space
from retune.steps import benchmark, promote, register, report, search, select
from retune.study import Study, load
from retune.workspace import folders
from retune.workspace.ledger import Ledger
from retune.workspace.search_folder import GATE, SEARCH, SearchFolder, SearchRecord

DEMO = Path(__file__).parents[1] / "examples" / "01-first-study" / "study.yaml"
TIME = "2026-11-22T13:30:00.000Z"


def trial(study: Study, number: int, rng: random.Random) -> TrialRecord:
    """Return a completed trial with curves as long as a real one's; its loss depends on learning rate and dropout."""
    space = study.search.space
    given = {} if number == 0 else space.decode(space.from_unit([rng.random() for _ in space.names]))
    loss = 4.0
    if number:
        loss = 2 + 0.3 * abs(math.log10(float(given["learning_rate"])) + 2.5) + float(given["dropout"])
    loss += 0.05 * rng.random()
    return TrialRecord(
        trial=f"trial-{number:03d}", number=number, role=("base", "default", "search")[min(number, 2)], assignment=given,
        seed=0, status="completed", values={"validation_loss": loss, "train_loss": loss, "seconds": 3.0},
        curves={
            "validation_loss": [Metric(step=100 * k, value=loss + 0.1 * (2 - k), epoch=k, time=TIME) for k in (1, 2)],
            "train_loss": [Metric(step=k, value=loss + 1 / k, epoch=k / 100) for k in range(1, 201)],
        },
        seconds=3.0, steps=200, adapter_digest=f"adapter-{number}" if number else None, finished=TIME, data_digest="made up",
        versions={"torch": "0"},
    )  # fmt: skip


def finished(study: Study, trials: int) -> SearchFolder:
    """Write a finished study of that many trials, with its stamps, into the study's folders; return its folder."""
    mix = mixing.mix(study.data, study.seed, models.locate(study.model), folders.data_folder(study))
    folder, rng = SearchFolder(folders.search_folder(study, mix.digest)), random.Random(0)
    ledger = Ledger(folder.uri)
    for number in range(trials + 1):
        record = trial(study, number, rng)
        ledger.issue(number, record.role, record.assignment, 0)
        ledger.finish(record, write=True)
    store.write(folder.path("study.json"), study.model_dump_json().encode())
    made = SearchRecord(
        study=study.name, algorithm="random", stopped_by="trials", trials=trials, completed=trials, failed=0,
        best="trial-001", digest="d", data_digest=mix.digest, hours=0.1,
    )  # fmt: skip
    folder.write(SEARCH, made)
    select.select(study, folder)
    folder.write(
        GATE, GateRecord(model=study.promote.model, challenger="1", champion=None, decision="promote")
    )
    steps = {
        "search": search,
        "benchmark": benchmark,
        "register": register,
        "promote": promote,
        "report": report,
    }
    for name, step in steps.items():
        with folder.stamps.step(name, step.inputs(study, folder)) as outputs:
            outputs["version"] = "1"
    return folder


def study(out: str | Path, trials: int) -> Study:
    """Return the demo's study, with that many trials, no benchmarks and its artifacts at `out`."""
    words = [f"artifacts.uri={out}", f"search.trials={trials}", "benchmark.tasks=[]", "benchmark.data={}"]
    return load(DEMO, [*words, "select={}", "report.answers=0"])


def wide_space(parameters: int) -> Space:
    """Return a space of that many parameters, a third of them each logarithmic, linear and discrete."""
    kinds = (
        {"kind": "real", "low": 1e-6, "high": 1e-1, "scale": "log", "default": 1e-4},
        {"kind": "real", "low": 0.0, "high": 1.0, "default": 0.5},
        {"kind": "discrete", "values": [2, 4, 8, 16, 32, 64], "default": 8},
    )
    return Space(
        parameters=tuple(
            Parameter.model_validate({"name": f"p{k:02}", **kinds[k % 3]}) for k in range(parameters)
        )
    )


def records(path: Path, count: int) -> Path:
    """Write an Alpaca file of that many different records, of the lengths and words of the demo's data."""
    given = json.loads((DEMO.parents[1] / "data" / "alpaca-demo.json").read_text())
    made = []
    for k in range(count):
        one, more = given[k % len(given)], given[(7 * k + 3) % len(given)]
        asked = {"instruction": f"{one['instruction']} ({k})", "input": one["input"]}
        made.append({**asked, "output": f"{one['output']} {more['output']} {more['instruction']}"})
    path.write_text(json.dumps(made))
    return path
