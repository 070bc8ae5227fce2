"""Which steps of a study are up to date, from stamps and records alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

from retune import store
from retune.data import mixing
from retune.steps import benchmark, promote, register, report, search, select
from retune.study import Study
from retune.workspace import folders
from retune.workspace.search_folder import SearchFolder
from retune.workspace.stamps import STEPS

_INPUTS: dict[str, Callable[[Study, SearchFolder], object]] = {
    "search": search.inputs,
    "benchmark": benchmark.inputs,
    "select": select.inputs,
    "register": register.inputs,
    "promote": promote.inputs,
    "report": report.inputs,
}


def plan(study: Study) -> dict[str, bool]:
    """Return for every step, in order, whether it is up to date; after one that is not, no step is."""
    states = _states(study)
    current: dict[str, bool] = {}
    for step in STEPS:
        current[step] = all(current.values()) and next(states)
    return current


def checked(study: Study) -> dict[str, bool]:
    """Check a study, unless all its steps are up to date, and return its `plan`.

    A step that is up to date was checked before it ran, and its stamp has its inputs.

    Raises:
        InputError: as `retune.steps.check.check`, with everything that is wrong with the study.
    """
    with suppress(Exception):  # the check reports what is wrong, or the plan below raises it again
        planned = plan(study)
        if all(planned.values()):
            return planned
    from retune.steps.check import check  # it reads the base, with libraries that take seconds to import

    check(study)
    return plan(study)


def _states(study: Study) -> Iterator[bool]:
    data = folders.data_folder(study)
    yield store.exists(store.join(data, "mix.json"))
    folder = SearchFolder(folders.search_folder(study, mixing.read_mix_record(data).digest), at_once=True)
    for step, inputs in _INPUTS.items():
        yield folder.done(step, inputs(study, folder)) is not None
