"""The inside of the sandbox, started by `runner` in a Python of its own (``-I -S``), which reads its order from stdin.

Two processes. The supervisor makes namespaces, forks the one that is to be held, and kills it when its time is up.
The other shuts the door behind itself (`door`), says so on the control pipe, closes that pipe, and plays its role
(`roles`): nothing that it runs can write to the control pipe.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from typing import Any

from retune.evaluation.sandbox import door, roles

_ROLES = {"program": roles.program, "answer": roles.answer, "judge": roles.judge}


def main() -> None:
    """Carry out the order on stdin."""
    order = json.loads(sys.stdin.buffer.read())
    nothing = os.open("/dev/null", os.O_RDWR)
    os.dup2(nothing, 0)
    os.close(nothing)
    control = order["control"]
    try:
        if order["isolation"] == "namespaces":
            door.leave_namespaces()
        child = os.fork()
    except OSError as error:
        _say(control, {"setup": str(error)})
        return
    if child == 0:
        try:
            _held(order)
        finally:
            os._exit(0)
    for pipe in order["pipes"]:
        os.close(pipe)  # else the other side would not see that the child is gone
    ended = os.pidfd_open(child)
    ready, _, _ = select.select([ended], [], [], order["seconds"])
    if not ready:
        _say(control, {"timeout": True})
    os.kill(child, signal.SIGKILL)  # not yet waited for, so the number is still its own
    os.waitpid(child, 0)


def _held(order: dict[str, Any]) -> None:
    """Shut the door, then play the role."""
    control = order.pop("control")
    try:
        sys.path[:] = [folder for folder in sys.path if folder != order["source"]]
        door.shut(order, [control, *order["pipes"]])
    except BaseException as error:
        _say(control, {"setup": repr(error)})
        return
    _say(control, {"ready": True})
    os.close(control)
    os.environ.clear()  # Python itself put LC_CTYPE there
    _ROLES[order["role"]](order)


def _say(control: int, word: dict[str, Any]) -> None:
    os.write(control, json.dumps(word).encode() + b"\n")


if __name__ == "__main__":
    main()
