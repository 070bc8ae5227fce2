"""What a sandboxed process runs: a program, an answer whose function is called, or the tests that call it.

The answer's process defines the answer's functions and computes the calls it receives; it never sees a test. The judge's
process runs the tests and never sees a line of the answer: the function under test sends its arguments to the other
process and returns the plain data that comes back. So the answer cannot influence the verdict.
"""

from __future__ import annotations

import json
import os
import secrets
import traceback
from typing import Any

from retune.evaluation.sandbox import wire


def program(job: dict[str, Any]) -> None:
    """Run a program and report on the pipe whether it ended without an exception. The program could forge that report."""
    text, verdict = job["program"], job["verdict"]
    try:
        exec(compile(text, "<program>", "exec"), {})
    except BaseException as error:
        _judge(verdict, False, _last_line(error))
    else:
        _judge(verdict, True)


def answer(job: dict[str, Any]) -> None:
    """Run the answer's definitions, then compute one call after the other until the pipe is closed."""
    calls, replies, entry = job["calls"], job["replies"], job["entry_point"]
    try:
        namespace: dict[str, Any] = {}
        exec(compile(job["program"], "<answer>", "exec"), namespace)
        if entry not in namespace:
            raise NameError(f"name {entry!r} is not defined")
    except BaseException as error:
        wire.send(replies, ["", "error", wire.encode_error(error)])
        return
    wire.send(replies, ["", "ready", None])
    while True:
        number, positional, named = wire.receive(calls)
        try:
            arguments = [wire.decode(value) for value in positional]
            names = {name: wire.decode(value) for name, value in named}
            reply = ["value", wire.encode(namespace[entry](*arguments, **names))]
        except BaseException as error:
            reply = ["error", wire.encode_error(error)]
        wire.send(replies, [number, *reply])


def judge(job: dict[str, Any]) -> None:
    """Run the tests against the answer in the other process, and write the verdict.

    The prompt's definitions are available, since tests use its helpers. The function under test is a call to the other
    process, under its own name too. Arguments are copies: changes that the answer makes to them are not seen here.
    """
    calls, replies, verdict = job["calls"], job["replies"], job["verdict"]

    def call(*positional: Any, **named: Any) -> Any:
        arguments = [wire.encode(value) for value in positional]
        names = [[name, wire.encode(value)] for name, value in named.items()]
        try:
            number = secrets.token_hex(8)  # unpredictable, so that a reply cannot be prepared before its call
            wire.send(calls, [number, arguments, names])
            return _value(wire.receive(replies), number)
        except wire.ProtocolError as error:
            broken.append(error)
            raise

    broken: list[wire.ProtocolError] = []  # kept, since a test that expects an exception would swallow it
    try:
        _ready(wire.receive(replies))
        namespace = _definitions(job["prompt"])
        namespace[job["entry_point"]] = call
        exec(compile(job["tests"], "<tests>", "exec"), namespace)
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
        result = {"value": wire.decode, "error": wire.decode_error}[kind](content)
    except Exception as error:
        raise wire.ProtocolError("the answer returned something that is not plain data") from error
    if kind == "error":
        raise result
    return result


def _definitions(prompt: str) -> dict[str, Any]:
    """Return what the prompt alone defines. Its last function has no body, and perhaps not even a docstring."""
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
    if isinstance(error, wire.ProtocolError | wire.AnswerError):
        return str(error)[:200]
    try:
        return traceback.format_exception_only(error)[-1].strip().replace("\n", " ")[:200]
    except BaseException:
        return "an exception that cannot be printed"
