"""Prompts as tokens: shots are dropped until the prompt fits; the tokenizer processes each text once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retune.evaluation.tasks.question import Question, Task

_EDGE = 8  # characters before a cut that may affect how the text after it is tokenised


def fit(
    tokenizer: Any, questions: Sequence[Question], task: Task, context: int
) -> tuple[list[list[int]], list[int]]:
    """Return the prompts as tokens and the number of shots in each: the last shots are dropped until the prompt fits.

    The limit is the smaller of the protocol's and of what the model's context leaves beside the answer. A question that is too
    long even without shots is kept whole, as in the original protocol; what exceeds the context itself is cut at its beginning.

    Args:
        tokenizer: a transformers tokenizer; its own special tokens are added, as in the original.
        questions: what to ask.
        task: gives the limits.
        context: the longest sequence that the model takes, in tokens.
    """
    beside = max(context - task.new_tokens, 1)
    limit = min(task.input_limit, beside) if task.shots else task.input_limit
    shots = [len(question.shots) for question in questions]
    reader = _Reader(tokenizer)
    tokens: list[list[int]] = [[] for _ in questions]
    waiting = list(range(len(questions)))
    while waiting:
        for k, ids in zip(
            waiting, reader.read([questions[k].pieces(shots[k]) for k in waiting]), strict=True
        ):
            tokens[k] = ids
        waiting = [k for k in waiting if len(tokens[k]) > limit and shots[k] > 0]
        for k in waiting:
            shots[k] -= 1
    # Tasks without shots have long answers: rather shorten the room for the answer than cut the question
    room = beside if task.shots else max(beside, context // 2)
    return [ids[-room:] for ids in tokens], shots


def pairs(
    tokenizer: Any, asked: Sequence[tuple[str, str]], context: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Return texts and their endings as tokens, as lm-evaluation-harness reads them.

    The two are read as one text and cut where the first alone ends, less the blanks at its end, which belong to the
    ending. What exceeds the model's context is cut at the beginning; an ending's last token need not be in it.
    """
    contexts: list[list[int]] = []
    endings: list[list[int]] = []
    starts = [start.rstrip() for start, _ in asked]
    lengths = {start: len(tokenizer(start)["input_ids"]) for start in set(starts)}
    wholes = tokenizer([start + ending for start, ending in asked])["input_ids"] if asked else []
    for start, whole in zip(starts, wholes, strict=True):
        length = lengths[start]
        contexts.append(whole[:length][-max(context + 1 - (len(whole) - length), 1) :])
        endings.append(whole[length:])
    return contexts, endings


class _Reader:
    """Tokenises prompts that consist of a start, shared by many, and a body: each part once, if joining the tokens is exact.

    They are cut before the white space between them, which tokenizers attach to what follows. Whether joining is
    exact depends on the characters around the cut, since tokenizers hardly look further. Each such edge is checked once on
    a whole prompt; if the tokens differ, all prompts with that edge are tokenised whole.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._starts: dict[str, list[int]] = {}
        self._ends: dict[str, list[int]] = {}
        self._exact: dict[tuple[str, str], bool] = {}

    def read(self, prompts: Sequence[tuple[str, str]]) -> list[list[int]]:
        """Return the tokens of each prompt, given as start and body."""
        cut = [(start.rstrip(), start[len(start.rstrip()) :] + body) for start, body in prompts]
        new = list({end for start, end in cut if start} - self._ends.keys())
        if new:
            read = self._tokenizer(new, add_special_tokens=False)["input_ids"]
            self._ends.update(zip(new, read, strict=True))
        return [self._one(start, end) for start, end in cut]

    def _one(self, start: str, end: str) -> list[int]:
        if not start:
            return self._whole(end)
        if start not in self._starts:
            self._starts[start] = self._whole(start)
        joined = self._starts[start] + self._ends[end]
        first = end[: len(end) - len(end.lstrip()) + 1]
        edge = start[-_EDGE:], first
        if edge not in self._exact:
            self._exact[edge] = self._whole(start + end) == joined
        return joined if self._exact[edge] else self._whole(start + end)

    def _whole(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text)["input_ids"]
        return ids
