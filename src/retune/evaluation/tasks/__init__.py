"""The benchmarks: one file each, and the questions that all of them are made of."""

from __future__ import annotations

from retune import extensions
from retune.errors import InputError
from retune.evaluation.tasks import bbh, drop, hellaswag, humaneval, mmlu
from retune.evaluation.tasks.question import Task

TASKS: dict[str, Task] = {
    task.name: task for task in (mmlu.TASK, bbh.TASK, drop.TASK, humaneval.TASK, hellaswag.TASK)
}


def find(name: str) -> Task:
    """Return the benchmark of a name, retune's own or an installed package's.

    Raises:
        InputError: if its package cannot be imported, or gives something else under that name.
    """
    if name in TASKS:
        return TASKS[name]
    task = extensions.load("tasks", name)
    if not isinstance(task, Task) or task.name != name:
        raise InputError(f"{name!r} must be a Task of that name, but is {task!r}", "retune.tasks")
    return task
