"""What issue 12 asks of a GPU, measured in under ten minutes: one command, one table.

    python benchmarks/bench_gpu.py                                  # with the demo's records
    python benchmarks/bench_gpu.py --source alpaca:FILE:0.7 --source dolly:FILE:0.3 --mmlu FOLDER --out gpu.json
    python benchmarks/bench_gpu.py --shapes tiny tiny               # the same programs on a CPU, to try them

Other benchmarks measure the lines, each in a process of its own, so that one that fails or runs out of memory leaves the others.
None begins when `--minutes` are over, and the one at work is ended then; the table says so. `--out` is written after each.
Every comparison is of equal work: beside it stands the largest difference of a loss, or whether predictions are equal. Bases have
random weights, which cost as much time as trained ones.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measuring

HERE = Path(__file__).parent
Result = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A line of the table: what was measured, the goal (a least value), and where it stands in a program's result."""

    what: str
    goal: float | None
    read: Callable[[Result], float]


@dataclass(frozen=True)
class Measurement:
    """One program to run: its words, the file of its result, its lines of the table, and what shows that the work was equal."""

    name: str
    words: list[str]
    rows: list[Row]
    equal: Callable[[Result], str]


def measurements(options: argparse.Namespace, folder: Path) -> list[Measurement]:
    """Return the programs in the order of their weight: what comes last may find no time left."""
    small, large = options.shapes
    sources = [word for source in options.source for word in ("--source", source)]
    bases = {shape: folder / f"base-{shape}" for shape in options.shapes}

    def pack(shape: str, trials: int, records: int, alone: int, peers: int) -> list[str]:
        return [
            "bench_pack.py", "--shape", shape, "--base", str(bases[shape]), "--trials", str(trials), "--records", str(records),
            "--alone", str(alone), "--peers", str(peers), *sources,
        ]  # fmt: skip

    def side_by_side(shape: str, trials: int, words: list[str], goals: list[float | None]) -> Measurement:
        trainer, together, alone = goals
        rows = [
            Row("times a Trainer process each", trainer, lambda result: result["ratio_to_trainer"]["wall"]),
            Row("times one after another", 2, lambda result: result["ratio_to_alone"]["wall"]),
            Row("real tokens/s side by side", together, lambda result: result["tokens_per_second"]["side_by_side"]),
            Row("real tokens/s of one trial", alone, lambda result: result["tokens_per_second"]["alone"]),
            Row("share of the 4N limit, side by side", None, lambda result: result["share_of_4n_limit"]["side_by_side"]),
            Row("share of the 4N limit, one trial", None, lambda result: result["share_of_4n_limit"]["alone"]),
            compiled,
        ]  # fmt: skip
        return Measurement(
            f"{shape}, {trials} trials", words, rows,
            lambda result: _apart(max(result["difference_to_alone"], result["difference_to_trainer"])),
        )  # fmt: skip

    compiled = Row(
        "seconds of the first trial, compiling included (at most 60)",
        None,
        lambda result: result["first_trial"]["wall"],
    )
    found = [
        side_by_side(small, 16, pack(small, 16, 160, 4, 2), [10, 60_000, None]),
        side_by_side(large, 8, pack(large, 8, 64, 2, 1), [4, 18_000, 12_000]),
        Measurement(
            f"{small}, compiled before", pack(small, 1, 80, 1, 0), [compiled],
            lambda result: _apart(result["difference_to_alone"]),
        ),
    ]  # fmt: skip
    if options.mmlu:
        found.append(
            Measurement(
                f"{small}, MMLU's longest prompts",
                ["bench_eval.py", "--model", str(bases[small]), "--mmlu", str(options.mmlu), "--subjects", options.subject,
                 "--batch-size", "32", "--sample", "12", "--context", str(options.context)],
                [Row("times one question at a time", 4, lambda result: result["speedup"])],
                lambda result: f"{result['compared']} predictions {'equal' if result['equal'] else 'DIFFERENT'}",
            )
        )  # fmt: skip
    return found


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Measure, print the table and return its lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shapes", nargs=2, default=["1.1B", "7B"], metavar=("SMALL", "LARGE"), help="of bench_pack.py"
    )
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="FORMAT:FILE:SHARE",
        help="records; default: the demo's",
    )
    parser.add_argument("--mmlu", type=Path, help="MMLU's folder; without it its line is left out")
    parser.add_argument("--subject", default="high_school_us_history")
    parser.add_argument("--context", type=int, default=2050, help="2048 + 2: the protocol's own")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all lines together")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    until = time.monotonic() + 60 * options.minutes
    found: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        # An empty cache: the first trial of the first line compiles all that is compiled
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(Path(folder) / "compiled")}
        for measurement in measurements(options, Path(folder)):
            found += _measure(measurement, Path(folder) / "result.json", environment, until)
            if options.out:
                options.out.write_text(
                    json.dumps({"settings": _settings(options), "rows": found}, indent=2) + "\n"
                )
    _print(found)
    return found


def _measure(measurement: Measurement, file: Path, environment: dict[str, str], until: float) -> list[Result]:
    """Run one program and return its lines of the table."""
    file.unlink(missing_ok=True)
    program, *words = measurement.words
    flag = "--out" if program == "bench_eval.py" else "--json"
    command = [sys.executable, str(HERE / program), *words, flag, str(file)]
    begun, why = time.monotonic(), ""
    if until - begun < 20:
        why = "not measured: no time left"
    else:
        print(f"---- {measurement.name}, {until - begun:.0f} s left", file=sys.stderr, flush=True)
        try:
            code = subprocess.run(
                command, env=environment, timeout=until - begun, stdout=sys.stderr
            ).returncode
            why = f"not measured: it ended with code {code}" if code and not file.exists() else ""
        except subprocess.TimeoutExpired:
            why = "not measured: out of time"
    if why:
        return [
            {"base": measurement.name, "what": row.what, "goal": row.goal, "why": why}
            for row in measurement.rows
        ]
    result = json.loads(file.read_text())
    about = {"base": measurement.name, "equal": measurement.equal(result), "seconds": time.monotonic() - begun,
             "machine": result["machine"], "versions": result["versions"], "peak_gib": result.get("peak_gib")}  # fmt: skip
    found = []
    for row in measurement.rows:
        try:
            found.append({**about, "what": row.what, "goal": row.goal, "value": row.read(result)})
        except KeyError:  # the share of a limit that is not known
            continue
    return found


def _apart(difference: float) -> str:
    return f"losses differ by at most {difference:.1e}"


def _settings(options: argparse.Namespace) -> Result:
    return {"shapes": options.shapes, "subject": options.subject, "context": options.context,
            "sources": [Path(measuring.source(text)["uri"]).name for text in options.source]}  # fmt: skip


def _print(found: list[Result]) -> None:
    """Print the lines as a Markdown table, as docs/benchmarks.md has it."""
    print("| base | what | goal | measured | equal |\n|---|---|---|---|---|")
    for row in found:
        value = (
            row.get("why") or f"{row['value']:.3g}"
            if "why" in row or row["value"] < 1000
            else f"{row['value']:,.0f}"
        )
        goal = "" if row["goal"] is None else f"{row['goal']:,}"
        print(f"| {row['base']} | {row['what']} | {goal} | {value} | {row.get('equal', '')} |")


if __name__ == "__main__":
    main()
