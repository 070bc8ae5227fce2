"""The folder of one search and the records in it, each read once.

::

    search-<digest>/
        study.json  search.json  answers.json  selection.json  gate.json  report.html
        trials/  the ledger          bench/<trial>/<task>.json          steps/  the stamps
"""

from __future__ import annotations

import errno
from functools import cached_property
from typing import Any, TypeVar

from pydantic import Field

from retune import store
from retune.data.mix_record import MixRecord
from retune.records import AnswersRecord, BenchRecord, GateRecord, Record, TrialRecord, parse
from retune.selection.record import Selection
from retune.study import Study
from retune.workspace import folders
from retune.workspace.ledger import BASE, DEFAULT, Ledger
from retune.workspace.stamps import Stamps

SEARCH, SELECTION, GATE, PAGE = "search.json", "selection.json", "gate.json", "report.html"
ANSWERS = "answers.json"
R = TypeVar("R", bound=Record)


class SearchRecord(Record):
    """The result of a search (`search.json`).

    Attributes:
        stopped_by: ``trials``, ``failures`` or ``hours``.
        trials: settings tried.
        completed: trials that can be chosen.
        stopped: trials that `search.stopping` ended early.
        best: name of the best trial, None if no trial completed.
        digest: over all settings and results.

    """

    study: str
    algorithm: str
    stopped_by: str
    trials: int
    completed: int
    failed: int
    best: str | None
    digest: str
    data_digest: str
    hours: float
    stopped: int = Field(0, exclude_if=lambda stopped: not stopped)
    finished: str = ""


def _is_record(name: str) -> bool:
    return name.endswith(".json") and "/adapter/" not in name


class SearchFolder:
    """One search on disk or in a bucket. Created once per process and passed on: what was read stays in memory.

    Args:
        uri: URI of the folder.
        at_once: read all JSON in it now, for commands that only display; in a bucket that takes one listing and only
            changed files are downloaded.

    """

    def __init__(self, uri: str, at_once: bool = False) -> None:
        self.uri = uri
        self._files = store.contents(uri, _is_record) if at_once else None
        self.stamps = Stamps(uri, self._below("steps"))
        self._records: dict[str, Record] = {}

    @classmethod
    def of(cls, study: Study, at_once: bool = False) -> SearchFolder | None:
        """Return the study's search, finished or not; None if there is none, or its data is not mixed."""
        from retune.data import mixing

        data = folders.data_folder(study)
        if not store.exists(store.join(data, "mix.json")):
            return None
        folder = cls(folders.search_folder(study, mixing.read_mix_record(data).digest), at_once)
        return folder if folder.has("study.json") else None

    def done(self, step: str, inputs: Any) -> dict[str, Any] | None:
        """Return the outputs of a step that ran on these inputs; None if it has to run, also if what it wrote was deleted."""
        outputs = self.stamps.outputs(step, inputs)
        return outputs if outputs is not None and self._has_results(step, outputs) else None

    def _has_results(self, step: str, outputs: dict[str, Any]) -> bool:
        if step == "search":  # stamps of older releases do not have the number
            return self.has(SEARCH) and len(self.trials) >= outputs.get("records", 0)
        if step == "benchmark":
            return all(self.has(f"bench/{name}.json") for name in outputs.get("records", ()))
        if step == "answers":
            return not outputs.get("questions") or self.has(ANSWERS)
        if step == "report":
            return store.exists(self.path(PAGE))
        written = {"select": SELECTION, "promote": GATE}.get(step)
        return written is None or self.has(written)

    @property
    def name(self) -> str:
        """The folder's own name, ``search-<digest>``."""
        return self.uri.rstrip("/").rsplit("/", 1)[-1]

    @cached_property
    def ledger(self) -> Ledger:
        """The trials."""
        return Ledger(self.uri, self._below("trials"))

    @property
    def trials(self) -> dict[str, TrialRecord]:
        """The records of finished trials by name."""
        return self.ledger.records

    def path(self, name: str) -> str:
        """Return the URI of a file in the folder."""
        return store.join(self.uri, name)

    def has(self, name: str) -> bool:
        """Return whether the folder holds a file of that name."""
        if name in self._records:
            return True
        return store.exists(self.path(name)) if self._files is None else name in self._files

    def read(self, name: str) -> bytes:
        """Return the content of a JSON file in the folder.

        Raises:
            FileNotFoundError: with its URI.
        """
        if self._files is None:
            return store.read(self.path(name))
        if name not in self._files:
            raise FileNotFoundError(errno.ENOENT, "No such file", self.path(name))
        return self._files[name]

    def _below(self, folder: str) -> dict[str, bytes] | None:
        """Return the files of a subfolder that were read together; None if they are read one by one."""
        if self._files is None:
            return None
        start = f"{folder}/"
        return {n.removeprefix(start): content for n, content in self._files.items() if n.startswith(start)}

    def gather(self) -> None:
        """Store all JSON of a bucket's folder in one object too, so that the next reader needs two requests for all."""
        store.gather(self.uri, _is_record)

    def write(self, name: str, record: Record) -> None:
        """Write a record to the file `name`, and keep it in memory."""
        content = record.to_json()
        store.write(self.path(name), content)
        if self._files is not None:
            self._files[name] = content
        self._records[name] = record

    def _read(self, kind: type[R], name: str) -> R:
        record = self._records.get(name)
        if not isinstance(record, kind):
            record = parse(kind, self.read(name), self.path(name))
            self._records[name] = record
        return record

    @property
    def search(self) -> SearchRecord:
        """The record of the finished search."""
        return self._read(SearchRecord, SEARCH)

    @property
    def selection(self) -> Selection:
        """The choice that was made."""
        return self._read(Selection, SELECTION)

    @property
    def gate(self) -> GateRecord:
        """The gate's decision."""
        return self._read(GateRecord, GATE)

    @property
    def answers(self) -> AnswersRecord | None:
        """The answers of base, default and winner to held-out prompts, if they were made."""
        return self._read(AnswersRecord, ANSWERS) if self.has(ANSWERS) else None

    def data(self, data_digest: str) -> tuple[str, MixRecord] | None:
        """Return folder and record of the mixed data with that digest, next to this search; None if it does not exist."""
        from retune.data import mixing

        root = self.uri.rstrip("/").rpartition("/")[0]
        for name in store.listing(root):
            if name.count("/") == 1 and name.startswith("data-") and name.endswith("/mix.json"):
                uri = store.join(root, name.partition("/")[0])
                record = mixing.read_mix_record(uri)
                if record.digest == data_digest:
                    return uri, record
        return None

    def mix(self, data_digest: str) -> MixRecord | None:
        """Return the record of the mixed data with that digest; None if it is not there."""
        record = self.data(data_digest)
        return record[1] if record else None

    def candidates(self, study: Study) -> list[TrialRecord]:
        """Return the trials to benchmark: base, default, the best, and the worst if the study asks for them."""
        ranked = [record for record in self.ledger.ranking(study.search) if record.adapter_uri]
        bottom = ranked[-study.benchmark.bottom :] if study.benchmark.bottom else []
        default = [record for record in ranked if record.trial == DEFAULT]
        picked = [self.trials[BASE], *default, *ranked[: study.benchmark.top], *bottom]
        return list({record.trial: record for record in picked}.values())

    def benches(self, study: Study) -> list[BenchRecord]:
        """Return the benchmark records of the tasks and candidates that the study asks for now."""
        wanted = {record.trial for record in self.candidates(study)}
        records = []
        below = self._below("bench")
        for name in sorted(store.listing(self.path("bench")) if below is None else below):
            if name.endswith(".json"):
                record = self._read(BenchRecord, f"bench/{name}")
                if record.model in wanted and record.task in study.benchmark.tasks:
                    records.append(record)
        return records
