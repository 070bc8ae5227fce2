"""NOMAD in a separate process: its input, its limits, and what is used if it fails.

The process is limited by CPU seconds, far above what any request needs, and not by the clock: a busy machine
must give the same answer. A crash repeats on the same request, so the way down the ladder of simpler settings
is the request's own too. The wall limit only keeps a hopelessly late answer from missing Katib's deadline.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retune.search import nomad_solver

_LOG = logging.getLogger("retune.search")
_CPU_SECONDS = 12  # a request was seen to need 0.3 at most with 8 points asked, 3 with 100
_WALL_SECONDS = 40.0  # for all attempts together; Katib waits 60
_MEMORY_MIB = 2048

# What to try when NOMAD crashes on a history: ever simpler, until only the poll is left.
_LADDER: tuple[Mapping[str, str], ...] = (
    {},
    {"NM_SEARCH": "no"},
    {"NM_SEARCH": "no", "QUAD_MODEL_SEARCH": "no"},
    {
        "NM_SEARCH": "no",
        "QUAD_MODEL_SEARCH": "no",
        "DIRECTION_TYPE": "ORTHO 2N",
        "EVAL_QUEUE_SORT": "DIR_LAST_SUCCESS",
    },
)


@dataclass(frozen=True)
class Answer:
    """New points with the index of the try that gave them, and why NOMAD gave none if it broke."""

    points: Sequence[tuple[list[int], int]] = ()
    failure: str | None = None


@dataclass(frozen=True)
class Request:
    """One question to NOMAD.

    Attributes:
        parameters: of `PyNomad.suggest`, without the frame. cache: the text of a cache file.
        known: points not to propose. tries: a seed and a frame size each, in order. count: points wanted.
    """

    parameters: Mapping[str, str]
    cache: str
    known: Sequence[Sequence[int]]
    tries: Sequence[tuple[int, Sequence[int]]]
    count: int

    def text(self, simpler: Mapping[str, str]) -> str:
        """Return the request as the solver reads it, with some parameters replaced."""
        return json.dumps(
            {
                "parameters": [f"{name} {value}" for name, value in {**self.parameters, **simpler}.items()],
                "cache": self.cache,
                "known": self.known,
                "tries": [(seed, f"( {' '.join(map(str, frame))} )") for seed, frame in self.tries],
                "count": self.count,
                "cpu_seconds": _CPU_SECONDS,
                "memory_mib": _MEMORY_MIB,
            }
        )


def ask(request: Request) -> Answer:
    """Ask NOMAD; simpler and simpler if it crashes, no more once it was out of time."""
    until, reason = time.monotonic() + _WALL_SECONDS, ""
    for rung, simpler in enumerate(_LADDER):
        try:
            return Answer(_run(request.text(simpler), until - time.monotonic()))
        except subprocess.CalledProcessError as error:
            reason, ended = _how(error.returncode), error.returncode in (-signal.SIGXCPU, -signal.SIGKILL)
        except subprocess.TimeoutExpired:
            reason, ended = f"no answer within {_WALL_SECONDS:g} s", True
        except (OSError, ValueError) as error:
            reason, ended = str(error), False
        _LOG.warning("NOMAD failed", extra={"reason": reason, "rung": rung, "count": request.count})
        if ended:  # it would spin again
            break
    return Answer(failure=reason)


def _how(code: int) -> str:
    if code == -signal.SIGXCPU:
        return f"no answer within {_CPU_SECONDS} s of CPU"
    return f"it ended with {signal.Signals(-code).name if code < 0 else code}"


def _run(text: str, seconds: float) -> list[tuple[list[int], int]]:
    """Return the answer of a solver process."""
    with tempfile.TemporaryDirectory(prefix="retune-nomad-") as folder:
        ended = subprocess.run(
            [sys.executable, "-I", nomad_solver.__file__],
            input=text.encode(),
            cwd=folder,
            timeout=max(seconds, 0.0),
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"OMP_NUM_THREADS": "1", "PATH": os.defpath},
        )
    points = json.loads(ended.stdout)
    return [([int(level) for level in point], int(index)) for point, index in points]
