"""Reads published data sets into one form; docs/data.md lists the formats.

The kind of the file (`retune.data.files`) and the names of its fields (`retune.data.formats`) are detected separately, both from
the content. A file is accepted whole or refused, with every problem in it up to a limit: a data set that is damaged in one
place is rarely right in the others.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from retune import free_memory, store
from retune.data import files, formats
from retune.data.example import Example
from retune.errors import InputError, RetuneError
from retune.study import File

__all__ = ["Example", "content", "content_digest", "name", "parse", "parsed", "read_source"]

MAX_PROBLEMS = 20
_SAMPLED = 20  # records whose fields are looked at to detect the format
_MAX_DISTINCT = 1000  # different problems of records that are kept


def name(source: File) -> str:
    """Return the short name of a source: that of its file, without folder and hub revision."""
    file = PurePosixPath(source.uri).name
    return file.partition("@")[0] if source.uri.startswith("hf://") else file


def content(source: File) -> bytes | Path:
    """Return the bytes of a source's file, or the local path of its folder.

    Raises:
        InputError: if there is no such file or folder, or the file is larger than memory has room for.
        RetuneError: if its server cannot be reached.
    """
    try:
        path = store.download(source.uri)
        if path.is_dir():
            return path
        if problem := free_memory.too_large(path.stat().st_size):
            raise InputError(problem, source.uri)
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(
            f"the file must exist, but there is none ({error.strerror}){_hint(source.uri)}", source.uri
        ) from error
    except OSError as error:
        raise RetuneError(f"{source.uri} cannot be read: {error.strerror}") from error


def _hint(uri: str) -> str:
    """Return the likely mistake in a path that does not exist, as the end of its error message."""
    path = Path(uri)
    if "$" in uri:
        return "; variables such as $HOME are not replaced: write the path out, or begin it with ~"
    if "*" in uri:
        return (
            "; a path names one file or folder, no pattern: list the files as sources, or name their folder"
        )
    if path.is_symlink():
        return f"; it is a link to {path.readlink()}"
    if "://" in uri or not path.parent.is_dir():
        return ""
    beside = {other.name.strip().lower(): other.name for other in path.parent.iterdir()}
    near = difflib.get_close_matches(path.name.strip().lower(), beside, n=1, cutoff=0.8)
    return f"; did you mean {str(path.with_name(beside[near[0]]))!r}?" if near else ""


def content_digest(data: bytes | Path) -> str:
    """Return the SHA-256 of a file's bytes; of a folder that of the names and bytes of all files in it.

    `state.json` of `datasets` is left out: it holds a fingerprint of how the data was made, not what it is.
    """
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    sha = hashlib.sha256()
    for path in sorted(p for p in data.rglob("*") if p.is_file() and p.name != "state.json"):
        with path.open("rb") as file:
            inner = hashlib.file_digest(file, "sha256").hexdigest()
        sha.update(f"{path.relative_to(data).as_posix()}\0{inner}\n".encode())
    return sha.hexdigest()


def read_source(source: File) -> list[Example]:
    """Return all records of a source, in the order of its file.

    Raises:
        InputError: if the file is missing, truncated or of another schema; naming file, record and field of
            each problem, up to `MAX_PROBLEMS` of them and the number of the rest.
        RetuneError: if its server cannot be reached.
    """
    return parse(content(source), source)


def parse(data: bytes | Path, source: File) -> list[Example]:
    """Return the records of a source whose content is known; see `read_source`.

    Raises:
        InputError: with the problems found.
    """
    return parsed(data, source)[1]


def parsed(data: bytes | Path, source: File) -> tuple[formats.Schema, list[Example]]:
    """Return the detected schema of the source, e.g. that of ``alpaca``, and its records.

    Raises:
        InputError: with the problems found.
    """
    problems: list[str] = []
    growth = free_memory.Growth()
    package = formats.package_format(source.format)
    rows: Iterator[tuple[int, Any]]
    if package is not None:
        sort, rows = source.format, iter(package.read(data))
    elif isinstance(data, Path):
        sort, rows = "folder", files.folder_rows(data, source.split, source.uri)
    else:
        if source.split:
            problems.append(
                f"only folders and hub data sets have splits, but `split: {source.split}` is given"
            )
        sort, rows = files.rows(data, name(source), source.format, problems)
    try:
        first = list(itertools.islice(rows, _SAMPLED))
        schema = package.schema if package else _schema(first, source)
        wrong = _Problems(files.POSITION_WORD.get(sort, "record"))
        read: list[Example] = []
        for position, (row, record) in enumerate(itertools.chain(first, rows)):
            if problem := growth.problem_at(position):
                raise InputError(f"{wrong.where} {row}: {problem}", source.uri)
            wrong.objects += isinstance(record, dict)
            if not isinstance(schema, formats.Schema):
                continue
            one = formats.read(record, schema, name(source), row)
            if isinstance(one, list):
                wrong.add(row, one)
            else:
                read.append(one)
    except InputError as error:
        # Raised by the format of another package, which does not know the file's name
        raise InputError(error.problems, error.subject or source.uri) from error
    except MemoryError as error:
        raise InputError(
            f"memory has no room for it: {growth.problem() or free_memory.REMEDY}", source.uri
        ) from error
    if isinstance(schema, str):
        problems.insert(0, schema)
    elif schema is not None:
        problems = [*wrong.sentences(schema, _fields(first)), *problems]
    if not problems and not read:
        problems.append("a data set must have at least one record, but this file has none")
    if problems:
        rest = len(problems) - MAX_PROBLEMS + wrong.more
        more = [f"and {rest:,} more problems"] if rest > 0 else []
        raise InputError(problems[:MAX_PROBLEMS] + more, source.uri)
    assert isinstance(schema, formats.Schema)
    return schema, read


def _fields(rows: list[tuple[int, Any]]) -> list[str]:
    """Return the fields of the first records, in their order."""
    return list(dict.fromkeys(str(f) for _, r in rows if isinstance(r, dict) for f in r))


def _schema(rows: list[tuple[int, Any]], source: File) -> formats.Schema | str | None:
    fields = _fields(rows)
    if not fields:
        return formats.schema("jsonl", {}, ["instruction", "output"]) if rows else None
    schema = formats.schema(source.format, source.columns, fields)
    if len(rows) == 1 and _is_columns(rows[0][1]):
        return (
            "the file is one JSON object of columns, but must hold records; save it as a JSON list or as JSONL, with pandas "
            "by `to_json(path, orient='records', lines=True)`"
        )
    if isinstance(schema, str) and len(rows) == 1:
        lists = [k for k, v in rows[0][1].items() if isinstance(v, list) and v and isinstance(v[0], dict)]
        if lists:
            named = f"field {lists[0]!r} holds" if len(lists) == 1 else f"fields {lists} hold"
            one = "that list" if len(lists) == 1 else "one of these lists"
            return f"the file is one JSON object whose {named} the records; save {one} alone, as a JSON list or as JSONL"
    if isinstance(schema, str):
        return _more_of(rows) or schema
    return schema


def _more_of(rows: list[tuple[int, Any]]) -> str | None:
    """Return what the first records say beyond the names of their fields: they differ, or hold one another's fields."""
    records = [(row, record) for row, record in rows if isinstance(record, dict)]
    (first_row, first), others = records[0], records[1:]
    for row, record in others:
        if not set(record) & set(first):
            return (
                f"the records must have the same fields, but record {first_row} has {list(first)} and record {row} has "
                f"{list(record)}; keep each kind in a file of its own"
            )
    inner = [name for name, value in first.items() if isinstance(value, dict)]
    if len(inner) == 1 and not isinstance(formats.schema("auto", {}, list(first[inner[0]])), str):
        return (
            f"the records have the fields {list(first)}, and what counts is within {inner[0]!r}: {list(first[inner[0]])}; move "
            f"these up, with `jq -c .{inner[0]}`"
        )
    return None


def _is_columns(record: Any) -> bool:
    """Return whether this is a whole table, as pandas writes one: a list, or an object with the rows' labels, per field."""
    values = list(record.values()) if isinstance(record, dict) else []
    if len(values) < 2 or len({type(value) for value in values}) > 1:
        return False
    if isinstance(values[0], dict):
        return len({tuple(value) for value in values}) == 1 and "0" in values[0]
    return isinstance(values[0], list) and all(
        len(value) == len(values[0]) > 1 and not any(isinstance(cell, dict | list) for cell in value)
        for value in values
    )


class _Problems:
    """The problems of single records; equal ones are reported once, with their number.

    Attributes:
        objects: how many records have fields at all.
        more: problems that are not kept apart, after so many others.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.objects = 0
        self.more = 0
        self._found: dict[str, list[int]] = {}  # the first row, and how many

    def add(self, row: int, problems: list[str]) -> None:
        for problem in problems:
            if problem in self._found:
                self._found[problem][1] += 1
            elif len(self._found) < _MAX_DISTINCT:
                self._found[problem] = [row, 1]
            else:
                self.more += 1

    def sentences(self, schema: formats.Schema, fields: list[str]) -> Iterator[str]:
        missing = [f"field {field!r} is missing" for field in schema.fields.values()]
        explained = False
        for problem, (row, count) in self._found.items():
            also = f" (and in {count - 1:,} more {self.where}s)" if count > 1 else ""
            everywhere = problem in missing and count == self.objects
            why = f": {formats.missing_fields(schema, fields)}" if everywhere and not explained else ""
            explained = explained or everywhere
            yield f"{self.where} {row}: {problem}{also}{why}"
