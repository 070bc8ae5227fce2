"""Step `benchmark`: score the best trials, the untuned base and the default setting, and generate a few answers."""

from __future__ import annotations

from typing import Any

from retune import gpus
from retune.evaluation import bench
from retune.events import Event
from retune.records import BenchRecord, digest
from retune.steps import answers
from retune.steps.search import open_tracker
from retune.study import Study
from retune.tracking import open_boards
from retune.workspace import folders, progress
from retune.workspace.search_folder import SearchFolder


def inputs(study: Study, folder: SearchFolder) -> dict[str, Any]:
    """Return what determines the result of this step; the step is repeated when it changes."""
    return {
        "search": folder.search.digest,
        "benchmark": study.benchmark.model_dump(mode="json"),
        "data": bench.data_digests(study.benchmark),
        "seed": study.seed,
    }


def benchmark(study: Study, folder: SearchFolder) -> list[BenchRecord]:
    """Score the candidates of a finished search on every task of the study, and generate a few answers."""
    records = _scores(study, folder)
    answers.answers(study, folder)
    return records


def _scores(study: Study, folder: SearchFolder) -> list[BenchRecord]:
    step_inputs = inputs(study, folder)
    if folder.done("benchmark", step_inputs) is not None:
        return folder.benches(study)
    with folder.stamps.step("benchmark", step_inputs) as outputs:
        candidates = [
            bench.Candidate(record.trial, record.adapter_uri, record.adapter_digest)
            for record in folder.candidates(study)
        ]
        path = folders.work_folder(study) / "progress.json"
        display = progress.begin(path, "benchmark")

        def report(event: Event) -> None:
            if event.kind != "answering":
                return
            display.running = {f"{event.model} {event.task}": event.done / max(1, event.total)}
            display.left = event.seconds_left
            progress.write(path, display)

        records: list[BenchRecord] = []
        if study.benchmark.tasks:
            if gpus.in_pipeline_step():
                gpus.require(study.cluster.gpus)
            records = bench.run(
                study.model, candidates, study.benchmark, study.seed, folder.path("bench"), report
            )
        outputs["records"] = [f"{record.model}/{record.task}" for record in records]
        outputs["digest"] = digest([(r.model, r.task, r.score, r.n, r.prompt_digest) for r in records])
        _track(study, folder, records)
    return records


def _track(study: Study, folder: SearchFolder, records: list[BenchRecord]) -> None:
    work = folders.work_folder(study)
    for observer in (open_tracker(study, folder), open_boards(study.tracking, study.name, folder.name, work)):
        for record in records:
            observer.benchmark(record)
        observer.close()
