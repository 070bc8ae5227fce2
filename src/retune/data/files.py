"""Records out of a file or folder: JSON, JSONL, CSV, Parquet, text, and the folders of the library `datasets`.

The kind of a file is detected from its content, and from its name where the content is ambiguous. Any file may be
packed with gzip.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from retune import free_memory
from retune.errors import InputError, first_line
from retune.store.packed import (
    ALWAYS_ALLOWED_BYTES,
    MAX_RECORD,
    RECORD_TOO_LONG,
    UNPACKS_TOO_LARGE,
    gunzip,
    max_unpacked,
)

Rows = Iterator[tuple[int, Any]]
_SPACE = re.compile(r"[ \t\r\n]*")
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)?")
_ASTRAL = bytes(range(0xF0))  # bytes of UTF-8 that begin no letter beyond U+FFFF
_QUOTED = re.compile(r'"(?:[^"]|"")*"')


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; refuse a name that occurs twice, since either value could be meant."""
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"the name {next(n for n in names if names.count(n) > 1)!r} stands twice in an object"
        )
    return mapping


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)
_PACKED = {
    b"PK\x03\x04": "a zip archive or a spreadsheet: unpack it, or save it as CSV",
    b"\x28\xb5\x2f\xfd": "packed with zstd: unpack it, or pack it with gzip",
    b"BZh": "packed with bzip2: unpack it, or pack it with gzip",
    b"\xfd7zXZ\x00": "packed with xz: unpack it, or pack it with gzip",
    b"ARROW1": "an Arrow file: name the folder that `save_to_disk` wrote, or save it as Parquet",
    b"%PDF": "a PDF: records are JSON, JSONL, CSV, Parquet or text",
    b"SQLite format 3": "a database: save its records as JSONL, CSV or Parquet",
    b"version https://git-lfs": "a pointer of Git LFS, not the data: fetch it by `git lfs pull`",
    b"<!DOCTYPE": "a web page: download the file that it is about, not the page",
    b"<html": "a web page: download the file that it is about, not the page",
}  # fmt: skip
_KINDS = {
    ".json": "JSON", ".jsonl": "JSON", ".csv": "CSV", ".tsv": "TSV", ".parquet": "Parquet", ".txt": "text", ".arrow": "Arrow"
}  # fmt: skip
# What the position of a record is called in files of this kind; in others "record"
POSITION_WORD = {
    "jsonl": "line",
    "text": "line",
    "csv": "row",
}


def rows(data: bytes, name: str, wanted: str, problems: list[str]) -> tuple[str, Rows]:
    """Return the kind of a file and its records with their places, from 1.

    Args:
        data: the bytes of the file.
        name: its name, whose ending tells CSV and text.
        wanted: the format that the study names.
        problems: problems of the file are appended to this list, some of them only while the records are read.
    """
    data, whole = _unpacked(data, problems)
    if data[:4] == b"PAR1":
        return "parquet", _parquet(data, problems)
    for mark, words in _PACKED.items():
        if data.startswith(mark):
            problems.append(f"the file is {words}")
            return "unknown", iter(())
    text = _decoded(data, problems if whole else [])
    kind = _kind(text, name, wanted)
    if not text.strip():
        if not problems:
            problems.append("the file is empty, but a data set holds at least one record")
        return kind, iter(())
    readers: dict[str, Callable[[], Rows]] = {
        "json": lambda: _list(text, problems),
        "jsonl": lambda: _lines(text, problems),
        "csv": lambda: _table(text, name, problems),
        "text": lambda: _texts(text, problems),
    }
    if kind not in readers:
        start = text.lstrip()[:20]
        problems.append(
            "records are a JSON list, JSONL, Parquet, CSV (a name that ends in .csv or .tsv, or `format: csv`) or text "
            f"(.txt, or `format: text`), but the file begins with {start!r}"
        )
        return kind, iter(())
    return kind, readers[kind]()


def folder_rows(folder: Path, split: str | None, uri: str) -> Rows:
    """Return the records of a folder that the library `datasets` wrote (`save_to_disk`), or that it can load.

    Raises:
        InputError: if the folder holds no data set, or not this split.
    """
    import datasets

    datasets.disable_progress_bars()
    files = {path.name for path in folder.iterdir()}
    saved = files & {"dataset_dict.json", "state.json", "dataset_info.json"}
    known = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".gz", ".arrow")
    if not saved and not any(p.name.endswith(known) for p in folder.rglob("*")):
        raise InputError(
            "a folder must hold a data set that `save_to_disk` wrote, or files that `datasets.load_dataset` reads, "
            f"but this one holds {sorted(files)[:5]}",
            uri,
        )
    if problem := free_memory.too_large(
        sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()), "its files have"
    ):
        raise InputError(problem, uri)
    if not saved:
        _require_one_kind(folder, uri)
    # A README without metadata is none of its
    logging.getLogger("huggingface_hub.repocard").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as cache:
        try:
            dataset = (
                datasets.load_from_disk(str(folder))
                if saved
                else datasets.load_dataset(str(folder), cache_dir=cache)
            )
        except Exception as error:  # datasets and the readers below it raise errors of many types
            raise InputError(f"the folder cannot be read as a data set: {_reason(error)}", uri) from error
        if isinstance(dataset, datasets.DatasetDict):
            names = list(dataset)
            chosen = split or ("train" if "train" in names else names[0] if len(names) == 1 else None)
            if chosen not in names:
                asked = f"`split: {split}`" if split else f"no `split` is named; write `split: {names[0]}`"
                raise InputError(f"a split must be one of {names}, but {asked}", uri)
            dataset = dataset[chosen]
        elif split:
            raise InputError(f"the folder holds one split, but `split: {split}` is given; omit it", uri)
        yield from enumerate(dataset, 1)


def _require_one_kind(folder: Path, uri: str) -> None:
    """Refuse a folder with files of several kinds: `datasets` takes the most frequent one and leaves out the others.

    The configuration in a data set's README, or files that describe it, say which are meant.
    """
    card = folder / "README.md"
    if card.is_file() and "data_files:" in card.read_text(encoding="utf-8", errors="replace"):
        return
    kinds: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        ending = PurePosixPath(path.name.removesuffix(".gz")).suffix
        described = path.name.lower().startswith(("readme", "license", "dataset_info"))
        if ending in _KINDS and not described and not any(part.startswith(".") for part in inner.parts):
            kinds.setdefault(_KINDS[ending], str(inner))
    if len(kinds) > 1:
        raise InputError(
            f"a folder must hold files of one kind, but this one holds {list(kinds.values())}: name each as a source of its own",
            uri,
        )


def _reason(error: Exception) -> str:
    """Return why `datasets` cannot read a folder: the cause of its error, which is more specific than the error."""
    cause = error.__cause__
    if cause is None:
        return first_line(error)
    if "cast" in str(cause):
        return "its files have different fields; name each as a source of its own"
    return f"{first_line(error)}: {first_line(cause)}"


def _unpacked(data: bytes, problems: list[str]) -> tuple[bytes, bool]:
    """Unpack gzip. A truncated file gives what can be read, so that its other problems are reported too."""
    if data[:2] != b"\x1f\x8b":
        return data, True
    unpacked, problem = gunzip(data)
    if problem:
        problems.append(problem)
    return unpacked, problem is None


def _decoded(data: bytes, problems: list[str]) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        problems.append("the text must be UTF-8, but is UTF-16; save it as UTF-8")
        return ""
    if problem := free_memory.too_large(_letters(data), "its text takes"):
        problems.append(problem)
        return ""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problems.append(
            f"line {line}: the text must be UTF-8, but byte {error.start} is {data[error.start]:#04x}; save it as UTF-8"
        )
        # The rest is read too, for its other problems: stopping here would make the file look truncated
        return data.decode("utf-8-sig", errors="replace")


def _letters(data: bytes) -> int:
    """Return the bytes that a text takes in memory: one letter beyond ASCII makes two, or four, of each."""
    if data.isascii():
        return len(data)
    return len(data) * (4 if data.translate(None, _ASTRAL) else 2)


def _kind(text: str, name: str, wanted: str) -> str:
    endings = PurePosixPath(name.lower().partition("@")[0].removesuffix(".gz")).suffix
    start = text.lstrip()[:1]
    if wanted in ("csv", "text") and start not in ("[", "{"):
        return wanted
    if endings in (".csv", ".tsv") or wanted == "csv":
        return "csv"
    if endings in (".txt", ".md"):
        return "text"
    if start == "[":
        return "jsonl" if _is_list_a_line(text) else "json"
    if start == "{" or wanted in ("dolly", "jsonl"):
        return "jsonl"
    return "json" if wanted == "alpaca" else "unknown"


def numbered_lines(text: str) -> Iterator[tuple[int, str, bool]]:
    """Yield each line with its number, and whether it is the last one; a list of them all would take many times the text."""
    row, start = 0, 0
    while start <= len(text):
        end = text.find("\n", start)
        row += 1
        yield row, text[start : end if end >= 0 else None], end < 0
        if end < 0:
            return
        start = end + 1


def _is_list_a_line(text: str) -> bool:
    """Return whether each line is a JSON list, as in files with a conversation a line."""
    lines = (line for _, line, _ in numbered_lines(text) if line.strip())
    first, second = next(lines, ""), next(lines, "")
    if not second.startswith("["):
        return False
    try:
        return isinstance(json.loads(first), list)
    except (ValueError, RecursionError):
        return False


def _texts(text: str, problems: list[str]) -> Rows:
    for row, line, _ in numbered_lines(text):
        if len(line) > MAX_RECORD:
            problems.append(f"line {row}: {RECORD_TOO_LONG}")
        elif line.strip():
            yield row, {"text": line}


def _parquet(data: bytes, problems: list[str]) -> Rows:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        place, left = 0, max_unpacked(len(data))
        file = parquet.ParquetFile(io.BytesIO(data))
        groups = [file.metadata.row_group(n).total_byte_size for n in range(file.metadata.num_row_groups)]
        if sum(groups) > left:
            problems.append(UNPACKS_TOO_LARGE)
            return
        if problem := free_memory.too_large(max(groups, default=0), "a row group has"):
            problems.append(problem)
            return
        # With dictionary encoding one large text may be repeated a million times; it is at most as long as its row group
        most_rows = 2 * ALWAYS_ALLOWED_BYTES // max([1, *groups])
        for batch in file.iter_batches(batch_size=min(max(most_rows, 1), 512)):
            left -= batch.nbytes
            if left < 0:
                problems.append(UNPACKS_TOO_LARGE)
                return
            if batch.nbytes > MAX_RECORD:
                sizes = [batch.slice(row, 1).nbytes for row in range(batch.num_rows)]
                if max(sizes) > MAX_RECORD:
                    problems.append(f"record {place + 1 + sizes.index(max(sizes))}: {RECORD_TOO_LONG}")
                    return
            for record in batch.to_pylist():
                place += 1
                yield place, record
    except MemoryError:
        raise
    except (pa.ArrowException, OSError) as error:
        problems.append(f"the Parquet file is damaged: {first_line(error)}")


def _table(text: str, name: str, problems: list[str]) -> Rows:
    """Yield the rows of a CSV file with a header; the separator is detected from the header."""
    begin = len(text) - len(text.lstrip("\r\n"))
    header = _QUOTED.sub("", text[begin : max(text.find("\n", begin), 0) or None])
    separator = max("\t,;|", key=header.count) if any(s in header for s in "\t,;|") else ","
    csv.field_size_limit(MAX_RECORD)
    # A StringIO takes four bytes a letter
    lines = (line for match in _LINE.finditer(text) if (line := match[0]))
    reader = csv.reader(lines, delimiter=separator, strict=True)
    odd: list[tuple[int, int]] = []
    try:
        columns = [cell.strip() for cell in next(row for row in reader if row)]
        twice = sorted({c for c in columns if columns.count(c) > 1})
        if twice:
            problems.append(f"the names in the header must differ, but duplicates are {twice}")
            return
        for number, cells in enumerate((row for row in reader if row), 1):
            if len(cells) != len(columns):
                odd.append((number, len(cells)))
                continue
            if sum(map(len, cells)) > MAX_RECORD:
                problems.append(f"line {reader.line_num}: {RECORD_TOO_LONG}")
                return
            yield number, dict(zip(columns, cells, strict=True))
    except (csv.Error, StopIteration) as error:
        too_long = "field larger than field limit" in str(error)
        problems.append(
            f"line {reader.line_num}: {RECORD_TOO_LONG if too_long else f'not valid CSV: {error}'}"
        )
    if odd:
        number, count = odd[0]
        more = f" (and {len(odd) - 1:,} more rows have other numbers than it)" if len(odd) > 1 else ""
        problems.append(
            f"row {number}: {count} cells, but the header has {len(columns)}{more}; put texts that hold {separator!r} in quotes"
        )


def _list(text: str, problems: list[str]) -> Rows:
    """Yield the items of a JSON list with their places, one by one, so that a syntax error names its record."""
    at = _skip(text, 0)
    if text[at : at + 1] != "[":
        problems.append(f"the file must be a JSON list, but begins with {text[at : at + 20]!r}")
        return
    at = _skip(text, at + 1)
    row = 0
    while text[at : at + 1] != "]":
        row += 1
        start = at
        try:
            item, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            problems.append(_broken(text, row, getattr(error, "pos", at), error))
            return
        if at - start > MAX_RECORD:
            problems.append(f"record {row} (line {text.count(chr(10), 0, start) + 1}): {RECORD_TOO_LONG}")
            return
        yield row, item
        at = _skip(text, at)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "]":
            problems.append(_broken(text, row + 1, at, "expected ',' or ']'"))
            return
    if text[at + 1 :].strip():
        problems.append(
            f"line {text.count(chr(10), 0, at) + 1}: the file must end with the list, but more follows"
        )


def _broken(text: str, row: int, offset: int, error: Exception | str) -> str:
    line = text.count("\n", 0, offset) + 1
    if offset >= len(text.rstrip()) or "Unterminated" in str(error):
        end = f"it ends within the list, after {row - 1} whole records"
        return f"record {row} (line {line}): the file is truncated: {end}"
    return f"record {row} (line {line}): not valid JSON: {error}"


def _skip(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    assert match is not None
    return match.end()


def _lines(text: str, problems: list[str]) -> Rows:
    """Yield the records of JSONL with their lines. Only LF ends one: a text may hold U+2028 and its like."""
    first = True
    broken: dict[str, tuple[int, int]] = {}  # reason -> the first line and how many lines
    for row, line, last in numbered_lines(text):
        if not line.strip():
            continue
        if len(line) > MAX_RECORD:
            problems.append(f"line {row}: {RECORD_TOO_LONG}")
            first = False
            continue
        try:
            yield row, _DECODER.decode(line)
        except (ValueError, RecursionError) as error:
            if first:
                whole, over_lines = _first_object(text)
                if over_lines and whole is None:
                    problems.append(
                        f"line {row}: the record goes over several lines, but JSONL has one record a line; rewrite the file, for "
                        "example by `jq -c .`"
                    )
                    return
                if over_lines:
                    yield 1, whole
                    return
            if last:
                problems.append(f"line {row}: the file is truncated: it ends within a record")
            else:
                reason = _why_broken(line, error)
                begun, count = broken.get(reason, (row, 0))
                broken[reason] = begun, count + 1
        first = False
    for reason, (row, count) in broken.items():
        more = f" (and in {count - 1:,} more lines)" if count > 1 else ""
        problems.append(f"line {row}: {reason}{more}")


def _why_broken(line: str, error: Exception) -> str:
    if line.rstrip().endswith(","):
        try:
            json.loads(line.rstrip()[:-1])
        except (ValueError, RecursionError):
            pass
        else:
            return "a comma follows the record, but JSONL has none between its lines; remove it"
    return f"not valid JSON: {error}"


def _first_object(text: str) -> tuple[Any, bool]:
    """Return the file's content if it is one JSON object, and whether it begins with one that goes over several lines."""
    start = _skip(text, 0)
    try:
        content, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, False
    if not isinstance(content, dict) or "\n" not in text[start:end]:
        return None, False
    return (None if text[end:].strip() else content), True
