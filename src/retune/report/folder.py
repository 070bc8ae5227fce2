"""Writes the report again, from nothing but the records in a study's folder."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retune import store, study
from retune.errors import InputError, first_line, nearest
from retune.records import AnswersRecord, BenchRecord, GateRecord, TrialRecord, by_number
from retune.report.page import write_report
from retune.selection.record import Selection

PAGE = "report.html"
STUDY = re.compile(r"^[^/]+/search-[^/]+/study\.json$")


def rewrite(folder: str, out: str | None = None) -> str:
    """Write the report of a study and return its path or URI.

    Args:
        folder: path or URI of a study's folder, or of one of its searches. Of several searches the one with
            the trial that ended last is used.
        out: where to write; None for ``report.html`` beside the records.

    Raises:
        InputError: if there is no study in the folder, or records in it cannot be read, with all of them.
    """
    search = newest_search(folder)
    problems: list[str] = []
    asked = study.parse(_read(store.join(search, "study.json"), problems) or {}, search)
    trials = _all(TrialRecord, search, "trials", "/trial.json", problems)
    benches = _all(BenchRecord, search, "bench", ".json", problems)
    selection = _maybe(Selection, store.join(search, "selection.json"), problems)
    gate = _maybe(GateRecord, store.join(search, "gate.json"), problems)
    answers = _maybe(AnswersRecord, store.join(search, "answers.json"), problems)
    digests = {trial.data_digest for trial in trials}
    mix = _mix(search.rstrip("/").rpartition("/")[0], digests, problems)
    if problems:
        raise InputError(problems, search)
    page = out or store.join(search, PAGE)
    trials.sort(key=lambda trial: (trial.number, trial.trial))
    write_report(asked, mix, trials, benches, selection, gate, page, answers)
    return page


def study_in(search: str) -> study.Study:
    """Return the study of a search.

    Raises:
        InputError: if it cannot be read.
    """
    problems: list[str] = []
    found = _read(store.join(search, "study.json"), problems)
    if problems:
        raise InputError(problems, search)
    return study.parse(found or {}, search)


def newest_search(folder: str) -> str:
    """Return the folder of a search: `folder` itself, or in a study's folder the search whose last trial ended last.

    Raises:
        InputError: if there is none.
    """
    if store.exists(store.join(folder, "study.json")):
        return folder
    names = [name for name in store.listing(folder) if name.endswith("/study.json")]
    searches = sorted({name.split("/")[0] for name in names if name.startswith("search-")})
    if not searches:
        raise InputError(
            f"a study's folder holds search-<digest>/study.json, but {_what_it_is(folder, names)}", folder
        )
    if len(searches) == 1:
        return store.join(folder, searches[0])
    return max((store.join(folder, name) for name in searches), key=_last_end)


def _what_it_is(folder: str, names: Sequence[str]) -> str:
    """Return what a folder is that is not a study's, and which one may be meant.

    Args:
        names: of the files ``study.json`` at any depth in it.
    """
    studies = sorted({name.partition("/")[0] for name in names if STUDY.search(name)})
    if studies:
        return f"this one holds those of studies: name one of {[store.join(folder, name) for name in studies[:5]]}"
    if "://" in folder:
        return "there is none"
    path = Path(folder)
    inside = next((str(above) for above in path.parents if (above / "study.json").is_file()), None)
    if inside:
        return f"this is a part of one: name {inside!r}"
    if path.is_file():
        return "this is a file; name the folder below `artifacts` that has the study's name"
    if path.is_dir():
        return "this one has none; has the study been run?"
    beside = path.parent.iterdir() if path.parent.is_dir() else []
    if near := nearest(path.name, [other.name for other in beside if other.is_dir()]):
        return f"there is no such folder; did you mean {str(path.with_name(near))!r}?"
    return "there is no such folder (of a registered model, name the version too: model@champion)"


def _last_end(search: str) -> str:
    return max((t.finished for t in _all(TrialRecord, search, "trials", "/trial.json", [])), default="")


def _read(uri: str, problems: list[str], content: bytes | None = None) -> Any:
    try:
        return json.loads(store.read(uri) if content is None else content)
    except (ValueError, RecursionError) as error:
        problems.append(f"{uri} is not JSON: {error}")
        return None


def _record(kind: Any, uri: str, problems: list[str], content: bytes | None = None) -> Any:
    found = _read(uri, problems, content)
    try:
        return kind.model_validate(found) if found is not None else None
    except ValueError as error:
        problems.append(f"{uri} is no {kind.__name__}: {first_line(error)}")
        return None


def _maybe(kind: Any, uri: str, problems: list[str]) -> Any:
    return _record(kind, uri, problems) if store.exists(uri) else None


def _all(kind: Any, search: str, below: str, ending: str, problems: list[str]) -> list[Any]:
    """Return the records of a kind in the subfolders of a search's folder `below`, in the order of the trials."""

    def wanted(name: str) -> bool:
        return name.startswith(f"{below}/") and name.endswith(ending) and name.count("/") == 2

    files = store.contents(search, wanted)
    found = [
        _record(kind, store.join(search, name), problems, files[name])
        for name in sorted(files, key=by_number)
    ]
    return [record for record in found if record is not None]


def _mix(root: str, digests: set[str], problems: list[str]) -> dict[str, Any] | None:
    """Return the record of the data that the trials were trained on."""
    for name in store.listing(root):
        if name.count("/") == 1 and name.startswith("data-") and name.endswith("/mix.json"):
            content = _read(store.join(root, name), problems)
            if isinstance(content, dict) and content.get("digest") in digests:
                return content
    return None
