"""Measure a response surface: real LoRA trials over rank, alpha, dropout, learning rate and weight decay.

    python benchmarks/surfaces/measure.py --model <base> --source alpaca:<file>:0.7 --source dolly:<file>:0.3 \\
        --lines trials.jsonl --out benchmarks/surfaces/alpaca-dolly-tiny-llama.json

Trials are retune's own, one after the other on a base that stays loaded. The plan is fixed beforehand: the default
setting, 230 points of a scrambled Sobol sequence over the whole space, 100 of another over the two decades of the
learning rate where an earlier study (docs/results/tribes2024-small.md) had its best trials, and 15 points with 5 more
seeds each, so that the noise is known. `--size small` is for more surfaces at less cost: 90, 40 and 6 points with 4 more
seeds, shorter records, ranks up to 64; its options say what sets a surface apart. Each trial appends a line to `--lines`;
run again to carry on. `--out` is written from what is measured so far, also when the program is interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import qmc

from retune.data import mixing
from retune.models import quiet
from retune.records import digest, now, versions
from retune.space import Parameter, Space, tribes2024
from retune.study import Study
from retune.training.resident import ResidentBase
from retune.trials.run_trial import run_trial
from retune.trials.task import TrialTask

BAND_LOW, BAND_HIGH = 1e-3, 1e-1
BATCH = 4


class Size(NamedTuple):
    """How much is measured: points over the whole space and in the band, points with further seeds, and their records."""

    whole: int
    band: int
    repeated: int
    seeds: int
    train: int
    validation: int
    max_length: int
    highest_rank: int


SIZES = {"full": Size(230, 100, 15, 5, 100, 50, 256, 512), "small": Size(90, 40, 6, 4, 40, 24, 96, 64)}


def space(highest_rank: int) -> Space:
    """The space of Tribes et al. 2024 with more learning rates, and the weight decays of Davouse 2024."""
    rate = Parameter(name="learning_rate", kind="real", low=1e-6, high=1e-1, scale="log", default=1e-5)
    decay = Parameter(name="weight_decay", kind="real", low=1e-5, high=1e-1, scale="log", default=1e-2)
    ranks = tuple(rank for rank in (4, 8, 16, 32, 64, 128, 256, 512) if rank <= highest_rank)
    rank = Parameter(name="rank", kind="discrete", values=ranks, default=8)
    kept = tuple(p for p in tribes2024().parameters if p.name not in ("rank", "learning_rate"))
    return Space(parameters=(rank, *kept, rate, decay))


def plan(size: Size) -> list[tuple[dict[str, Any], int]]:
    """Return all trials as (assignment, seed), the kinds mixed, so that any beginning of it is a fair sample."""
    found = space(size.highest_rank)
    whole = _sobol(found, size.whole, 1)
    rate = found["learning_rate"]
    low, high = rate.unit(rate.level(BAND_LOW)), rate.unit(rate.level(BAND_HIGH))
    place = found.names.index("learning_rate")
    band = [
        found.decode(found.from_unit([*row[:place], low + row[place] * (high - low), *row[place + 1 :]]))
        for row in _rows(len(found.names), size.band, 2)
    ]
    repeated = (whole + band)[:: (size.whole + size.band) // size.repeated][: size.repeated]
    again = [(point, seed) for seed in range(1, size.seeds + 1) for point in repeated]
    groups = [[(point, 0) for point in whole], [(point, 0) for point in band], again]
    placed = [(k / len(group), g, trial) for g, group in enumerate(groups) for k, trial in enumerate(group)]
    default = found.default()
    assert default is not None
    return [(default, 0), *(trial for _, _, trial in sorted(placed, key=lambda item: item[:2]))]


def _sobol(found: Space, count: int, seed: int) -> list[dict[str, Any]]:
    return [found.decode(found.from_unit(row)) for row in _rows(len(found.names), count, seed)]


def _rows(dimension: int, count: int, seed: int) -> list[list[float]]:
    exponent = (count - 1).bit_length()
    rows = qmc.Sobol(dimension, scramble=True, rng=seed).random_base2(exponent)[:count]
    return [[float(x) for x in row] for row in rows]


def main() -> None:
    """Measure what is not measured yet, and write the surface."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="base model folder")
    parser.add_argument("--source", action="append", default=[], metavar="FORMAT:FILE:SHARE", required=True)
    parser.add_argument("--lines", type=Path, required=True, help="one line a trial; kept between runs")
    parser.add_argument("--out", type=Path, help="the surface; default: not written")
    parser.add_argument("--limit", type=int, help="stop after so many trials of this run")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--schedule", default="linear")
    parser.add_argument("--targets", default="q_proj,v_proj", help="names of layers, or all-linear")
    given = parser.parse_args()
    quiet()
    study, size = _study(given), SIZES[given.size]
    known = _known(given.lines)
    todo = [trial for trial in plan(size) if _key(*trial) not in known][: given.limit]
    with tempfile.TemporaryDirectory() as folder:
        mixing.mix(study.data, study.seed, None, f"{folder}/data")
        identity = mixing.read_mix_record(f"{folder}/data").digest
        base = ResidentBase(study.model)
        try:
            _measure(study, base, folder, todo, given.lines)
        finally:
            if given.out:
                _write(given.out, study, identity, base, given.lines)


def _study(given: argparse.Namespace) -> Study:
    parts, size = [source.split(":") for source in given.source], SIZES[given.size]
    targets = given.targets if given.targets == "all-linear" else given.targets.split(",")
    return Study.model_validate(
        {
            "name": "surface",
            "model": {"base": given.model, "dtype": "float32"},
            "data": {
                "sources": [
                    {"format": p[0], "uri": str(Path(":".join(p[1:-1])).resolve()), "share": p[-1]} for p in parts
                ],
                "train": size.train,
                "validation": size.validation,
                "max_length": size.max_length,
            },
            "training": {
                "epochs": given.epochs, "batch_size": BATCH, "schedule": given.schedule, "target_modules": targets,
            },
            "search": {"parameters": [p.model_dump() for p in space(size.highest_rank).parameters]},
            "promote": {"model": "surface"},
        }
    )  # fmt: skip


def _key(assignment: dict[str, Any], seed: int) -> str:
    return digest([assignment, seed])


def _known(lines: Path) -> set[str]:
    return {_key(row["assignment"], row["seed"]) for row in _rows_of(lines)}


def _rows_of(lines: Path) -> Iterator[dict[str, Any]]:
    for line in lines.read_text().splitlines() if lines.exists() else ():
        if line.endswith("}"):  # a line cut by a kill is measured again
            yield json.loads(line)


def _measure(
    study: Study, base: ResidentBase, folder: str, todo: list[tuple[dict[str, Any], int]], lines: Path
) -> None:
    begun = time.monotonic()
    for number, (assignment, seed) in enumerate(todo):
        place = f"{folder}/trial"
        task = TrialTask(
            trial=f"t{number}", number=number, role="search", assignment=assignment, seed=seed, folder=place
        )
        record = run_trial(study, f"{folder}/data", task, base)
        shutil.rmtree(place, ignore_errors=True)
        row: dict[str, Any] = {"assignment": assignment, "seed": seed, "status": record.status}
        row |= (
            {"validation_loss": record.values["validation_loss"]}
            if record.values
            else {"reason": record.reason}
        )
        with lines.open("a") as file:
            row["seconds"] = round(record.seconds, 2)
            file.write("\n" + json.dumps(row))  # first the end of a line that a kill cut
        left = (time.monotonic() - begun) / (number + 1) * (len(todo) - number - 1)
        print(f"{number + 1}/{len(todo)}  {left / 60:.1f} min left  {row}", flush=True)


def _write(out: Path, study: Study, identity: str, base: ResidentBase, lines: Path) -> None:
    """Write the surface. The untuned base is measured too: what a setting gains, it gains over that."""
    with tempfile.TemporaryDirectory() as folder:
        mixing.mix(study.data, study.seed, None, folder)
        untuned = base.evaluate(None, folder, study)
    content = {
        "measured": now(),
        "what": f"{study.data.train} + {study.data.validation} records, {study.training.epochs} epochs, batch {BATCH}, "
        f"at most {study.data.max_length} tokens, {study.training.schedule} schedule, on {study.training.target_modules}",
        "base": Path(study.model.base).name,
        "base_digest": base.load().digest,
        "data_digest": identity,
        "sources": [[s.format, Path(s.uri).name, s.share] for s in study.data.sources],
        "machine": f"{platform.machine()}, cpu, {torch.get_num_threads()} thread of {os.cpu_count()} cores",
        "versions": versions("torch", "transformers", "peft", "accelerate"),
        "space": study.search.space.model_dump(mode="json", exclude_none=True),
        "untuned": untuned,
    }
    rows = list(_rows_of(lines))
    names = study.search.space.names
    trials = [
        [
            *(row["assignment"][name] for name in names),
            row["seed"],
            row.get("validation_loss"),
            row["seconds"],
        ]
        for row in rows
    ]
    content["columns"] = [*names, "seed", "validation_loss", "seconds"]
    head = json.dumps(content, indent=1)[:-2]
    body = ",\n".join("  " + json.dumps(trial) for trial in trials)
    out.write_text(f'{head},\n "trials": [\n{body}\n ]\n}}\n')


if __name__ == "__main__":
    main()
