"""Plain data between the process of an answer and the process that judges it.

Only values of Python's own plain types cross: numbers, texts, bytes, and lists, tuples, sets and dictionaries of them.
They are rebuilt from JSON, so that no class, method or ``__eq__`` of the answer is ever run by the judge. What is of
another type is refused. Iterators are read to their end by the sender.

A message is four bytes of length, then JSON in ASCII. A list of JSON starts with the letter of its type (`_BUILD`).
"""

from __future__ import annotations

import builtins
import json
import os
from collections import deque
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from decimal import Decimal
from fractions import Fraction
from typing import Any

MOST_BYTES = 16 << 20  # of one message
_JSON_INTEGER = 1 << 53


class ProtocolError(Exception):
    """The other process has ended, or sent something that is not a message."""


class AnswerError(Exception):
    """The answer raised an exception of its own class, or one that is not an `Exception`."""


def _texted(value: float) -> Any:
    return value if value == value and abs(value) != float("inf") else ["f", repr(value)]


def encode(value: Any) -> Any:
    """Return `value` as JSON types. Subclasses of plain types become the plain type.

    Raises:
        TypeError: if it is, or holds, anything but plain data.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        number = int(value)
        return number if -_JSON_INTEGER < number < _JSON_INTEGER else ["i", hex(number)]
    if isinstance(value, float):
        return _texted(float(value))
    if isinstance(value, complex):
        return ["c", _texted(value.real), _texted(value.imag)]
    if isinstance(value, bytes | bytearray):
        return ["B" if isinstance(value, bytearray) else "b", bytes(value).hex()]
    if isinstance(value, Mapping):
        return ["d", *([encode(key), encode(item)] for key, item in value.items())]
    if isinstance(value, range):
        return ["r", *(encode(part) for part in (value.start, value.stop, value.step))]
    if isinstance(value, Decimal):
        return ["D", str(value)]
    if isinstance(value, Fraction):
        return ["F", encode(value.numerator), encode(value.denominator)]
    for letter, kinds in _LISTED:
        if isinstance(value, kinds):
            return [letter, *(encode(item) for item in value)]
    raise TypeError(f"only plain data can be passed, but got an object of type {type(value).__name__}")


_LISTED: tuple[tuple[str, Any], ...] = (
    ("l", list),
    ("t", tuple),
    ("s", set),
    ("z", frozenset),
    ("k", KeysView),
    ("v", ValuesView),
    ("m", ItemsView),
    ("q", deque),
    ("n", Iterator),
)


def _pairs(parts: list[Any]) -> dict[Any, Any]:
    return {decode(key): decode(item) for key, item in parts}


def _integer(text: str) -> int:
    return int(text, 16)


_BUILD: dict[str, Callable[[list[Any]], Any]] = {
    "i": lambda parts: _integer(*parts),
    "f": lambda parts: float(*parts),
    "c": lambda parts: complex(*map(decode, parts)),
    "b": lambda parts: bytes.fromhex(*parts),
    "B": lambda parts: bytearray.fromhex(*parts),
    "d": _pairs,
    "r": lambda parts: range(*map(decode, parts)),
    "D": lambda parts: Decimal(*parts),
    "F": lambda parts: Fraction(*map(decode, parts)),
    "l": lambda parts: [decode(part) for part in parts],
    "t": lambda parts: tuple(decode(part) for part in parts),
    "s": lambda parts: {decode(part) for part in parts},
    "z": lambda parts: frozenset(decode(part) for part in parts),
    "k": lambda parts: dict.fromkeys(decode(part) for part in parts).keys(),
    "v": lambda parts: dict(enumerate(decode(part) for part in parts)).values(),
    "m": lambda parts: dict(decode(part) for part in parts).items(),
    "q": lambda parts: deque(decode(part) for part in parts),
    "n": lambda parts: iter([decode(part) for part in parts]),
}


def decode(value: Any) -> Any:
    """Return the value that `encode` gave `value` for.

    Raises:
        Exception: of any kind, if `value` is not of that form.
    """
    if isinstance(value, list):
        return _BUILD[value[0]](value[1:])
    if isinstance(value, dict):
        raise ProtocolError("a JSON object is no part of a message")
    return value


def encode_error(error: BaseException) -> list[str]:
    """Return an exception as the name of its class and its text, both short."""
    try:
        text = str(error)[:200]
    except BaseException:
        text = "an exception that cannot be printed"
    return [type(error).__name__[:100], text.replace("\n", " ")]


def decode_error(parts: Any) -> Exception:
    """Return the exception: one of Python's own where the name is, else an `AnswerError`."""
    name, text = (str(part) for part in parts)
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            error = kind(text)
        except Exception:  # some, such as UnicodeDecodeError, ask for more than a text
            return AnswerError(f"{name}: {text}")
        return error
    return AnswerError(f"{name}: {text}" if text else name)


def send(pipe: int, message: Any) -> None:
    """Write one message.

    Raises:
        ProtocolError: if nobody reads, or the message is longer than `MOST_BYTES`.
    """
    data = json.dumps(message).encode()
    if len(data) > MOST_BYTES:
        raise ProtocolError(f"a value of more than {MOST_BYTES >> 20} MiB cannot be handed over")
    data = len(data).to_bytes(4, "big") + data
    try:
        while data:
            data = data[os.write(pipe, data) :]
    except OSError as error:
        raise ProtocolError("the other process is gone") from error


def receive(pipe: int) -> Any:
    """Read one message, still encoded.

    Raises:
        ProtocolError: if there is none, or it is no JSON of at most `MOST_BYTES`.
    """
    length = int.from_bytes(_read(pipe, 4), "big")
    if length > MOST_BYTES:
        raise ProtocolError(f"a value of more than {MOST_BYTES >> 20} MiB cannot be handed over")
    try:
        return json.loads(_read(pipe, length))
    except (ValueError, RecursionError) as error:
        raise ProtocolError("what arrived is no message") from error


def _read(pipe: int, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = os.read(pipe, min(length - len(data), 1 << 20))
        if not part:
            raise ProtocolError("ended before its last line")
        data += part
    return bytes(data)
