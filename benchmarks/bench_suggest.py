"""Seconds per GetSuggestions of a running service, by algorithm and length of history.

    python benchmarks/bench_suggest.py    prints a table; writes results/suggest.json and docs/results/suggest.md

The service is asked through its socket, as Katib asks it. Histories are those of random points, the start design
included, so that every algorithm has to do its real work.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np

import measuring
from functions import valley
from retune import search
from retune.engines.service import COMMAND
from retune.records import now, versions
from retune.search import Objective, Observation, design
from retune.search.nomad import NomadSettings
from retune.search.problem import pose
from retune.space import tribes2024
from retune.suggestion import messages as katib
from retune.suggestion.experiment import experiment_of, search_of
from retune.suggestion.service import UNLIMITED
from retune.suggestion.trials import trial_of

LENGTHS = (10, 100, 1000)
HERE = Path(__file__).parent


def history(length: int) -> list[Observation]:
    """Return observations of the start design and of random points; a tenth failed."""
    space, rng = tribes2024(), np.random.default_rng(0)
    problem = pose(space, Objective(), NomadSettings(), [], 0, 0)
    points = [space.decode(candidate.levels) for candidate in design.start(problem, 8)]
    while len(points) < length:
        points.append(space.decode(space.from_unit(rng.random(len(space.names)).tolist())))
    return [
        Observation(
            given,
            "failed" if k % 10 == 9 else "completed",
            {} if k % 10 == 9 else {"validation_loss": valley(given)},
            number=k,
        )
        for k, given in enumerate(points)
    ]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--algorithms", nargs="+", default=list(search.ALGORITHMS))
    parser.add_argument(
        "--calls", type=int, default=9, help="calls of each kind; a first one is made and not counted"
    )
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 8], help="points per call")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "suggest.json")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "results" / "suggest.md")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    service = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert service.stdout is not None
    address = service.stdout.readline().split()[-1]
    rows = []
    try:
        with grpc.insecure_channel(address, options=UNLIMITED) as channel:
            for algorithm, length, count in itertools.product(given.algorithms, LENGTHS, given.counts):
                seconds = measure(channel, algorithm, length, count, given.calls)
                row = {"algorithm": algorithm, "history": length, "count": count}
                rows.append({**row, "median": statistics.median(seconds), "max": max(seconds)})
                print(
                    f"{algorithm:12} {length:5} trials {count:3} points  "
                    f"median {rows[-1]['median']:.3f} s  max {rows[-1]['max']:.3f} s",
                    flush=True,
                )
    finally:
        service.terminate()
        service.wait()
    content = {
        "measured": now(),
        "machine": platform.machine(),
        "processor": measuring.processor(),
        "cores": os.cpu_count(),
        "load": load,
        "calls": given.calls,
        "versions": versions("numpy", "scipy", "optuna", "PyNomadBBO", "grpcio"),
        "rows": rows,
    }
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(json.dumps(content, indent=1) + "\n")
    given.page.write_text(page(content))


def page(content: dict[str, Any]) -> str:
    """Return the results as a page."""
    packages = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    counts = sorted({row["count"] for row in content["rows"]})
    text = [
        "# Seconds per call of the suggestion service",
        "",
        "Written by `python benchmarks/bench_suggest.py` "
        f"on {content['measured'][:10]}: median (longest) of {content['calls']} calls through the socket of a warm "
        "service, by the number of trials in the request, over the space of Tribes et al. (2024).",
        f"Machine: {content['processor']}, {content['cores']} cores, load {content['load']:.1f} before. {packages}.",
    ]
    for count in counts:
        text += ["", f"## {count} point{'s' if count > 1 else ''} asked", ""]
        text += ["| algorithm | " + " | ".join(f"{length:,} trials" for length in LENGTHS) + " |"]
        text += ["|---|" + "---|" * len(LENGTHS)]
        for algorithm in dict.fromkeys(row["algorithm"] for row in content["rows"]):
            found = {
                row["history"]: f"{row['median']:.3f} ({row['max']:.3f})"
                for row in content["rows"]
                if (row["algorithm"], row["count"]) == (algorithm, count)
            }
            text.append(f"| `{algorithm}` | " + " | ".join(found[length] for length in LENGTHS) + " |")
    return "\n".join(text) + "\n"


def measure(channel: grpc.Channel, algorithm: str, length: int, count: int, calls: int) -> list[float]:
    """Return the seconds of each call but the first; each is of another number of points issued, so that none is the same."""
    ask = channel.unary_unary(
        f"/{katib.SERVICE}/GetSuggestions",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=katib.GetSuggestionsReply.FromString,
    )
    seconds = []
    for seed in range(calls + 1):
        experiment = experiment_of("bench", algorithm, tribes2024(), Objective(), {}, 0)
        found = search_of(experiment)
        request = katib.GetSuggestionsRequest(
            experiment=experiment,
            trials=[trial_of(found, entry) for entry in history(length)],
            current_request_number=count,
            total_request_number=length + count + seed,
        )
        begun = time.perf_counter()
        ask(request, timeout=60)
        seconds.append(time.perf_counter() - begun)
    return seconds[1:]


if __name__ == "__main__":
    main()
