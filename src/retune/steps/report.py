"""Step `report`: the HTML report, and its figures in the study's MLflow run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retune import outages, store
from retune.data import mixing
from retune.processes import gc_paused
from retune.records import digest
from retune.report import figures, page
from retune.report.style import write_files
from retune.selection.choice import select as choose
from retune.selection.record import Selection
from retune.steps.search import open_tracker
from retune.study import Study
from retune.workspace import folders
from retune.workspace.search_folder import ANSWERS, GATE, PAGE, SEARCH, SELECTION, SearchFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLUSH_SECONDS = 30.0


def inputs(study: Study, folder: SearchFolder) -> dict[str, Any]:
    """Return what determines the result of this step; the step is repeated when it changes."""
    return {
        name: digest(folder.read(name)) for name in (SEARCH, SELECTION, GATE, ANSWERS) if folder.has(name)
    }


def report(study: Study) -> str | None:
    """Write the report from the records so far; return its URI, or None if the search has not begun."""
    with gc_paused():
        return _report(study)


def _report(study: Study) -> str | None:
    folder = SearchFolder.of(study)
    if folder is None:
        return None
    out, step_inputs = folder.path(PAGE), inputs(study, folder)
    if folder.done("report", step_inputs) is not None:
        return out
    trials = list(folder.trials.values())
    benches = folder.benches(study) if SEARCH in step_inputs else []
    selection = folder.selection if SELECTION in step_inputs else None
    gate = folder.gate if GATE in step_inputs else None
    mix = mixing.read_mix_record(folders.data_folder(study))
    search = study.search
    shown_selection = selection or choose(
        trials, benches, search.objective, study.select, study.benchmark.tasks
    )
    # Once, for the page and for MLflow
    drawn = figures.draw(trials, search.space, search.objective, shown_selection)
    page.write_report(study, mix, trials, benches, selection, gate, out, folder.answers, drawn)
    _track(study, folder, mix.digest, selection, out, drawn)
    if gate is not None:  # no stamp for an unfinished study: its report is written again each time
        with folder.stamps.step("report", step_inputs):
            pass
    folder.gather()
    return out


def _track(
    study: Study,
    folder: SearchFolder,
    data_digest: str,
    selection: Selection | None,
    out: str,
    drawn: dict[str, Figure],
) -> None:
    tracker = open_tracker(study, folder, data_digest)
    with tempfile.TemporaryDirectory() as temporary:
        for path in write_files(drawn, Path(temporary)):
            tracker.artifact(path, f"figures/{path.name}")
        tracker.artifact(store.download(out), PAGE)
        tracker.finish_study("FINISHED" if selection else "FAILED")
        # Wait for the upload: the temporary folder is deleted after this block
        tracker.close(outages.flush_seconds(FLUSH_SECONDS))
