"""Step `report`: the page a person reads, and its figures on the study's MLflow run."""

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
    """Return what decides the outcome of this step."""
    return {
        name: digest(folder.read(name)) for name in (SEARCH, SELECTION, GATE, ANSWERS) if folder.has(name)
    }


def report(study: Study) -> str | None:
    """Write the report from whatever records there are; return its URI, or None if no trial was ever issued."""
    with gc_paused():
        return _report(study)


def _report(study: Study) -> str | None:
    folder = SearchFolder.of(study)
    if folder is None:
        return None
    out, ask = folder.path(PAGE), inputs(study, folder)
    if folder.stamps.outputs("report", ask) is not None:
        return out
    trials = list(folder.trials.values())
    benches = folder.benches(study) if SEARCH in ask else []
    selection = folder.selection if SELECTION in ask else None
    gate = folder.gate if GATE in ask else None
    mix = mixing.read_mix_record(folders.data_folder(study))
    search = study.search
    shown = selection or choose(trials, benches, search.objective, study.select, study.benchmark.tasks)
    drawn = figures.draw(trials, search.space, search.objective, shown)  # once, for the page and for MLflow
    page.write_report(study, mix, trials, benches, selection, gate, out, folder.answers, drawn)
    _track(study, folder, mix.digest, selection, out, drawn)
    if gate is not None:  # an unfinished study is reported anew each time
        with folder.stamps.step("report", ask):
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
    with tempfile.TemporaryDirectory() as made:
        for path in write_files(drawn, Path(made)):
            tracker.artifact(path, f"figures/{path.name}")
        tracker.artifact(store.download(out), PAGE)
        tracker.finish_study("FINISHED" if selection else "FAILED")
        tracker.close(max(FLUSH_SECONDS, outages.flush_seconds()))  # the figures are gone after this block
