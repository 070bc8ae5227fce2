"""Data formats: field names, and how a record becomes an instruction, a conversation or a text."""

from __future__ import annotations

import contextlib
import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from retune import extensions
from retune.data.example import Example
from retune.errors import InputError
from retune.study.names import FORMATS

# Names that published data sets use for these fields.
_PROMPT_FIELDS = ("instruction", "prompt", "question")
_INPUT_FIELDS = ("input", "context")
_COMPLETION_FIELDS = ("output", "completion", "response", "answer")
_CONVERSATION_FIELDS = ("messages", "conversations", "conversation")
_SYSTEM = ("system", "system_prompt")
_EXCHANGE = {"prompt": "user", "completion": "assistant"}  # each a text, or a list of turns as TRL has them
_ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant", "function_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "tool_response": "tool", "function_response": "tool",
}  # fmt: skip

# What a tool answers is often an object
_RESULTS = [role for role, known in _ROLES.items() if known == "tool"]


@dataclass(frozen=True)
class Schema:
    """The fields of a record that hold its parts.

    Attributes:
        name: e.g. ``alpaca``.
        fields: part -> field; the parts are `prompt`, `input`, `completion`, `system`, `messages` and `text`.
        optional: parts that a record may lack.
    """

    name: str
    fields: Mapping[Any, str]
    optional: tuple[str, ...] = ("system",)


@dataclass(frozen=True)
class Format:
    """A data format of another package (`retune.extensions`): how to read a file, and what its fields mean.

    Attributes:
        schema: the meaning of the fields.
        read: takes the bytes of a file, or the path of a folder, and returns its records with their positions, from 1. A
            record is a mapping with the fields of `schema`. It raises InputError with all problems and their positions.
    """

    schema: Schema
    read: Callable[[bytes | Path], Iterable[tuple[int, Any]]]


def package_format(name: str) -> Format | None:
    """Return the format of an installed package; None if the name is one of retune's own.

    Raises:
        InputError: if the package cannot be imported, or gives something else.
    """
    if name in FORMATS:
        return None
    form = extensions.load("formats", name)
    if not isinstance(form, Format):
        raise InputError(f"{name!r} must be a retune.data.formats.Format, but is {form!r}", "retune.formats")
    return form


_SCHEMAS = {
    "alpaca": Schema("alpaca", {"prompt": "instruction", "input": "input", "completion": "output"}),
    "dolly": Schema("dolly", {"prompt": "instruction", "input": "context", "completion": "response"}),
    "jsonl": Schema(
        "jsonl", {"prompt": "instruction", "input": "input", "completion": "output"}, ("input", "system")
    ),
    "prompt-completion": Schema("prompt-completion", {"prompt": "prompt", "completion": "completion"}),
    "question-answer": Schema(
        "question-answer",
        {"prompt": "question", "input": "context", "completion": "answer"},
        ("input", "system"),
    ),
    "sharegpt": Schema("sharegpt", {"messages": "conversations"}),
    "messages": Schema("messages", {"messages": "messages"}),
    "text": Schema("text", {"text": "text"}),
}
DETECTED = ("auto", "csv", "parquet", "jsonl")


def schema(form: str, columns: Mapping[Any, str], fields: Sequence[str]) -> Schema | str:
    """Return the schema of a file's records, or why it is unclear.

    Args:
        form: the study's `format`.
        columns: the study's `columns`.
        fields: those of the first records.
    """
    if columns:
        return Schema("columns", dict(columns), ("input",))
    named = _named(form, fields)
    if form not in DETECTED:
        return named or _SCHEMAS[form]
    if form == "jsonl" and {"instruction", "output"} <= set(fields):
        return _SCHEMAS["jsonl"]
    return _detect(fields) or unknown(fields)


def _named(form: str, fields: Sequence[str]) -> Schema | None:
    """Return the schema of this name, with the records' system field and the actual name of their conversation field."""
    if form not in _SCHEMAS or form in DETECTED:
        return None
    known = _SCHEMAS[form]
    if form in ("sharegpt", "messages"):
        talk = next(
            (t for t in (known.fields["messages"], *_CONVERSATION_FIELDS) if t in fields),
            known.fields["messages"],
        )
        return Schema(form, {"messages": talk, **_system(fields)})
    return Schema(form, {**known.fields, **_system(fields)}, known.optional)


def _detect(fields: Sequence[str]) -> Schema | None:
    lower = {field.lower(): field for field in reversed(fields)}
    talks = [lower[t] for t in _CONVERSATION_FIELDS if t in lower]
    if talks:
        return Schema(
            "sharegpt" if talks[0] != lower.get("messages") else "messages",
            {"messages": talks[0], **_system(fields)},
        )
    prompts, inputs, completions = (
        [lower[name] for name in names if name in lower]
        for names in (_PROMPT_FIELDS, _INPUT_FIELDS, _COMPLETION_FIELDS)
    )
    if len(prompts) == len(completions) == 1 and len(inputs) <= 1:
        columns = {
            "prompt": prompts[0],
            **({"input": inputs[0]} if inputs else {}),
            "completion": completions[0],
        }
        names = [
            name
            for name, known in _SCHEMAS.items()
            if columns.items() <= dict(known.fields).items()
            and set(known.fields) - set(columns) <= set(known.optional)
        ]
        name = names[0] if names else f"{prompts[0]}/{completions[0]}"
        return Schema(name, {**columns, **_system(fields)}, ("input", "system"))
    if "text" in lower and not prompts and not completions:
        return Schema("text", {"text": lower["text"]})
    return None


def _system(fields: Sequence[str]) -> dict[str, str]:
    names = [field for field in fields if field.lower() in _SYSTEM]
    return {"system": names[0]} if names else {}


def unknown(fields: Sequence[str]) -> str:
    """Return what to write if the meaning of the fields is unclear."""
    return (
        f"the records have the fields {list(fields)}, whose meaning is unclear; name them, as in "
        f"`columns: {mapping(fields)}` (or `messages`, or `text`)"
    )


def missing_fields(form: Schema, fields: Sequence[str]) -> str:
    """Return what to write if no record has a field that the format requires."""
    looks = _detect(fields)
    if looks and looks.name in _SCHEMAS:
        hint = f"this looks like the format {looks.name!r}: omit `format`, or write `format: {looks.name}`"
    elif looks:
        hint = f"omit `format`: {looks.name} is detected by its fields"
    else:
        hint = f"if other fields hold it, write `columns: {mapping(fields)}`"
    named = "`columns` names another" if form.name == "columns" else f"the format {form.name!r} needs it"
    return f"{named}, but the records have the fields {list(fields)}; {hint}"


def mapping(fields: Sequence[str]) -> str:
    """Return a guess, from their names, of the line that maps these fields."""
    left = list(fields)

    def near(names: Sequence[str]) -> str | None:
        scored = [
            (
                difflib.SequenceMatcher(None, name, field.lower()).ratio()
                + (name in field.lower() or field.lower() in name),
                field,
            )
            for name in names
            for field in left
        ]
        best = max(scored, default=(0.0, ""), key=lambda pair: pair[0])
        if best[0] < 0.75:
            return None
        left.remove(best[1])
        return best[1]

    answered = near((*_COMPLETION_FIELDS, "reply", "target", "label", "solution", "summary"))
    asked = near((*_PROMPT_FIELDS, "query", "input", "source", "task", "title", "text"))
    left = [
        field
        for field in left
        if field.lower() not in (*_PROMPT_FIELDS, *_INPUT_FIELDS, *_COMPLETION_FIELDS, *_SYSTEM, "id")
    ]
    asked = asked or (left.pop(0) if left else "…")
    answered = answered or (left.pop(0) if left else "…")
    return f"{{prompt: {_plain(asked)}, completion: {_plain(answered)}}}"


def _plain(field: str) -> str:
    """Return a field's name as YAML has it in a mapping, in quotes where it needs them."""
    return field if re.fullmatch(r"[^\W\d][\w .-]*|…", field) else json.dumps(field, ensure_ascii=False)


class _Message(NamedTuple):
    """A turn; `learned`: whether the loss counts it, if it is the assistant's."""

    role: str
    text: str
    learned: bool = True


def read(record: Any, form: Schema, source: str, row: int) -> Example | list[str]:
    """Return a record, or its problems."""
    if _are_turns(record):
        return ['a record must be an object, but is a list of turns; write {"messages": […]} around each']
    if not isinstance(record, dict):
        return [f"a record must be an object with named fields, but is {kind(record)}"]
    problems: list[str] = []
    parts: dict[str, Any] = {}
    as_turns = any(_are_turns(record.get(form.fields.get(part))) for part in _EXCHANGE)
    for part, field in form.fields.items():
        value = record.get(field)
        if value is None and part in form.optional:
            parts[part] = ""
        elif field not in record:
            problems.append(f"field {field!r} is missing")
        elif part == "messages" or (part in _EXCHANGE and _are_turns(value)):
            parts[part] = _turns(value, field, problems)
        elif not isinstance(value, str):
            problems.append(f"field {field!r} must be text, but is {kind(value)}{_remedy(value)}")
        elif not _encodable(value):
            problems.append(
                f"field {field!r} must be Unicode text, but holds half a character (a lone surrogate)"
            )
        else:
            parts[part] = value
    if problems:
        return problems
    if "messages" in parts:
        return _conversation(parts["messages"], parts.get("system", ""), source, row)
    if as_turns:
        if parts.get("input", "").strip():
            return [f"field {form.fields['input']!r} must be empty where the prompt is a list of turns"]
        asked, answered = (
            [_Message(role, value)] if isinstance(value := parts[part], str) else value
            for part, role in _EXCHANGE.items()
        )
        turns = [*(turn._replace(learned=False) for turn in asked), *answered]
        return _conversation(turns, parts.get("system", ""), source, row)
    if "text" in parts:
        return Example("", "", parts["text"], source, row)
    return Example(
        parts["prompt"], parts.get("input", ""), parts["completion"], source, row, parts.get("system", "")
    )


def _are_turns(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(turn, dict) for turn in value)


def _conversation(turns: list[_Message], system: str, source: str, row: int) -> Example:
    """Return a conversation up to its last learned answer, without answers before the first question (some files have them)."""
    if system.strip() and not any(turn.role == "system" for turn in turns):
        turns = [_Message("system", system), *turns]
    while turns and not (turns[-1].role == "assistant" and turns[-1].learned):
        turns = turns[:-1]
    first = next((index for index, turn in enumerate(turns) if turn.role == "user"), len(turns))
    turns = [turn for index, turn in enumerate(turns) if index >= first or turn.role == "system"]
    if not any(turn.role == "assistant" for turn in turns):
        turns = []
    asked = next((turn.text for turn in turns if turn.role == "user"), "")
    answer = next((t.text for t in turns if t.role == "assistant" and t.learned and t.text.strip()), "")
    instructions = next((turn.text for turn in turns if turn.role == "system"), "")
    messages = tuple((turn.role, turn.text) for turn in turns)
    unlearned = tuple(k for k, turn in enumerate(turns) if turn.role == "assistant" and not turn.learned)
    return Example(asked, "", answer, source, row, instructions, messages, unlearned)


def _turns(value: Any, field: str, problems: list[str]) -> list[_Message]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            problems.append(f"field {field!r} must be a list of turns, but is text")
            return []
    if not isinstance(value, list):
        problems.append(f"field {field!r} must be a list of turns, but is {kind(value)}")
        return []
    messages: list[_Message] = []
    for index, turn in enumerate(value):
        where = f"{field}[{index}]"
        if not isinstance(turn, dict):
            problems.append(f"{where} must be an object with `role` and `content`, but is {kind(turn)}")
            continue
        role = turn.get("role", turn.get("from"))
        if not isinstance(role, str) or role.lower() not in _ROLES:
            known = "system, user (human), assistant (gpt) or tool"
            problems.append(
                f"{where}: the role must be {known}, but is {role!r}; its fields are {sorted(turn)}"
            )
            continue
        weight = turn.get("weight")
        if weight not in (None, 0, 1):
            problems.append(f"{where}: the weight must be 0 or 1, but is {weight!r}")
        said = _turn_text(turn, where, problems)
        if said is not None:
            messages.append(_Message(_ROLES[role.lower()], said, weight != 0))
    return messages


def _turn_text(turn: Mapping[str, Any], where: str, problems: list[str]) -> str | None:
    """Return the text of a turn, tool calls as JSON; None and a problem if it has no text."""
    content = turn.get("content", turn.get("value"))
    calls = turn.get("tool_calls") or turn.get("function_call")
    if isinstance(content, list):
        if any(not isinstance(part, dict) or not isinstance(part.get("text"), str) for part in content):
            kinds = sorted(
                {str(part.get("type")) if isinstance(part, dict) else kind(part) for part in content}
            )
            problems.append(f"{where}: the content must be text, but holds {kinds}")
            return None
        content = "".join(part["text"] for part in content)
    if content is None and calls:
        content = ""
    if isinstance(content, dict) and turn.get("role") in _RESULTS:
        content = json.dumps(content, ensure_ascii=False, default=str)
    if not isinstance(content, str):
        problems.append(f"{where}: the content must be text, but is {kind(content)}")
        return None
    if calls:
        content = "\n".join([*([content] if content else []), _as_text(calls)])
    if not _encodable(content):
        problems.append(
            f"{where}: the content must be Unicode text, but holds half a character (a lone surrogate)"
        )
        return None
    return content


def _as_text(calls: Any) -> str:
    """Return tool calls as JSON, one per line, each with name and arguments."""

    def plain(call: Any) -> Any:
        inner = call.get("function", call) if isinstance(call, dict) else call
        if isinstance(inner, dict) and isinstance(inner.get("arguments"), str):
            with contextlib.suppress(ValueError):
                inner = {**inner, "arguments": json.loads(inner["arguments"])}
        return {k: v for k, v in inner.items() if v is not None} if isinstance(inner, dict) else inner

    items: Iterable[Any] = calls if isinstance(calls, list) else [calls]
    return "\n".join(json.dumps(plain(call), ensure_ascii=False, default=str) for call in items)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def kind(value: Any) -> str:
    """Return what a value of a record is, in words; Parquet has more kinds than JSON."""
    names = {
        dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null",
        int: "a number", float: "a number", bytes: "bytes",
    }  # fmt: skip
    return names.get(type(value), f"of the type {type(value).__name__}")


def _remedy(value: Any) -> str:
    """Return what to do with a value that is no text, as an end of its sentence."""
    if isinstance(value, bool | int | float):
        return "; put it in quotes, if it is the text itself"
    if isinstance(value, list):
        return "; keep one of its items, or join them"
    return ""
