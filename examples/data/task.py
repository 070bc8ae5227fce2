"""What a task of the demo's instruction data is."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import NamedTuple


class Task(NamedTuple):
    """An instruction, the text it is about (may be empty) and the right answer."""

    instruction: str
    given: str
    answer: str


Draw = Callable[[Random], Task]
