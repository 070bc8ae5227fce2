"""`python -m retune.launch.run STUDY.json`: the steps of pipelines/search.py on this machine, in this one process.

A cluster runs each step in a pod of its own; on one machine that would only repeat the imports eight times. A step is
the same function in both, and a test compares their order.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from retune import models, outages
from retune.engines import spares, worker
from retune.errors import FULL, DiskFull, RetuneError
from retune.processes import die_with_run
from retune.study import Study, parse
from retune.workspace import folders, progress
from retune.workspace.search_folder import SearchFolder

ERROR_FILE = "RETUNE_LAST_WORDS"
"""Environment variable with the path of the file for the error of a failed step, which `retune run` shows."""
Step = tuple[str, Callable[[], object]]


def steps(study: Study) -> Iterator[Step]:
    """Yield names and functions of a checked study's steps; each must have run before the next is requested."""
    from retune.steps.benchmark import benchmark
    from retune.steps.mix import mix, recipe
    from retune.steps.promote import promote
    from retune.steps.register import register
    from retune.steps.search import search
    from retune.steps.select import select

    data: list[str] = []  # what one step returns is an argument of the next
    searched: list[SearchFolder] = []

    def run_mix() -> None:
        mixing = recipe(study)
        mix(mixing)
        data.append(mixing.folder)

    yield "mix", run_mix
    yield "search", lambda: searched.append(search(study, data[0]))
    (folder,) = searched
    yield "benchmark", lambda: benchmark(study, folder)
    yield "select", lambda: select(study, folder)
    yield "register", lambda: register(study, folder)
    yield "promote", lambda: promote(study, folder, data[0])


def run(study: Study) -> None:
    """Run all steps. The report is written at the end, also after a failure."""
    from retune.steps.report import report

    path = folders.work_folder(study) / "progress.json"
    try:
        for name, step in steps(study):
            print(f"step {name}", flush=True)
            progress.begin(path, name)
            with error_kept(name):
                step()
        progress.begin(path, "report")
    finally:
        print("step report", flush=True)
        with error_kept("report"):
            report(study)
    progress.begin(path, progress.DONE)


@contextmanager
def error_kept(step: str) -> Iterator[None]:
    """Write the error of a step into the file that `ERROR_FILE` names; that of the first failed step is kept."""
    try:
        yield
    except Exception as error:
        path = Path(os.environ.get(ERROR_FILE, os.devnull))
        if not path.exists():
            text = str(error) if isinstance(error, RetuneError) else f"{type(error).__name__}: {error}"
            with suppress(OSError):  # on a full disk the exit code has to tell
                path.write_text(f"the step {step!r} failed: {text.strip()}", encoding="utf-8")
        raise


def main(study: Study) -> None:
    """Run all steps, with workers for the search that are forked after the large imports (`retune.engines.spares`)."""
    stop_watching = die_with_run()
    outages.wait_long()
    if (count := spares.wanted(study)) and not _is_searched(study):
        models.import_libraries(study.model)
        stop_watching()  # and so ends its thread: only a process with a single thread can be forked safely
        if spares.fork(count):
            worker.main()
            return
        die_with_run()
    else:
        models.quiet()
        models.skip_bitsandbytes(study.model)
    run(study)


def _is_searched(study: Study) -> bool:
    from retune.steps.plan import plan

    with suppress(Exception):  # the step itself reports what is wrong
        return plan(study)["search"]
    return False


if __name__ == "__main__":
    try:
        main(parse(json.loads(Path(sys.argv[1]).read_text())))
    except (DiskFull, OSError) as error:
        if isinstance(error, OSError) and error.errno not in FULL:
            raise
        with suppress(OSError):
            traceback.print_exc()
        sys.exit(DiskFull.exit_code)
