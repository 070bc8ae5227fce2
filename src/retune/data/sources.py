"""Instruction data sets as they are published, read into one form.

=========  =====================  ==========================================================================
format     file                   fields (all text)
=========  =====================  ==========================================================================
`alpaca`   a JSON list            ``instruction``, ``input`` (may be empty), ``output``
`dolly`    JSONL: one a line      ``instruction``, ``context`` (may be empty), ``response``
`jsonl`    JSONL: one a line      ``instruction``, ``output`` and, if there is one, ``input``
=========  =====================  ==========================================================================

Further fields are ignored. Any file may be packed with gzip. A file is taken whole or refused, with every
problem in it up to a limit: a data set that is damaged in one place is rarely right in the others.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from retune import store
from retune.errors import InputError, RetuneError
from retune.study import Source

MOST_PROBLEMS = 20
# format -> where instruction, input and output are found
_FIELDS = {
    "alpaca": ("instruction", "input", "output"),
    "dolly": ("instruction", "context", "response"),
    "jsonl": ("instruction", "input", "output"),
}
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


class Example(NamedTuple):
    """One instruction and its answer.

    Attributes:
        instruction: what to do. input: what to do it with, may be empty. output: the answer.
        source: the name of the file it comes from, without folder.
        row: its place there, from 1: the line of a JSONL file, else the place in the list.
    """

    instruction: str
    input: str
    output: str
    source: str
    row: int


def name(source: Source) -> str:
    """Return the short name of a source: that of its file, without folder and hub revision."""
    file = PurePosixPath(source.uri).name
    return file.partition("@")[0] if source.uri.startswith("hf://") else file


def content(source: Source) -> bytes:
    """Return the bytes of a source's file.

    Raises:
        InputError: if there is no such file.
        RetuneError: if its server cannot be reached.
    """
    try:
        return store.download(source.uri).read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"the file must exist, but there is none ({error.strerror})", source.uri) from error
    except OSError as error:
        raise RetuneError(f"{source.uri} cannot be read: {error.strerror}") from error


def read_source(source: Source) -> list[Example]:
    """Return all records of a source, in the order of its file.

    Raises:
        InputError: if the file is missing, truncated or of another schema; naming file, record and field of
            each problem, up to `MOST_PROBLEMS` of them and the number of the rest.
        RetuneError: if its server cannot be reached.
    """
    return parse(content(source), source)


def parse(data: bytes, source: Source) -> list[Example]:
    """Return the records in the bytes of a source's file; see `read_source`.

    Raises:
        InputError: with the problems found.
    """
    problems: list[str] = []
    examples: list[Example] = []
    text = _text(data, problems)
    records = _list(text, problems) if source.format == "alpaca" else _lines(text, problems)
    where = "record" if source.format == "alpaca" else "line"
    label = name(source)
    for row, record in records:
        found = _fields(record, source.format)
        if isinstance(found, list):
            problems += [f"{where} {row}: {problem}" for problem in found]
        else:
            examples.append(Example(*found, label, row))
    if not problems and not examples:
        problems.append("a data set holds at least one record, but this file holds none")
    if problems:
        raise InputError(_shortened(problems, text, source.format), source.uri)
    return examples


def _text(data: bytes, problems: list[str]) -> str:
    """Unpack and decode a file; of a truncated one what there is, so that its other problems are seen too."""
    packed = data[:2] == b"\x1f\x8b"
    parts = []
    try:
        while packed and data:
            unpacker = zlib.decompressobj(wbits=31)
            parts.append(unpacker.decompress(data))
            if not unpacker.eof:
                problems.append("the file is truncated: its gzip stream has no end")
                break
            data = unpacker.unused_data.lstrip(b"\0")
    except zlib.error as error:
        problems.append(f"the file is damaged: {error}")
    whole = b"".join(parts) if packed else data
    try:
        return whole.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if not problems:
            line = whole.count(b"\n", 0, error.start) + 1
            problems.append(
                f"line {line}: the text must be UTF-8, but byte {error.start} is {whole[error.start]:#04x}"
            )
        return whole[: error.start].decode("utf-8-sig")


def _list(text: str, problems: list[str]) -> Iterator[tuple[int, Any]]:
    """Yield the items of a JSON list with their places, one by one: a break in it is told with its record."""
    place = _skip(text, 0)
    if text[place : place + 1] != "[":
        if text.strip():
            problems.append(f"the file must be a JSON list, but begins with {text[place : place + 20]!r}")
        elif not problems:
            problems.append("the file must be a JSON list, but is empty")
        return
    place = _skip(text, place + 1)
    row = 0
    while text[place : place + 1] != "]":
        row += 1
        try:
            item, place = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            problems.append(_broken(text, row, getattr(error, "pos", place), error))
            return
        yield row, item
        place = _skip(text, place)
        if text[place : place + 1] == ",":
            place = _skip(text, place + 1)
        elif text[place : place + 1] != "]":
            problems.append(_broken(text, row + 1, place, "expected ',' or ']'"))
            return
    if text[place + 1 :].strip():
        problems.append(
            f"line {text.count(chr(10), 0, place) + 1}: the file must end with the list, but more follows"
        )


def _broken(text: str, row: int, place: int, error: Exception | str) -> str:
    line = text.count("\n", 0, place) + 1
    if place >= len(text.rstrip()) or "Unterminated" in str(error):
        end = f"it ends within the list, after {row - 1} whole records"
        return f"record {row} (line {line}): the file is truncated: {end}"
    return f"record {row} (line {line}): not valid JSON: {error}"


def _skip(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    assert match is not None
    return match.end()


def _lines(text: str, problems: list[str]) -> Iterator[tuple[int, Any]]:
    """Yield the records of JSONL with their lines. Only LF ends one: a text may hold U+2028 and its like."""
    if text.lstrip()[:1] == "[":
        problems.append("the file must hold one JSON object a line, but is a JSON list")
        return
    lines = text.split("\n")
    for row, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield row, json.loads(line)
        except (ValueError, RecursionError) as error:
            cut = row == len(lines)
            problems.append(
                f"line {row}: the file is truncated: it ends within a record"
                if cut
                else f"line {row}: not valid JSON: {error}"
            )


def _fields(record: Any, form: str) -> list[str] | tuple[str, str, str]:
    """Return instruction, input and output of a record, or what is wrong with it."""
    if not isinstance(record, dict):
        return [f"a record must be an object with named fields, but is {_kind(record)}"]
    problems = []
    values = []
    for field in _FIELDS[form]:
        value = record.get(field)
        if value is None and form == "jsonl" and field == "input":
            value = ""
        if field not in record and value is None:
            problems.append(f"field {field!r} is missing")
        elif not isinstance(value, str):
            problems.append(f"field {field!r} must be text, but is {_kind(value)}")
        elif not _encodable(value):
            problems.append(
                f"field {field!r} must be Unicode text, but holds half a character (a lone surrogate)"
            )
        else:
            values.append(value)
    return problems or (values[0], values[1], values[2])


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _shortened(problems: list[str], text: str, form: str) -> list[str]:
    """Return the first problems and the number of the rest, and the format if it looks like another one."""
    rest = len(problems) - MOST_PROBLEMS
    shown = problems[:MOST_PROBLEMS] + ([f"and {rest:,} more problems"] if rest > 0 else [])
    looks = _looks_like(text)
    if looks and looks != form:
        shown.append(f"it looks like the format {looks!r}, but the study says `format: {form}`")
    return shown


def _looks_like(text: str) -> str | None:
    """Return the format that fits the first record."""
    start = _skip(text, 0)
    listed = text[start : start + 1] == "["
    try:
        record, _ = _DECODER.raw_decode(text, _skip(text, start + 1) if listed else start)
    except (ValueError, RecursionError):
        return None
    fits = [form for form in ("alpaca", "dolly", "jsonl") if not isinstance(_fields(record, form), list)]
    return next((form for form in fits if (form == "alpaca") == listed), None)
