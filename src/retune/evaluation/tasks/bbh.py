"""BIG-Bench Hard (Suzgun et al. 2022): 27 tasks, three shots, macro-average.

Prompts and limits are those of Instruct-Eval's ``bbh.py`` (commit 49bbd2ce): direct answers without a chain of
thought; the first three examples of a task are its shots, the rest is its test set.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retune.errors import InputError
from retune.evaluation.tasks import lines
from retune.evaluation.tasks.question import (
    Question,
    Score,
    Task,
    by_group,
    first_few,
    share,
    starts_with_label,
)

SHOTS = 3


def files(path: Path) -> list[Path]:
    """Return the task files."""
    return sorted(path.glob("*.json"))


def read(path: Path) -> list[Question]:
    """Return the questions of all task files, tasks in alphabetical order.

    Raises:
        InputError: if there is no file, one is not JSON, or an example lacks ``input`` or ``target``.

    """
    paths = files(path)
    if not paths:
        raise InputError(f"a BBH folder holds one JSON file per task, but {path} has none")
    problems: list[str] = []
    questions: list[Question] = []
    for file in paths:
        examples = _examples(file, problems)
        shots = tuple(f"{_body(example)} {example['target']}\n\n" for example in examples[:SHOTS])
        for number, example in enumerate(examples[SHOTS:], SHOTS):
            questions.append(
                Question(f"{file.stem}/{number}", file.stem, "", shots, _body(example), example["target"])
            )
    if problems:
        raise InputError(problems)
    return questions


def average(questions: Sequence[Question], right: Sequence[bool]) -> Score:
    """Return the unweighted mean of the tasks' scores; its standard error treats tasks as independent."""
    scores = {f"task:{task}": share(verdicts) for task, verdicts in by_group(questions, right).items()}
    value = sum(p for p, _ in scores.values()) / len(scores)
    stderr = math.sqrt(sum(error**2 for _, error in scores.values())) / len(scores)
    return Score(value, stderr, {task: p for task, (p, _) in scores.items()})


def _body(example: dict[str, Any]) -> str:
    return f"{example['input']}\nAnswer:"


def _examples(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    try:
        content = json.loads(lines.read_text(path))
    except InputError as error:
        problems += error.problems
        return []
    except (ValueError, RecursionError) as error:
        problems.append(f"{path}: not valid JSON: {error}")
        return []
    examples = content.get("examples") if isinstance(content, dict) else None
    if not isinstance(examples, list):
        problems.append(f"{path}: a BBH file holds a list under 'examples', but this one does not")
        return []
    reasons = []
    for number, example in enumerate(examples):
        fields = example if isinstance(example, dict) else {}
        wrong = [key for key in ("input", "target") if not isinstance(fields.get(key), str)]
        if wrong:
            reasons.append(
                f"{path}: example {number} needs text under 'input' and 'target', but {wrong} is missing or no text"
            )
    if not reasons and len(examples) <= SHOTS:
        reasons.append(
            f"{path}: more than {SHOTS} examples are needed ({SHOTS} are the shots), but got {len(examples)}"
        )
    problems += first_few(reasons)
    return [] if reasons else examples


TASK = Task("bbh", SHOTS, 2048, 32, files, read, starts_with_label, average)
