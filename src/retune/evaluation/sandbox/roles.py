"""What runs behind the shut door: a program, an answer that is called, or the tests that call it.

The answer's process defines the answer's functions and computes what it is asked; it never sees a test. The judge's
process runs the tests and never sees a line of the answer: the function it tests sends its arguments to the other
process and returns the plain data that comes back. So the verdict is made where the answer has no hand in it.
"""

from __future__ import annotations

import json
import os
import secrets
import traceback
from typing import Any

from retune.evaluation.sandbox import wire


def program(order: dict[str, Any]) -> None:
    """Run a program and report on the pipe whether it came to its end. It reports on itself: trust it or do not ask."""
    text, verdict = order["program"], order["verdict"]
    try:
        exec(compile(text, "<program>", "exec"), {})
    except BaseException as error:
        _judge(verdict, False, _last_line(error))
    else:
        _judge(verdict, True)


def answer(order: dict[str, Any]) -> None:
    """Define what the answer defines, then compute one call after the other until nobody asks."""
    asked, given, entry = order["asked"], order["given"], order["entry_point"]
    try:
        namespace: dict[str, Any] = {}
        exec(compile(order["program"], "<answer>", "exec"), namespace)
        if entry not in namespace:
            raise NameError(f"name {entry!r} is not defined")
    except BaseException as error:
        wire.send(given, ["", "error", wire.encode_error(error)])
        return
    wire.send(given, ["", "ready", None])
    while True:
        number, positional, named = wire.receive(asked)
        try:
            arguments = [wire.decode(value) for value in positional]
            names = {name: wire.decode(value) for name, value in named}
            reply = ["value", wire.encode(namespace[entry](*arguments, **names))]
        except BaseException as error:
            reply = ["error", wire.encode_error(error)]
        wire.send(given, [number, *reply])


def judge(order: dict[str, Any]) -> None:
    """Run the tests against the answer in the other process, and write the verdict.

    The definitions of the prompt are there, since tests use its helpers; the function to test is the other process's,
    under its own name too. Arguments go as copies: what the answer does to them stays with it.
    """
    asked, given, verdict = order["asked"], order["given"], order["verdict"]

    def call(*positional: Any, **named: Any) -> Any:
        arguments = [wire.encode(value) for value in positional]
        names = [[name, wire.encode(value)] for name, value in named.items()]
        try:
            number = secrets.token_hex(8)  # not to be known before the call: nothing is answered in advance
            wire.send(asked, [number, arguments, names])
            return _value(wire.receive(given), number)
        except wire.Broken as error:
            broken.append(error)
            raise

    broken: list[wire.Broken] = []  # kept, lest tests that expect an exception take it for theirs
    try:
        _ready(wire.receive(given))
        namespace = _definitions(order["prompt"])
        namespace[order["entry_point"]] = call
        exec(compile(order["tests"], "<tests>", "exec"), namespace)
        namespace["check"](call)
        if broken:
            raise broken[0]
    except BaseException as error:
        _judge(verdict, False, _last_line(error))
    else:
        _judge(verdict, True)


def _ready(message: Any) -> None:
    """Raise what the answer's definitions raised."""
    if message != ["", "ready", None]:
        _value(message, "")


def _value(message: Any, number: str) -> Any:
    """Return the value in the reply to the call of that number, or raise the exception in it."""
    try:
        if (message[0], len(message)) != (number, 3):
            raise ValueError("a reply to no call")
        _, kind, content = message
        found = {"value": wire.decode, "error": wire.decode_error}[kind](content)
    except Exception as error:
        raise wire.Broken("what the answer returned is no plain data") from error
    if kind == "error":
        raise found
    return found


def _definitions(prompt: str) -> dict[str, Any]:
    """Return what the prompt defines by itself. Its last function lacks its body, and perhaps even a docstring."""
    for ending in ("", "\n    pass\n"):
        try:
            code = compile(prompt + ending, "<prompt>", "exec")
        except SyntaxError:
            continue
        namespace: dict[str, Any] = {}
        exec(code, namespace)
        return namespace
    return {}


def _judge(pipe: int, passed: bool, reason: str = "") -> None:
    os.write(pipe, b"\n" + json.dumps({"passed": passed, "reason": reason}).encode())


def _last_line(error: BaseException) -> str:
    if isinstance(error, wire.Broken | wire.AnswerError):
        return str(error)[:200]
    try:
        return traceback.format_exception_only(error)[-1].strip().replace("\n", " ")[:200]
    except BaseException:
        return "an exception that cannot be printed"
