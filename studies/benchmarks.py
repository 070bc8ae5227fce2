"""Write the tables of docs/results/benchmarks.md from benchmark records: python studies/benchmarks.py FOLDER...

A folder is what `retune bench --out` was given, with the models `base` and `tuned`. The tables go to stdout.
"""

from __future__ import annotations

import sys
from pathlib import Path

from retune.records import BenchRecord
from retune.selection import statistics

TASKS = ("mmlu", "bbh", "drop", "humaneval", "hellaswag")


def read(folder: Path) -> dict[tuple[str, str], BenchRecord]:
    """Return the records by model and task."""
    found = [BenchRecord.model_validate_json(path.read_bytes()) for path in sorted(folder.glob("*/*.json"))]
    return {(record.model, record.task): record for record in found}


def scores(records: dict[tuple[str, str], BenchRecord]) -> list[str]:
    """Return the table of every score."""
    lines = [
        "| task | model | score % | standard error | n | shots | protocol | batch | seconds | prompts | data |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        for (_, name), r in records.items():
            if name == task:
                lines.append(
                    f"| {task} | {r.model} | {100 * r.score:.2f} | {100 * r.stderr:.2f} | {r.n:,} | {r.shots} | {r.protocol} "
                    f"| {r.batch_size} | {r.seconds:.0f} | {r.prompt_digest} | {r.data_digest} |"
                )
    return lines


def differences(records: dict[tuple[str, str], BenchRecord]) -> list[str]:
    """Return the table of tuned minus base, paired question by question."""
    lines = [
        "| task | tuned − base, points | 95 % interval | right only tuned / only base | p | test |",
        "|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        base, tuned = records.get(("base", task)), records.get(("tuned", task))
        if base is None or tuned is None:
            continue
        d = statistics.compare(tuned, base)
        interval = "" if d.low is None or d.high is None else f"{100 * d.low:+.2f} to {100 * d.high:+.2f}"
        p = "" if d.p is None else f"{d.p:.2g}"
        lines.append(
            f"| {task} | {100 * d.difference:+.2f} | {interval} | {d.first_only} / {d.second_only} | {p} | {d.test} |"
        )
    return lines


def made_with(records: dict[tuple[str, str], BenchRecord]) -> str:
    """Return what all records have in common: type of number, seed, base, versions, adapter."""
    kinds = sorted({record.dtype for record in records.values()})
    seeds = sorted({record.settings["seed"] for record in records.values()})
    bases = sorted({record.settings["base_digest"] for record in records.values()})
    adapters = sorted({record.adapter_digest for record in records.values() if record.adapter_digest})
    packages = {item for record in records.values() for item in record.versions.items()}
    versions = ", ".join(f"{name} {version}" for name, version in sorted(packages))
    return f"{', '.join(kinds)}; seed {seeds}; base {bases}; adapter {adapters}; {versions}"


if __name__ == "__main__":
    for place in sys.argv[1:]:
        kept = read(Path(place))
        print("\n".join([f"## {place}", "", *scores(kept), "", *differences(kept), "", made_with(kept), ""]))
