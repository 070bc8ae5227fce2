"""All problems of a study at once: invalid keys are removed and the rest validated again, so that no rule is skipped."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from retune.study import words
from retune.study.model import Study
from retune.study.sentences import error_sentences, path_of, section_at, section_class


def all_problems(content: Mapping[str, Any], error: ValidationError) -> list[str]:
    """Return every problem of a study's content, whose validation ended with `error`.

    Pydantic checks the rules between keys only if every key is valid by itself. So invalid keys are removed, required ones
    filled in, and the rest is validated again, until no new problem is found.
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
        # In later rounds keys are missing because they were removed here
        errors = _one_per_value([e for e in error.errors() if not problems or e not in missing])
        problems += [text for e in errors for text in error_sentences(e, Study, dropped, kind, _SECTIONS)]
        problems = list(dict.fromkeys(problems))
        dropped += [path_of(e) for e in errors if e["type"] not in ("extra_forbidden", "missing", "rules")]
        # Last items first: an index stays valid
        changes = [_remove(left, path_of(e)) for e in reversed(errors)]
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
    """Return the problem of a study that is nested as a whole below an unknown key."""
    for key, inner in content.items():
        if key not in Study.model_fields and isinstance(inner, dict) and {"model", "data"} <= inner.keys():
            return f"{key}: unknown key; move what is below it to the top of the file"
    return None


def _one_per_value(errors: Sequence[Any]) -> list[Any]:
    """Return one error for each value: for a union, pydantic reports an error for every member."""
    by_value: dict[tuple[Any, ...], list[Any]] = {}
    for error in errors:
        by_value.setdefault(tuple(path_of(error)), []).append(error)
    kept: list[Any] = []
    for path, group in by_value.items():
        if len({tuple(error["loc"]) for error in group}) < len(group) or len(group) == 1:
            kept += group
            continue
        # Errors of members whose kind is that of the value tell what is wrong with it
        fitting = [error for error in group if not words.is_kind_error(error)]
        if any(other[: len(path)] == path for other in by_value if len(other) > len(path)):
            kept += fitting  # one of the members is a section, whose keys have errors of their own
            continue
        kept += fitting or [{**group[0], "type": "one_of", "ctx": {"errors": group}}]
    return kept


def _without_misspelt(problems: Sequence[str]) -> list[str]:
    """Return the problems without "required" for a key that is present under a misspelt name."""
    matches = [
        re.match(r"(.*\.)?[^.:]+: unknown key; did you mean '(\w+)'\?", problem) for problem in problems
    ]
    misspelt = {f"{match[1] or ''}{match[2]}: this key is required" for match in matches if match}
    return [problem for problem in problems if problem not in misspelt]


_PLACEHOLDERS: dict[str | int, Any] = {
    "name": "x",
    "model": {"base": "x"},
    "data": {"sources": [{"format": "alpaca", "uri": "x", "share": 1}], "train": 1, "validation": 1},
    "promote": {"model": "x"},
}


def _fill_placeholder(content: dict[Any, Any], section: str | int) -> bool:
    """Replace a section that lacks a required key by a valid one, so that the rules between sections are checked too."""
    if section not in _PLACEHOLDERS or content.get(section) == _PLACEHOLDERS[section]:
        return False
    content[section] = copy.deepcopy(_PLACEHOLDERS[section])
    return True


def _remove(content: Any, path: Sequence[str | int]) -> bool:
    """Delete the key at `path`; return whether there was one.

    A list with an invalid item is deleted as a whole, except `tasks`, which other sections refer to.
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


def paths_of(name: str) -> list[str]:
    """Return the dotted paths of the keys that `name` can mean: a key, its name in another tool, or a path."""
    first, _, rest = name.partition(".")
    if rest:
        return [name] if first in Study.model_fields else []
    for key in (name, words.ALIASES.get(name, "")):
        paths = [key] if key in Study.model_fields else []
        paths += [f"{section}.{key}" for section in Study.model_fields if key in _keys(section)]
        if paths:
            return paths
    return []


def _keys(section: str) -> Iterable[str]:
    return getattr(section_at([section], Study), "model_fields", ())


def takes_text(path: Sequence[str]) -> bool:
    """Return whether the key at `path` takes a text and no number, so that ``1234567`` is a text there."""
    node: Any = Study
    for part in path:
        if not (isinstance(node, type) and issubclass(node, BaseModel)) or part not in node.model_fields:
            return False
        annotation = node.model_fields[part].annotation
        node = section_class(annotation)
    kinds = set(get_args(annotation)) or {annotation}
    return str in kinds and kinds <= {str, type(None)}


_SECTIONS: dict[str, str] = dict.fromkeys(Study.model_fields, "")
"""The first section that has a key of this name; empty for a key at the top of the file."""
for _name in Study.model_fields:
    for _key in _keys(_name):
        _SECTIONS.setdefault(_key, _name)
