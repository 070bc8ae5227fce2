"""All problems of a study at once: what is wrong is dropped, so that the rules that span keys are checked too."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from retune.study import words
from retune.study.model import Study
from retune.study.sentences import of_error, path_of, section_at, section_class


def all_problems(content: Mapping[str, Any], error: ValidationError) -> list[str]:
    """Return every problem.

    Rules that span keys are checked only once the single keys are right, so drop the wrong ones and look again.
    """
    left: dict[Any, Any] = copy.deepcopy(dict(content))
    if wrapped := _wrapped(content):
        return [wrapped]
    engine = content.get("engine")
    kind = engine.get("kind", "local") if isinstance(engine, dict) else "local"
    problems: list[str] = []
    dropped: list[list[str | int]] = []
    while True:
        missing = [e for e in error.errors() if e["type"] == "missing"]
        # What is missing in later rounds we dropped ourselves.
        found = _one_each([e for e in error.errors() if not problems or e not in missing])
        problems += [text for e in found for text in of_error(e, Study, dropped, kind, _SECTIONS)]
        problems = list(dict.fromkeys(problems))
        dropped += [path_of(e) for e in found if e["type"] not in ("extra_forbidden", "missing", "rules")]
        changes = [_remove(left, path_of(e)) for e in reversed(found)]  # of a list the last items first
        changes += [_fill_placeholder(left, path_of(e)[0]) for e in missing]
        if not any(changes):
            return _without_misspelt(problems)
        try:
            Study.model_validate(left)
        except ValidationError as further:
            error = further
        else:
            return _without_misspelt(problems)


def _wrapped(content: Mapping[str, Any]) -> str | None:
    """Return that the whole study stands below a key of its own, where it does."""
    for key, inner in content.items():
        if key not in Study.model_fields and isinstance(inner, dict) and {"model", "data"} <= inner.keys():
            return f"{key}: unknown key; what stands below it belongs to the top of the file"
    return None


def _one_each(errors: Sequence[Any]) -> list[Any]:
    """Return one error of each value: of a key that takes several kinds, pydantic tells one of each kind."""
    found: dict[tuple[Any, ...], list[Any]] = {}
    for error in errors:
        found.setdefault(tuple(path_of(error)), []).append(error)
    kept: list[Any] = []
    for path, group in found.items():
        if len({tuple(error["loc"]) for error in group}) < len(group) or len(group) == 1:
            kept += group
            continue
        # The kind fits, its value does not
        fitting = [error for error in group if not words.is_of_kind(error)]
        if any(other[: len(path)] == path for other in found if len(other) > len(path)):
            kept += fitting  # one of its kinds is a section, which is told of key by key
            continue
        kept += fitting or [{**group[0], "type": "one_of", "ctx": {"errors": group}}]
    return kept


def _without_misspelt(problems: Sequence[str]) -> list[str]:
    """Return the problems without "required" for a key that is there under a misspelt name."""
    found = [re.match(r"(.*\.)?[^.:]+: unknown key; did you mean '(\w+)'\?", problem) for problem in problems]
    misspelt = {f"{match[1] or ''}{match[2]}: this key is required" for match in found if match}
    return [problem for problem in problems if problem not in misspelt]


_PLACEHOLDERS: dict[str | int, Any] = {
    "name": "x",
    "model": {"base": "x"},
    "data": {"sources": [{"format": "alpaca", "uri": "x", "share": 1}], "train": 1, "validation": 1},
    "promote": {"model": "x"},
}


def _fill_placeholder(content: dict[Any, Any], section: str | int) -> bool:
    """Put a valid section in the place of one that lacks a key, so that the rules between sections are checked too."""
    if section not in _PLACEHOLDERS or content.get(section) == _PLACEHOLDERS[section]:
        return False
    content[section] = copy.deepcopy(_PLACEHOLDERS[section])
    return True


def _remove(content: Any, path: Sequence[str | int]) -> bool:
    """Delete the key at `path`; return whether there was one.

    Of a list with a wrong item the whole list goes, but for the benchmark tasks, which other sections refer to.
    """
    while path and isinstance(path[-1], int) and "tasks" not in path:
        path = path[:-1]
    try:
        for part in path[:-1]:
            content = content[part]
        del content[path[-1]]
    except (KeyError, IndexError, TypeError):
        return False
    return True


def takes_text(path: Sequence[str]) -> bool:
    """Return whether the key at `path` holds a text, or nothing, and no number: then ``1234567`` is a text."""
    node: Any = Study
    for part in path:
        if not (isinstance(node, type) and issubclass(node, BaseModel)) or part not in node.model_fields:
            return False
        annotation = node.model_fields[part].annotation
        node = section_class(annotation)
    kinds = set(get_args(annotation)) or {annotation}
    return str in kinds and kinds <= {str, type(None)}


_SECTIONS: dict[str, str] = dict.fromkeys(Study.model_fields, "")
"""Where a key belongs, for those that one section alone has."""
for _name in Study.model_fields:
    for _key in getattr(section_at([_name], Study), "model_fields", ()):
        _SECTIONS.setdefault(_key, _name)
