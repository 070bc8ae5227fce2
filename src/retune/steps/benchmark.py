"""Step `benchmark`: score the best trials beside the untuned base and the default setting."""

from __future__ import annotations

from typing import Any

from retune import gpus, store
from retune.evaluation import bench
from retune.events import Event
from retune.records import BenchRecord, TrialRecord, digest
from retune.steps.search import SearchRecord, open_tracker
from retune.study import Study
from retune.workspace import folders, progress
from retune.workspace.ledger import BASE, DEFAULT, Ledger
from retune.workspace.stamps import Stamps


def inputs(study: Study, folder: str) -> dict[str, Any]:
    """Return what decides the outcome of this step."""
    return {
        "search": read_search(folder).digest,
        "benchmark": study.benchmark.model_dump(mode="json"),
        "seed": study.seed,
    }


def benchmark(study: Study, folder: str) -> list[BenchRecord]:
    """Score the candidates of a finished search on every task of the study."""
    stamps, ask = Stamps(folder), inputs(study, folder)
    if stamps.outputs("benchmark", ask) is not None:
        return read_benches(study, folder)
    with stamps.step("benchmark", ask) as outputs:
        candidates = [
            bench.Candidate(record.trial, record.adapter_uri, record.adapter_digest)
            for record in chosen(study, folder)
        ]
        path = folders.work_folder(study) / "progress.json"
        shown = progress.Progress(step="benchmark")

        def report(event: Event) -> None:
            if event.kind != "answering":
                return
            shown.running = {f"{event.model} {event.task}": event.done / max(1, event.total)}
            shown.left = event.seconds_left
            progress.write(path, shown)

        records: list[BenchRecord] = []
        if study.benchmark.tasks:
            if gpus.in_a_step_of_a_cluster():
                gpus.require(study.cluster.gpus)
            records = bench.run(
                study.model, candidates, study.benchmark, study.seed, store.join(folder, "bench"), report
            )
        outputs["digest"] = digest([(r.model, r.task, r.score, r.n, r.prompt_digest) for r in records])
        _track(study, folder, records)
    return records


def chosen(study: Study, folder: str) -> list[TrialRecord]:
    """Return the records to benchmark: base, default, the best, and the worst if the study asks for them."""
    ledger = Ledger(folder)
    ranked = [record for record in ledger.ranking(study.search) if record.adapter_uri]
    bottom = ranked[-study.benchmark.bottom :] if study.benchmark.bottom else []
    default = [record for record in ranked if record.trial == DEFAULT]
    picked = [ledger.records[BASE], *default, *ranked[: study.benchmark.top], *bottom]
    return list({record.trial: record for record in picked}.values())


def read_search(folder: str) -> SearchRecord:
    """Return the record of a finished search."""
    return SearchRecord.model_validate_json(store.read(store.join(folder, "search.json")))


def read_benches(study: Study, folder: str) -> list[BenchRecord]:
    """Return the benchmark records of a search, for the tasks and candidates that the study asks for now."""
    names = {record.trial for record in chosen(study, folder)}
    root = store.join(folder, "bench")
    found = [
        BenchRecord.model_validate_json(store.read(store.join(root, name)))
        for name in sorted(store.listing(root))
        if name.endswith(".json")
    ]
    return [record for record in found if record.model in names and record.task in study.benchmark.tasks]


def _track(study: Study, folder: str, records: list[BenchRecord]) -> None:
    tracker = open_tracker(study, folder, read_search(folder).data_digest)
    for record in records:
        tracker.benchmark(record)
    tracker.close()
