"""Runs PyNomad in a separate process: a request on standard input, the answer on standard output, both JSON.

PyNomad ends the process on many inputs (std::terminate), keeps its state in singletons, writes to stdout, and
may spin or eat memory: so this file is started by path for each call, imports nothing of retune, and limits
itself.

The request holds ``parameters`` of `PyNomad.suggest`, ``cache`` (the text of a cache file), ``tries`` (a seed
and a frame size each), ``known`` (points not to propose), ``count``, ``cpu_seconds`` and ``memory_mib``. The
tries are made in order until `count` new points are found; a frame that gave nothing new is not tried with
another seed. The answer is a list of [point, index of the try].
"""

import json
import os
import resource
import sys


def main() -> None:
    """Answer one request."""
    answer = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # NOMAD prints at any display degree
    request = json.load(sys.stdin)
    seconds, memory = request["cpu_seconds"], request["memory_mib"] << 20
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    import PyNomad

    known = {tuple(point) for point in request["known"]}
    indices: dict[tuple[int, ...], int] = {}
    barren = ""
    for index, (seed, frame) in enumerate(request["tries"]):
        if frame == barren:
            continue
        with open("cache.txt", "w") as file:  # afresh each time: NOMAD may rewrite it
            file.write(request["cache"])
        PyNomad.setSeed(seed)
        before = len(indices)
        parameters = [*request["parameters"], f"INITIAL_FRAME_SIZE {frame}", "CACHE_FILE cache.txt"]
        for point in PyNomad.suggest(parameters) or []:
            levels = tuple(round(coordinate) for coordinate in point)
            if levels not in known:
                indices.setdefault(levels, index)
        if len(indices) >= request["count"]:
            break
        if len(indices) == before:
            barren = frame
    with os.fdopen(answer, "w") as file:
        json.dump(list(indices.items()), file)
    os._exit(0)  # no destructors: NOMAD's singletons and threads need not end well


if __name__ == "__main__":
    main()
