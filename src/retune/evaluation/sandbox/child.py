"""The inside of the sandbox. `runner` starts it in a separate Python (``-I -S``) and sends it a job as JSON on stdin.

There are two processes. The supervisor creates the namespaces, forks the sandboxed process and kills it when its time
is up. The sandboxed process drops its privileges (`privileges`), reports that on the control pipe, closes that pipe, and
only then runs untrusted code (`roles`), so that code can never write to the control pipe.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from typing import Any

from retune.evaluation.sandbox import privileges, roles

_ROLES = {"program": roles.program, "answer": roles.answer, "judge": roles.judge}


def main() -> None:
    """Run the job on stdin."""
    job = json.loads(sys.stdin.buffer.read())
    nothing = os.open("/dev/null", os.O_RDWR)
    os.dup2(nothing, 0)
    os.close(nothing)
    control = job["control"]
    try:
        if job["isolation"] == "namespaces":
            privileges.unshare_namespaces()
        child = os.fork()
    except OSError as error:
        _send(control, {"setup": str(error)})
        return
    if child == 0:
        try:
            _run_role(job)
        finally:
            os._exit(0)
    for pipe in job["pipes"]:
        os.close(pipe)  # otherwise readers would not see end of file when the child has ended
    ended = os.pidfd_open(child)
    ready, _, _ = select.select([ended], [], [], job["seconds"])
    if not ready:
        _send(control, {"timeout": True})
    os.kill(child, signal.SIGKILL)  # not waited for yet, so its process id cannot have been reused
    _, status, used = os.wait4(child, 0)
    # Nothing in the sandbox can send SIGKILL, and the kernel does so only past the limit of CPU time: else it was the
    # machine, as Linux does where memory runs out
    spent = used.ru_utime + used.ru_stime >= privileges.cpu_seconds(job["limits"]) - 0.5
    if ready and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and not spent:
        _send(control, {"killed": True})


def _run_role(job: dict[str, Any]) -> None:
    """Drop all privileges, then run the role."""
    control = job.pop("control")
    try:
        sys.path[:] = [folder for folder in sys.path if folder != job["source"]]
        privileges.drop(job, [control, *job["pipes"]])
    except BaseException as error:
        _send(control, {"setup": repr(error)})
        return
    _send(control, {"ready": True})
    os.close(control)
    os.environ.clear()  # Python itself sets LC_CTYPE
    _ROLES[job["role"]](job)


def _send(control: int, message: dict[str, Any]) -> None:
    os.write(control, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
