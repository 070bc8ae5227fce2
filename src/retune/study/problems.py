"""Converts pydantic's errors to sentences with place, rule, value and remedy; reports all of them at once."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from retune.errors import InputError
from retune.space import Parameter
from retune.study import words
from retune.study.model import Study
from retune.study.training import TUNABLE


def read_sections(origin: str, *sections: tuple[type[BaseModel], Mapping[str, Any]]) -> list[Any]:
    """Return sections of a study that come from a command or a call, one of each pair of class and content.

    Raises:
        InputError: with the problems of all of them; `origin` says where they come from.
    """
    found, problems = [], []
    for kind, content in sections:
        try:
            found.append(kind.model_validate(content))
        except ValidationError as error:
            problems += sentences(error, kind)
    if problems:
        raise InputError(problems, origin)
    return found


def sentences(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """Return the problems of one section that is used by itself, without the rules of a whole study."""
    return [text for entry in error.errors() for text in _sentences(entry, [], root=root)]


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
        problems += [text for e in found for text in _sentences(e, dropped, kind)]
        problems = list(dict.fromkeys(problems))
        dropped += [_path(e) for e in found if e["type"] not in ("extra_forbidden", "missing", "rules")]
        changes = [_remove(left, _path(e)) for e in reversed(found)]  # of a list the last items first
        changes += [_fill_placeholder(left, _path(e)[0]) for e in missing]
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
        found.setdefault(tuple(_path(error)), []).append(error)
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


def _follows(text: str, section: list[str | int], dropped: Sequence[list[str | int]]) -> bool:
    """Return whether a rule between keys is broken only because we dropped one of them, which it names."""
    below = [path[len(section) :] for path in dropped if path[: len(section)] == section]
    keys = {part for path in below for part in path[-1:] if isinstance(part, str)}
    return any(re.search(rf"`([a-z_]+\.)*{re.escape(key)}`|\b{re.escape(key)}s\b", text) for key in keys)


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


_UNION_MEMBER = re.compile(
    r"preset of a paper|list of parameters|\[key\]|constrained-\w+|(literal|list|dict|function-\w+)\[.*\]|str|int|float|bool|File"
)
"""How pydantic calls the members of a union among the keys that lead to an error; no key of ours is called so."""


def _path(error: Any) -> list[str | int]:
    """Return the keys that lead to an error, without the names of union members, which mean nothing to a person."""
    path = [part for part in error["loc"] if not _UNION_MEMBER.fullmatch(str(part))]
    match path:
        case [
            "search",
            "further_objectives",
            int(place),
            *rest,
        ]:
            # Written as the rest of the list `objective`
            return ["search", "objective", place + 1, *rest]
    return path


_PARAMETERS = (
    "{preset: …} or a list of parameters is asked for, each an item with its name, "
    "as in [{name: rank, kind: integer, low: 1, high: 64, default: 8}]"
)


def _sentences(
    error: Any, dropped: Sequence[list[str | int]], engine: str = "local", root: type[BaseModel] = Study
) -> list[str]:
    """Return the sentences of one error; of several rules those that are not broken by what we dropped."""
    path = _path(error)
    where = f"{'.'.join(map(str, path))}: " if path else ""
    if error["type"] == "value_error" and _follows(error["msg"], path, dropped):
        return []
    if path == ["search", "parameters", "preset"] and error["type"] == "missing" and error["input"]:
        return [f"search.parameters: {_PARAMETERS}"]
    if path[:2] == ["search", "parameters"] and len(path) == 3 and path[2] in TUNABLE:
        return [f"search.parameters: {_PARAMETERS}"]
    if error["type"] == "rules":
        return [where + text for text in error["ctx"]["problems"] if not _follows(text, path, dropped)]
    return [where + _sentence(error, path, engine, root)]


def _sentence(error: Any, path: list[str | int], engine: str, root: type[BaseModel]) -> str:
    """Turn one pydantic error into the rule, the value, and the nearest valid key or name."""
    if error["type"] == "extra_forbidden":
        return words.unknown_key(
            str(path[-1]), _valid_keys(path[:-1], root), _SECTIONS if root is Study else {}
        )
    if error["type"] == "missing":
        return "this key is required"
    message: str = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        if path == ["search", "algorithm"] and message.startswith("unknown name"):
            return words.unknown_algorithm(error["input"], engine)
        return message[0].lower() + message[1:]
    return words.sentence(error, _keys(path, root))


def _keys(path: Sequence[str | int], root: type[BaseModel]) -> list[str]:
    """Return the keys of the section at `path`, the one that stands for it first."""
    field = _section_at(path, root)
    return list(field.model_fields) if field is not None else []


def _valid_keys(path: Sequence[str | int], root: type[BaseModel]) -> list[str]:
    """Return the keys that the section at `path` knows."""
    node = _section_at(path, root)
    return sorted(node.model_fields) if node is not None else []


def _section_at(path: Sequence[str | int], root: type[BaseModel] = Study) -> Any:
    """Return the class of the section at `path`, None if it is no section."""
    node: Any = root
    for part in path:
        if isinstance(part, int):
            continue
        field = (
            node.model_fields.get(part) if isinstance(node, type) and issubclass(node, BaseModel) else None
        )
        if field is None:
            return None
        in_list = part == "parameters" and any(isinstance(step, int) for step in path)
        node = Parameter if in_list else _section(field.annotation)
    return node if isinstance(node, type) and issubclass(node, BaseModel) else None


def takes_text(path: Sequence[str]) -> bool:
    """Return whether the key at `path` holds a text, or nothing, and no number: then ``1234567`` is a text."""
    node: Any = Study
    for part in path:
        if not (isinstance(node, type) and issubclass(node, BaseModel)) or part not in node.model_fields:
            return False
        annotation = node.model_fields[part].annotation
        node = _section(annotation)
    kinds = set(get_args(annotation)) or {annotation}
    return str in kinds and kinds <= {str, type(None)}


def _section(annotation: Any) -> Any:
    """Return the section class inside a list or union annotation."""
    if get_origin(annotation) is Annotated:
        return _section(get_args(annotation)[0])
    for inner in get_args(annotation):
        found = _section(inner)
        if isinstance(found, type) and issubclass(found, BaseModel):
            return found
    return annotation


_SECTIONS: dict[str, str] = dict.fromkeys(Study.model_fields, "")
"""Where a key belongs, for those that one section alone has."""
for _name in Study.model_fields:
    for _key in _valid_keys([_name], Study):
        _SECTIONS.setdefault(_key, _name)
