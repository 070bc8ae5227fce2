"""`python -m retune.launch.run STUDY.json`: the steps of pipelines/search.py on this machine, in this one process.

A cluster runs each step in a pod of its own; here that would only import everything eight times. What a step does is
the same function in both places, and a test holds the order of the two equal.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from retune import models, outages
from retune.engines import spares, worker
from retune.errors import RetuneError
from retune.processes import die_with_run
from retune.study import Study, parse
from retune.workspace.search_folder import SearchFolder

LAST_WORDS = "RETUNE_LAST_WORDS"
"""Environment variable naming the file that gets the error a step ends with, for `retune run` to show."""
Step = tuple[str, Callable[[], object]]


def steps(study: Study) -> Iterator[Step]:
    """Yield the steps of a checked study by name, in order; each is to be done before the next is asked for."""
    from retune.steps.benchmark import benchmark
    from retune.steps.mix import mix, recipe
    from retune.steps.promote import promote
    from retune.steps.register import register
    from retune.steps.search import search
    from retune.steps.select import select

    data: list[str] = []
    found: list[SearchFolder] = []

    def mixed() -> None:
        made = recipe(study)
        mix(made)
        data.append(made.folder)

    yield "mix", mixed
    yield "search", lambda: found.append(search(study, data[0]))
    (folder,) = found
    yield "benchmark", lambda: benchmark(study, folder)
    yield "select", lambda: select(study, folder)
    yield "register", lambda: register(study, folder)
    yield "promote", lambda: promote(study, folder, data[0])


def run(study: Study) -> None:
    """Do all steps. The report is written at the end, whatever happened before."""
    from retune.steps.report import report

    try:
        for name, step in steps(study):
            print(f"step {name}", flush=True)
            with last_words(name):
                step()
    finally:
        print("step report", flush=True)
        with last_words("report"):
            report(study)


@contextmanager
def last_words(step: str) -> Iterator[None]:
    """Leave the error that a step ends with in the file of ``RETUNE_LAST_WORDS``; the first step that fails is kept."""
    try:
        yield
    except Exception as error:
        path = Path(os.environ.get(LAST_WORDS, os.devnull))
        if not path.exists():
            said = str(error) if isinstance(error, RetuneError) else f"{type(error).__name__}: {error}"
            path.write_text(f"the step {step!r} failed: {said.strip()}", encoding="utf-8")
        raise


def main(study: Study) -> None:
    """Do all steps, with workers for the search that were forked once everything large was imported."""
    unwatch = die_with_run()
    outages.outlast()
    if (count := spares.wanted(study)) and not _is_searched(study):
        models.import_libraries(study.model)
        unwatch()  # its thread: only a process with one thread is forked safely
        if spares.fork(count):
            worker.main()
            return
        die_with_run()
    else:
        models.quiet()
        models.spare_bitsandbytes(study.model)
    run(study)


def _is_searched(study: Study) -> bool:
    from retune.steps.plan import plan

    with suppress(Exception):  # the step itself says what is wrong
        return plan(study)["search"]
    return False


if __name__ == "__main__":
    main(parse(json.loads(Path(sys.argv[1]).read_text())))
