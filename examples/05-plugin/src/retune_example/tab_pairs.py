"""A data format: a question, a tab and its answer on each line; lines that begin with # are comments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from retune.data.formats import Format, Schema
from retune.errors import InputError


def read(content: bytes | Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the records with their lines.

    Raises:
        InputError: if it is a folder, or not text, or a line has no tab: all lines at once.
    """
    if isinstance(content, Path):
        raise InputError(f"tab-pairs are a file, but {content} is a folder")
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"tab-pairs are text in UTF-8, but {error}") from error
    used = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and line[0] != "#"]
    wrong = [
        f"line {number}: question and answer are parted by one tab"
        for number, line in used
        if line.count("\t") != 1
    ]
    if wrong:
        raise InputError(wrong)
    for number, line in used:
        question, answer = line.split("\t")
        yield number, {"question": question, "answer": answer}


FORMAT = Format(Schema("tab-pairs", {"prompt": "question", "completion": "answer"}), read)
