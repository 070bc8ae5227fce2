"""Step `report`: the page a person reads, and its figures on the study's MLflow run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from retune import store
from retune.data import mixing
from retune.records import TrialRecord, digest
from retune.report import figures, page
from retune.selection.choice import Selection
from retune.steps.benchmark import read_benches
from retune.steps.promote import read_gate
from retune.steps.search import open_tracker
from retune.steps.select import read_selection
from retune.study import Study
from retune.workspace import folders
from retune.workspace.ledger import Ledger
from retune.workspace.stamps import Stamps

PAGE = "report.html"
FLUSH_SECONDS = 30.0


def inputs(study: Study, folder: str) -> dict[str, Any]:
    """Return what decides the outcome of this step."""
    files = {name: store.join(folder, name) for name in ("search.json", "selection.json", "gate.json")}
    return {name: digest(store.read(uri)) for name, uri in files.items() if store.exists(uri)}


def report(study: Study) -> str | None:
    """Write the report from whatever records there are; return its URI, or None if no trial was ever issued."""
    data = folders.data_folder(study)
    if not store.exists(store.join(data, "mix.json")):
        return None
    mix = mixing.read_mix_record(data)
    folder = folders.search_folder(study, mix.digest)
    if not store.exists(store.join(folder, "study.json")):
        return None
    out = store.join(folder, PAGE)
    stamps, ask = Stamps(folder), inputs(study, folder)
    if stamps.outputs("report", ask) is not None:
        return out
    trials = list(Ledger(folder).records.values())
    searched = "search.json" in ask
    benches = read_benches(study, folder) if searched else []
    selection = read_selection(folder) if "selection.json" in ask else None
    gate = read_gate(folder) if "gate.json" in ask else None
    page.write_report(study, mix, trials, benches, selection, gate, out)
    _track(study, folder, mix.digest, trials, selection, out)
    if gate is not None:  # an unfinished study is reported anew each time
        with stamps.step("report", ask):
            pass
    return out


def _track(
    study: Study,
    folder: str,
    data_digest: str,
    trials: list[TrialRecord],
    selection: Selection | None,
    out: str,
) -> None:
    tracker = open_tracker(study, folder, data_digest)
    with tempfile.TemporaryDirectory() as made:
        for path in figures.write_figures(study, trials, Path(made), selection):
            tracker.artifact(path, f"figures/{path.name}")
        tracker.artifact(store.download(out), PAGE)
        tracker.finish_study("FINISHED" if selection else "FAILED")
        tracker.close(FLUSH_SECONDS)  # the figures are gone after this block
