"""Conversations rendered by a chat template, and which of their tokens are the assistant's.

If the template marks the assistant's turns with ``{% generation %}``, as in transformers, these marks are used. If not, a
turn begins where the template's own generation prompt ends: the earlier turns rendered with that prompt must be a prefix
of the whole conversation. The turn ends after the first special token that follows its text, such as ``<|im_end|>``,
which the model must learn to emit. If neither can be located exactly, the record is refused.
"""

from __future__ import annotations

import itertools
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from retune.data.example import Turn
from retune.errors import InputError, first_line

_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_SECONDS = 20.0  # allowed for rendering one conversation, which normally takes a millisecond
_GROWTH = 1 << 20  # characters that a template may add to a conversation, besides 100 times its length
Span = tuple[int, int]
Ids = tuple[list[int], list[bool]]


class TurnsNotFound(Exception):
    """The assistant's tokens of a conversation cannot be located; the message has the reason."""


class ChatTemplate:
    """The chat template of a tokenizer, or another template for its tokens.

    Args:
        tokenizer: a fast tokenizer of transformers, since offsets are needed.
        text: the template in Jinja; None for the tokenizer's own.

    Raises:
        InputError: if there is no template, or the tokenizer gives no offsets.
    """

    def __init__(self, tokenizer: Any, text: str | None = None) -> None:
        if text is None and not tokenizer.chat_template:
            raise InputError(
                "the base has no chat template, which `prompt: chat` needs; write `prompt: alpaca`, or name a file with one",
                "data.prompt",
            )
        if not getattr(tokenizer, "is_fast", False):
            raise InputError(
                f"`prompt: chat` needs a tokenizer with a tokenizer.json, but the base has {type(tokenizer).__name__}",
                "data.prompt",
            )
        self.tokenizer = tokenizer
        self.text = text if text is not None else tokenizer.get_chat_template()
        self.marked = bool(_MARK.search(self.text))

    def ask(self, turns: Sequence[Turn]) -> str:
        """Return the prompt for the assistant's next turn, as `encode` has it before that turn.

        Raises:
            InputError: if the template rejects the turns.
        """
        try:
            return self._render(self._known_turns(turns), True)
        except TurnsNotFound as error:
            raise InputError(f"the chat template cannot ask this: {error}", "data.prompt") from error

    def encode(self, turns: Sequence[Turn]) -> Ids:
        """Return the token ids of a conversation, and which of them are the assistant's.

        Raises:
            TurnsNotFound: if they cannot be located exactly.
        """
        text, spans, closed = self.spans(turns)
        ids, counted = self._tokens(text, spans)
        # Without a closing token in the template the model would not learn to stop
        if not closed and self.tokenizer.eos_token_id is not None:
            return [*ids, self.tokenizer.eos_token_id], [*counted, True]
        return ids, counted

    def spans(self, turns: Sequence[Turn]) -> tuple[str, list[Span], bool]:
        """Return the text of a conversation, the assistant's spans in it, and whether a special token closes the last.

        Raises:
            TurnsNotFound: if the spans cannot be located exactly.
        """
        turns = self._known_turns(turns)
        if self.marked:
            text, spans = self._marked(turns)
            return text, spans, True
        whole = self._render(turns, False)
        indices = [index for index, (role, _) in enumerate(turns) if role == "assistant"]
        starts = [self._start(turns, index, whole) for index in indices]
        self._require_all(turns, whole)
        spans = []
        closed = True
        for order, index in enumerate(indices):
            limit = starts[order + 1] if order + 1 < len(indices) else len(whole)
            until = self._render(turns[: index + 1], False)
            if whole.startswith(until) and starts[order] < len(until) <= limit:
                limit = len(until)
            elif order + 1 < len(indices) and not self._special_in(whole[starts[order] : limit]):
                raise TurnsNotFound("the template does not show where an answer ends")
            end, closed = self._end(whole, starts[order], limit, turns[index][1].strip())
            spans.append((starts[order], end))
        if not closed and spans:
            whole = whole[: spans[-1][1]]
        return whole, spans, closed

    def _start(self, turns: Sequence[Turn], index: int, whole: str) -> int:
        """Return where the assistant's turn at `index` begins."""
        before = self._render(turns[:index], True)
        if not whole.startswith(before):
            raise TurnsNotFound(
                "the template renders earlier turns differently once later turns follow, and does not mark the assistant's "
                "turns with {% generation %}"
            )
        return len(before)

    def _end(self, whole: str, start: int, limit: int, answer: str) -> tuple[int, bool]:
        """Return where a turn ends, and whether a special token closes it."""
        position = whole.find(answer, start, limit)
        if position < 0:
            raise TurnsNotFound("the template changes what the assistant said")
        after = position + len(answer)
        hits = [(at, len(token)) for token in self._special if (at := whole.find(token, after, limit)) >= 0]
        if hits:
            at, length = min(hits, key=lambda hit: (hit[0], -hit[1]))
            return at + length, True
        return max(after, start + len(whole[start:limit].rstrip())), False

    def _special_in(self, text: str) -> bool:
        return any(token in text for token in self._special)

    def _require_all(self, turns: Sequence[Turn], whole: str) -> None:
        at = 0
        for role, text in turns:
            answer = text.strip()
            position = whole.find(answer, at)
            # Some templates move the system prompt into the first question
            if position < 0 and role == "system":
                position = at if answer in whole else -1
                answer = ""
            if position < 0:
                raise TurnsNotFound(f"the template leaves out or changes what the {role} said")
            at = position + len(answer)

    def _marked(self, turns: Sequence[Turn]) -> tuple[str, list[Span]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            with _time_limit():
                texts, marks = render_jinja_template(
                    [_messages(turns)],
                    chat_template=self.text,
                    return_assistant_tokens_mask=True,
                    **self.tokenizer.special_tokens_map,
                )
        except Exception as error:  # a template may raise anything
            raise TurnsNotFound(f"the template rejects the conversation: {first_line(error)}") from error
        _require_size(texts[0], turns)
        return texts[0], [(start, end) for start, end in marks[0] if end > start]

    def _render(self, turns: Sequence[Turn], ask: bool) -> str:
        try:
            with _time_limit():
                text: str = self.tokenizer.apply_chat_template(
                    _messages(turns), chat_template=self.text, tokenize=False, add_generation_prompt=ask
                )
        except Exception as error:  # a template may raise anything
            raise TurnsNotFound(f"the template rejects the conversation: {first_line(error)}") from error
        _require_size(text, turns)
        return text

    def _known_turns(self, turns: Sequence[Turn]) -> list[Turn]:
        """Return the turns; turns of tools become the user's if the template has no role for tools."""
        if self._knows_tools or not any(role == "tool" for role, _ in turns):
            return list(turns)
        return [("user" if role == "tool" else role, text) for role, text in turns]

    @cached_property
    def _knows_tools(self) -> bool:
        probe = "tool-answer-7q3"
        try:
            return probe in self._render([("user", "a"), ("assistant", "b"), ("tool", probe)], False)
        except TurnsNotFound:
            return False

    @cached_property
    def _special(self) -> list[str]:
        added = [t.content for t in self.tokenizer.added_tokens_decoder.values() if t.special]
        return sorted({*added, *self.tokenizer.all_special_tokens} - {""})

    def _tokens(self, text: str, spans: Sequence[Span]) -> Ids:
        """Return the ids of a text and, for each, whether it is within one of the spans.

        At inference the prompt is tokenised alone, before the answer exists. So no token may cross the border of a span. In this
        order: the parts tokenised separately, if that equals the tokens of the whole text; the whole text, if no token crosses a
        border; the parts tokenised separately, if they decode to the same text.
        """
        cuts = sorted({0, len(text), *(index for span in spans for index in span)})
        parts = [(start, end) for start, end in itertools.pairwise(cuts) if end > start]
        inside = [any(start <= a and b <= end for start, end in spans) for a, b in parts]
        joint = self._ids(text)
        tokenizations = [
            [tokenize(text[a:b], a == 0) for a, b in parts] for tokenize in (self._alone, self._after_special)
        ]
        for ids in tokenizations:
            if _flat(ids) == joint:
                return _flagged(ids, inside)
        whole = self._by_offsets(text, spans)
        if whole is not None:
            return whole
        for ids in tokenizations:
            if self._text(_flat(ids)) == self._text(joint):
                return _flagged(ids, inside)
        raise TurnsNotFound("the tokenizer cannot split it where an answer begins or ends")

    def _by_offsets(self, text: str, spans: Sequence[Span]) -> Ids | None:
        """Return the tokens of the whole text, if the tokens of each span decode to exactly its text."""
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = list(encoding["input_ids"]), encoding["offset_mapping"]
        counted = [False] * len(ids)
        for start, end in spans:
            run = [k for k, (a, b) in enumerate(offsets) if start <= a and b <= end and b > a]
            if (
                not run
                or run != list(range(run[0], run[-1] + 1))
                # With all before it: at the start of a text, decoders of SentencePiece drop a space
                or self._text(ids[: run[-1] + 1]) != self._text(ids[: run[0]]) + text[start:end]
            ):
                return None
            for k in run:
                counted[k] = True
        return ids, counted

    def _alone(self, text: str, first: bool) -> list[int]:
        return self._ids(text)

    def _after_special(self, text: str, first: bool) -> list[int]:
        """Tokenise a part as if in the middle of a text: some tokenizers (SentencePiece) add a space at the start of a text."""
        token = self.tokenizer.eos_token or (self._special[0] if self._special else "")
        if first or not token:
            return self._ids(text)
        return self._ids(token + text)[len(self._ids(token)) :]

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


@contextmanager
def _time_limit() -> Iterator[None]:
    """Stop the rendering of one conversation after `_SECONDS`: a template is a program from an untrusted source.

    SIGALRM is used, whose handler runs in the main thread only; other threads render without a limit.

    Raises:
        TurnsNotFound: when the time is up.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise TurnsNotFound(f"it takes longer than {_SECONDS:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    left, _ = signal.setitimer(signal.ITIMER_REAL, _SECONDS)
    begin = time.monotonic()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:  # restore an alarm that the caller had set
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - begin), 0.001))


def _require_size(text: str, turns: Sequence[Turn]) -> None:
    if len(text) > _GROWTH + 100 * sum(len(answer) for _, answer in turns):
        raise TurnsNotFound(
            f"the template renders the conversation as {len(text):,} characters, which is far too many"
        )


def _messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in turns]


def _flat(parts: Sequence[list[int]]) -> list[int]:
    return [token for part in parts for token in part]


def _flagged(parts: Sequence[list[int]], inside: Sequence[bool]) -> Ids:
    return _flat(parts), [flag for part, flag in zip(parts, inside, strict=True) for _ in part]
