"""Runs PyNomad in a process of its own: reads ``request.json``, writes ``answer.json`` in the current folder.

PyNomad ends the process on many inputs (std::terminate), keeps its state in singletons, writes to stdout, and
may spin or eat memory: so this file is started by path for each call, imports nothing of retune, and limits
itself.

The request holds ``parameters`` of `PyNomad.suggest`, ``cache`` (the text of a cache file), ``tries`` (a seed
and further parameters each), ``known`` (points not to propose), ``count``, ``cpu_seconds`` and
``memory_mib``. The tries are made in order until `count` new points are found. The answer is a list of
[point, index of the try].
"""

import json
import os
import resource


def main() -> None:
    """Answer the request in the current folder."""
    with open("request.json") as file:
        request = json.load(file)
    seconds, memory = request["cpu_seconds"], request["memory_mib"] << 20
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    import PyNomad

    known = {tuple(point) for point in request["known"]}
    found: dict[tuple[int, ...], int] = {}
    for index, (seed, extra) in enumerate(request["tries"]):
        with open("cache.txt", "w") as file:  # afresh each time: NOMAD may rewrite it
            file.write(request["cache"])
        PyNomad.setSeed(seed)
        for point in PyNomad.suggest([*request["parameters"], *extra, "CACHE_FILE cache.txt"]) or []:
            levels = tuple(round(coordinate) for coordinate in point)
            if levels not in known:
                found.setdefault(levels, index)
        if len(found) >= request["count"]:
            break
    with open("answer.json", "w") as file:
        json.dump(list(found.items()), file)
    os._exit(0)  # no destructors: NOMAD's singletons and threads need not end well


if __name__ == "__main__":
    main()
