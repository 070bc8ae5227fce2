"""Step `select`: choose one adapter by the study's rule, from the numbers of the search and the benchmarks."""

from __future__ import annotations

from typing import Any

from retune import store
from retune.records import digest
from retune.selection.choice import Selection
from retune.selection.choice import select as choose
from retune.steps.benchmark import read_benches, read_search
from retune.study import Study
from retune.workspace.ledger import Ledger
from retune.workspace.stamps import Stamps


def inputs(study: Study, folder: str) -> dict[str, Any]:
    """Return what decides the outcome of this step."""
    benches = [(r.model, r.task, r.score, r.prompt_digest) for r in read_benches(study, folder)]
    return {
        "search": read_search(folder).digest,
        "benchmark": benches,
        "select": study.select.model_dump(mode="json"),
    }


def select(study: Study, folder: str) -> Selection:
    """Choose the winner and write `selection.json`.

    Raises:
        RetuneError: if no trial completed.

    """
    stamps, ask = Stamps(folder), inputs(study, folder)
    if stamps.outputs("select", ask) is not None:
        return read_selection(folder)
    with stamps.step("select", ask) as outputs:
        trials = list(Ledger(folder).records.values())
        search = study.search
        selection = choose(
            trials,
            read_benches(study, folder),
            search.objective,
            study.select,
            study.benchmark.tasks,
            search.constraints,
            search.further_objectives,
        )
        content = selection.to_json()
        store.write(store.join(folder, "selection.json"), content)
        outputs["digest"] = digest(content)
        outputs["chosen"] = selection.chosen
    return selection


def read_selection(folder: str) -> Selection:
    """Return the selection of a search."""
    return Selection.model_validate_json(store.read(store.join(folder, "selection.json")))
