"""Converts pydantic's errors of a section or study to sentences that name key, rule, value and remedy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from retune.errors import InputError
from retune.space import Parameter
from retune.study import words
from retune.study.training import TUNABLE


def read_sections(origin: str, *sections: tuple[type[BaseModel], Mapping[str, Any]]) -> list[Any]:
    """Return sections of a study that were given to a command or function, one for each pair of class and content.

    Raises:
        InputError: with the problems of all of them; `origin` names the command or function.
    """
    readable, problems = [], []
    for kind, content in sections:
        try:
            readable.append(kind.model_validate(content))
        except ValidationError as error:
            problems += sentences(error, kind)
    if problems:
        raise InputError(problems, origin)
    return readable


def sentences(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """Return the problems of one section that is used by itself, without the rules of a whole study."""
    return [text for entry in error.errors() for text in error_sentences(entry, root)]


_PARAMETERS = (
    "must be {preset: …} or a list of parameters, each an item with its name, "
    "as in [{name: rank, kind: integer, low: 1, high: 64, default: 8}]"
)


def error_sentences(
    error: Any,
    root: type[BaseModel],
    dropped: Sequence[list[str | int]] = (),
    engine: str = "local",
    sections: Mapping[str, str] | None = None,
) -> list[str]:
    """Return the sentences of one error.

    Args:
        error: an entry of pydantic's `errors()`.
        root: the class that was validated.
        dropped: paths that were removed before: rules that are violated only because of that are not reported.
        engine: the study's, for the names of valid algorithms.
        sections: the section of each key, to point a misplaced key to.
    """
    path = path_of(error)
    where = f"{'.'.join(map(str, path))}: " if path else ""
    if error["type"] == "value_error" and _is_consequence(error["msg"], path, dropped):
        return []
    if path == ["search", "parameters", "preset"] and error["type"] == "missing" and error["input"]:
        return [f"search.parameters: {_PARAMETERS}"]
    if path[:2] == ["search", "parameters"] and len(path) == 3 and path[2] in TUNABLE:
        return [f"search.parameters: {_PARAMETERS}"]
    if error["type"] == "rules":
        return [where + text for text in error["ctx"]["problems"] if not _is_consequence(text, path, dropped)]
    return [where + _sentence(error, path, engine, root, sections or {})]


def _sentence(
    error: Any, path: list[str | int], engine: str, root: type[BaseModel], sections: Mapping[str, str]
) -> str:
    """Return the rule, the value, and the nearest valid key or name for one error."""
    if error["type"] == "extra_forbidden":
        return words.unknown_key(str(path[-1]), sorted(_keys(path[:-1], root)), sections)
    if error["type"] == "missing":
        return "this key is required"
    message: str = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        if path == ["search", "algorithm"] and message.startswith("unknown name"):
            return words.unknown_algorithm(error["input"], engine)
        return message[0].lower() + message[1:]
    return words.sentence(error, _keys(path, root))


def _keys(path: Sequence[str | int], root: type[BaseModel]) -> list[str]:
    """Return the keys of the section at `path`, the most important first; [] if it is no section."""
    section = section_at(path, root)
    return list(section.model_fields) if section is not None else []


def section_at(path: Sequence[str | int], root: type[BaseModel]) -> Any:
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
        node = Parameter if in_list else section_class(field.annotation)
    return node if isinstance(node, type) and issubclass(node, BaseModel) else None


def _is_consequence(text: str, section: list[str | int], dropped: Sequence[list[str | int]]) -> bool:
    """Return whether a rule between keys is violated only because one of them, which its text names, was removed."""
    below = [path[len(section) :] for path in dropped if path[: len(section)] == section]
    keys = {part for path in below for part in path[-1:] if isinstance(part, str)}
    return any(re.search(rf"`([a-z_]+\.)*{re.escape(key)}`|\b{re.escape(key)}s\b", text) for key in keys)


_UNION_MEMBER = re.compile(
    r"preset of a paper|list of parameters|\[key\]|constrained-\w+|(literal|list|dict|function-\w+)\[.*\]|str|int|float|bool|File"
)
"""Pydantic's names of the members of a union, which it adds to the path of an error; no key of a study has such a name."""


def path_of(error: Any) -> list[str | int]:
    """Return the path of keys to an error, without pydantic's names of union members."""
    path = [part for part in error["loc"] if not _UNION_MEMBER.fullmatch(str(part))]
    match path:
        case [
            "search",
            "further_objectives",
            int(place),
            *rest,
        ]:
            # In the study file they are the rest of the list `objective`
            return ["search", "objective", place + 1, *rest]
    return path


def section_class(annotation: Any) -> Any:
    """Return the section class inside a list or union annotation."""
    if get_origin(annotation) is Annotated:
        return section_class(get_args(annotation)[0])
    for inner in get_args(annotation):
        inner_class = section_class(inner)
        if isinstance(inner_class, type) and issubclass(inner_class, BaseModel):
            return inner_class
    return annotation
