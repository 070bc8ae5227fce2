"""Step `select`: choose one adapter by the study's rule, from the numbers of the search and the benchmarks."""

from __future__ import annotations

from typing import Any

from retune.records import digest
from retune.selection.choice import select as choose
from retune.selection.record import Selection
from retune.study import Study
from retune.workspace.search_folder import SELECTION, SearchFolder


def inputs(study: Study, folder: SearchFolder) -> dict[str, Any]:
    """Return what decides the outcome of this step."""
    benches = [(r.model, r.task, r.score, r.prompt_digest) for r in folder.benches(study)]
    return {
        "search": folder.search.digest,
        "benchmark": benches,
        "select": study.select.model_dump(mode="json"),
    }


def select(study: Study, folder: SearchFolder) -> Selection:
    """Choose the winner and write `selection.json`.

    Raises:
        RetuneError: if no trial completed.

    """
    ask = inputs(study, folder)
    if folder.stamps.outputs("select", ask) is not None:
        return folder.selection
    with folder.stamps.step("select", ask) as outputs:
        selection = choice(study, folder)
        folder.write(SELECTION, selection)
        outputs["digest"] = digest(selection.to_json())
        outputs["chosen"] = selection.chosen
    return selection


def choice(study: Study, folder: SearchFolder) -> Selection:
    """Return what the rule chooses from the trials and scores that are there; nothing is written."""
    search = study.search
    return choose(
        list(folder.trials.values()),
        folder.benches(study),
        search.objective,
        study.select,
        study.benchmark.tasks,
        search.constraints,
        search.further_objectives,
        search.space,
    )
