"""Step `select`: choose one adapter by the study's rule, from the results of the search and the benchmarks."""

from __future__ import annotations

from typing import Any

from retune.records import digest
from retune.selection.choice import select as choose
from retune.selection.record import Selection
from retune.study import Study
from retune.workspace.search_folder import SELECTION, SearchFolder


def inputs(study: Study, folder: SearchFolder) -> dict[str, Any]:
    """Return what determines the result of this step; the step is repeated when it changes."""
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
    step_inputs = inputs(study, folder)
    if folder.done("select", step_inputs) is not None:
        return folder.selection
    with folder.stamps.step("select", step_inputs) as outputs:
        selection = choice(study, folder)
        folder.write(SELECTION, selection)
        outputs["digest"] = digest(selection.to_json())
        outputs["chosen"] = selection.chosen
    return selection


def choice(study: Study, folder: SearchFolder) -> Selection:
    """Return the rule's selection from the trials and scores so far; write nothing."""
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
