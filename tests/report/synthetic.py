"""A made-up study with everything that a page can show."""

from __future__ import annotations

import math
import random

from retune.records import BenchRecord, GateRecord, Metric, TrialRecord
from retune.registry import gate
from retune.selection.choice import select
from retune.selection.record import Selection
from retune.space import tribes2024
from retune.study import Study, parse

TASKS = ["mmlu", "bbh", "drop"]


def study(**changes) -> Study:
    return parse(
        {
            "name": "alpaca-dolly",
            "model": {"base": "/models/tiny-llama"},
            "data": {
                "sources": [
                    {"format": "alpaca", "uri": "/data/alpaca.json", "share": 0.7},
                    {"format": "dolly", "uri": "/data/dolly.jsonl", "share": 0.3},
                ],
                "train": 5400,
                "validation": 1300,
            },
            "benchmark": {"tasks": TASKS, "data": {task: f"/data/{task}" for task in TASKS}},
            "promote": {"model": "alpaca-dolly"},
            "tracking": {"uri": "sqlite:////srv/mlflow.db"},
            **changes,
        }
    )


def trial(number: int, role: str, assignment: dict, loss: float | None, seed: int = 0) -> TrialRecord:
    failed = loss is None
    curve = [] if failed else [(k, loss + 0.6 * math.exp(-2.2 * k)) for k in range(4)] + [(4, loss)]
    return TrialRecord(
        trial=f"trial-{number:03d}",
        number=number,
        role=role,
        assignment=assignment,
        seed=seed,
        status="failed" if failed else "completed",
        reason="the training loss was not finite at step 140: lower the learning rate" if failed else None,
        failure="nan" if failed else None,
        values={} if failed else {"validation_loss": loss},
        curves={"validation_loss": [Metric(step=100 * k, value=v, epoch=k / 2) for k, v in curve]},
        steps=400,
        tokens=812_345,
        seconds=41.5 + number,
        data_digest="0123456789abcdef",
        settings_digest="fedcba9876543210",
        base="/models/tiny-llama",
        base_revision="rev-1",
        adapter_digest=None if failed or role == "base" else f"adapter-{number}-{seed}",
        versions={"python": "3.11.7", "retune": "0.1.0", "torch": "2.13.0", "peft": "0.18.0"},
    )


def trials(count: int = 40, seed: int = 3) -> list[TrialRecord]:
    space, chance = tribes2024(), random.Random(seed)
    default = space.default()
    found = [trial(0, "base", {}, 2.91), trial(1, "default", default, 2.312)]
    for number in range(2, count):
        point = space.decode([chance.randrange(p.levels) for p in space.parameters])
        rate = math.log10(float(point["learning_rate"]))
        loss = (
            1.9
            + 0.22 * (rate + 3.6) ** 2
            + 0.02 * abs(float(point["alpha"]) - 40) / 8
            + chance.gauss(0, 0.01)
        )
        if number % 13 == 0:
            found.append(trial(number, "search", point, None))
        elif number == 17:
            found.append(trial(number, "search", point, 11.4))
        else:
            found.append(trial(number, "search", point, loss))
    best = min((t for t in found if t.values), key=lambda t: t.values["validation_loss"])
    for k in (1, 2):
        value = best.values["validation_loss"] + 0.008 * (-1) ** k
        found.append(trial(count + k, "repeat", best.assignment, value, k))
        found.append(trial(count + 2 + k, "repeat", default, 2.312 + 0.006 * (-1) ** k, k))
    return found


def benches(records: list[TrialRecord]) -> list[BenchRecord]:
    chance = random.Random(5)
    done = [t for t in records if t.values and t.role != "repeat"]
    ranked = sorted(done, key=lambda t: t.values["validation_loss"])
    shown = ranked[:6] + [t for t in ranked[6:] if t.role in ("base", "default")]
    found = []
    for t in shown:
        for task, shots in zip(TASKS, (5, 3, 3), strict=True):
            score = 0.62 - 0.08 * t.values["validation_loss"] + chance.gauss(0, 0.015)
            more = {"stderr": 0.011, "n": 500, "shots": shots, "protocol": "instruct-eval"}
            found.append(BenchRecord(model=t.trial, task=task, score=score, **more))
    return found


def outcome() -> tuple[Study, list[TrialRecord], list[BenchRecord], Selection, GateRecord]:
    asked, records = study(), trials()
    scores = benches(records)
    objective = asked.search.objective
    selection = select(records, scores, objective, asked.select, TASKS)
    chosen = next(t for t in records if t.trial == selection.chosen)
    decided = gate.decide(
        asked.promote.gate,
        objective,
        "alpaca-dolly",
        "4",
        chosen,
        [s for s in scores if s.model == chosen.trial],
        records[0],
        [s for s in scores if s.model == "trial-000"],
        records[1],
        gate.ChampionFacts("3", 1.97, {"mmlu": 0.45, "bbh": 0.47, "drop": 0.46}, "other"),
        selection.spread.get(chosen.trial),
        asked.name,
    )
    return asked, records, scores, selection, decided


def mix() -> dict:
    lengths = {"min": 12, "mean": 91.25, "p50": 74, "p95": 260, "max": 1402}
    split = {"records": 5400, "tokens": 501_222, "truncated": 12}
    split["lengths"] = dict.fromkeys(("prompt", "completion", "total"), lengths)
    counts = {"read": 9229, "empty": 28, "duplicate": 9, "shared": 2, "too_long": 1, "available": 9189}
    drawn = {"train": {"records": 3780}, "validation": {"records": 910}}
    sources = [
        {"name": name, "format": kind, "share": share, "sha256": "ab" * 32, **counts, "splits": drawn}
        for name, kind, share in (("alpaca.json", "alpaca", 0.7), ("dolly.jsonl", "dolly", 0.3))
    ]
    return {
        "schema_version": 1,
        "digest": "0123456789abcdef",
        "recipe": "aaaabbbbccccdddd",
        "rules": 1,
        "seed": 0,
        "max_length": 512,
        "tokenizer": "1234567812345678",
        "sources": sources,
        "splits": {"train": split, "validation": {**split, "records": 1300}},
    }
