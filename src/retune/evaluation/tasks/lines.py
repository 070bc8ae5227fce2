"""Files with one JSON object per line, gzipped or not; every wrong line is reported, with its number."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from retune import free_memory
from retune.data.files import numbered_lines
from retune.errors import InputError
from retune.evaluation.tasks.question import first_few
from retune.store.packed import MAX_RECORD, RECORD_TOO_LONG, gunzip

_T = TypeVar("_T")


def read_text(path: Path) -> str:
    """Return a file's text, unpacked where it is gzipped.

    Raises:
        InputError: if it is missing, damaged or not UTF-8.
    """
    try:
        if problem := free_memory.too_large(path.stat().st_size):
            raise ValueError(problem)
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data, problem = gunzip(data)
            if problem:
                raise ValueError(problem)
        return data.decode()
    except (OSError, ValueError) as error:
        # The text, not the error itself, whose traceback would keep this frame, with the file's content, in memory
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InputError(f"{path}: the file must be readable, but it is not: {why}") from error


def parse(path: Path, text: str, form: str, read: Callable[[int, Any], _T]) -> list[_T]:
    """Return the results of `read` for the number and the content of each line; empty lines are skipped.

    Args:
        path: for the error messages. form: the rule for a line, for the error messages.
        read: raises InputError with its own messages, and KeyError, TypeError, ValueError or AttributeError if a line
            is not of the form.

    Raises:
        InputError: if lines are wrong.
    """
    problems: list[str] = []
    values: list[_T] = []
    growth = free_memory.Growth()
    for number, line, _ in numbered_lines(text):
        if problem := growth.problem_at(number):
            raise InputError(f"{path}:{number}: {problem}")
        if not line.strip():
            continue
        if len(line) > MAX_RECORD:
            problems.append(f"{path}:{number}: {RECORD_TOO_LONG}")
            continue
        try:
            values.append(read(number, json.loads(line)))
        except InputError as error:
            problems += [f"{path}:{number}: {problem}" for problem in error.problems]
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            problems.append(f"{path}:{number}: {form}, but: {error!r}")
    if problems:
        raise InputError(first_few(problems))
    return values
