"""Seconds per GetSuggestions of a running service, by algorithm and length of history.

    python benchmarks/bench_suggest.py            prints a table and writes benchmarks/results/suggest.json

The service is asked through its socket, as Katib asks it. Histories are those of random points, the start design
included, so that every algorithm has to do its real work.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import grpc
import numpy as np

from functions import valley
from retune import search
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--calls", type=int, default=5, help="calls of each kind; the first one is not counted"
    )
    parser.add_argument("--count", type=int, default=1, help="points per call")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "suggest.json")
    given = parser.parse_args()
    command = [
        sys.executable,
        "-m",
        "retune",
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--die-with-parent",
    ]
    service = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert service.stdout is not None
    address = service.stdout.readline().split()[-1]
    rows = []
    try:
        with grpc.insecure_channel(address, options=UNLIMITED) as channel:
            for algorithm in search.ALGORITHMS:
                for length in LENGTHS:
                    seconds = measure(channel, algorithm, length, given.count, given.calls)
                    rows.append(
                        {
                            "algorithm": algorithm,
                            "history": length,
                            "count": given.count,
                            "median": statistics.median(seconds),
                            "max": max(seconds),
                        }
                    )
                    print(
                        f"{algorithm:12} {length:5} trials  median {rows[-1]['median']:.2f} s  max {rows[-1]['max']:.2f} s",
                        flush=True,
                    )
    finally:
        service.terminate()
        service.wait()
    given.out.parent.mkdir(exist_ok=True)
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    content = {
        "measured": now(),
        **machine,
        "versions": versions("numpy", "scipy", "optuna", "PyNomadBBO", "grpcio"),
        "rows": rows,
    }
    given.out.write_text(json.dumps(content, indent=1) + "\n")


def measure(channel: grpc.Channel, algorithm: str, length: int, count: int, calls: int) -> list[float]:
    """Return the seconds of each call but the first; each call is of another seed, so that none is the same."""
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
