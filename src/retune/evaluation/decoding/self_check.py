"""Selects how a model's prompts are processed, by a check on generated prompts before the first score.

Each way generates a few tokens after prompts of different lengths and measures their likelihood. The reference is transformers'
plain forward over each prompt with its answer, alone, without a cache, with eager attention. The first way that agrees with it
up to rounding is used: sharing prefixes, then padded batches, then one prompt at a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from retune.errors import InputError, RetuneError, TrialFailed, is_out_of_memory
from retune.evaluation.decoding.generate import Decoder, Sampling, Way, _Row
from retune.evaluation.decoding.prefix import CALL_TOKENS, can_be_split

if TYPE_CHECKING:
    import torch

_PREFIX = 44  # long enough to be worth sharing by four prompts
_SUFFIXES = (9, 9, 9, 2)  # rows of different lengths: some leave the batch before others end
_UNSHARED = (6, 13)
_NEW = 6
# The longest generated prompt on a GPU and on a CPU, in tokens
_MAX_LONG_PROMPT = {False: 5000, True: 1100}
_TOP_TOKENS = 16  # the likeliest tokens at each position, which are compared
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answered:
    """The result of the check.

    Attributes:
        way: how prompts are processed. eager: whether with transformers' eager attention.
        reason: why not in a faster way; empty if it is the fastest.
        difference: the largest of a token's log-likelihood from the plain forward's, in nats. allowed: the tolerance.
        seconds: duration of the check.
    """

    way: Way
    eager: bool = False
    reason: str = ""
    difference: float = 0.0
    allowed: float = 0.0
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """Return the fields for a benchmark's record."""
        return asdict(self)

    @property
    def note(self) -> str:
        """One line for the log; empty if the fastest way is used."""
        if not self.reason:
            return ""
        how = f"{self.way}{', with eager attention' if self.eager else ''}"
        cost = {"shared": "", "padded": ": what prompts begin with is read again for each"}.get(
            self.way, ": a batch takes as long as its prompts one after the other"
        )
        return f"prompts are read {how}{cost}; {self.reason}"


@contextmanager
def decoding(
    model: Any, tokenizer: Any, device: torch.device, context: int, batch_size: int
) -> Iterator[tuple[Decoder, Answered]]:
    """Yield a decoder that processes prompts in the fastest way that is right for this model, and the result of the check.

    Args:
        model: a transformers causal language model, with or without an adapter, in evaluation mode.
        context: the longest sequence in tokens. batch_size: as of `Decoder`.

    Raises:
        InputError: if no way agrees with the plain forward, or the plain forward itself is not finite or reproducible.
    """
    from retune.training.config_limits import rotary_limit, text_config
    from retune.training.model_attention import using_attention

    decoder = Decoder(model, tokenizer, device, context, batch_size)
    checked = check(decoder)
    if checked.note:
        _LOG.warning("%s", checked.note)
    with using_attention(decoder._core, "eager") if checked.eager else nullcontext():
        limit = rotary_limit(text_config(decoder._core))
        yield replace(decoder, way=checked.way, rotary_limit=limit), checked


def check(decoder: Decoder) -> Answered:
    """Return the fastest way that is right; see `decoding`."""
    import torch

    begin = time.monotonic()
    with torch.inference_mode():
        answered = _Check(decoder).run()
    return replace(answered, seconds=round(time.monotonic() - begin, 3))


class _NoEnd:
    """A tokenizer without an end of text, so that every answer has its full length."""

    eos_token_id = -1

    def __init__(self, tokenizer: Any) -> None:
        self.pad_token_id = tokenizer.pad_token_id or 0

    def decode(self, tokens: Sequence[int], **options: Any) -> str:
        return ""


@dataclass(frozen=True)
class _Traced(Decoder):
    """A decoder that keeps the log-likelihoods of every step, by prompt."""

    traced: dict[int, list[torch.Tensor]] = field(default_factory=dict)

    def _choose(self, logits: torch.Tensor, rows: Sequence[_Row], sampling: Sampling | None) -> torch.Tensor:
        import torch

        for row, own in zip(rows, torch.log_softmax(logits, -1), strict=True):
            if not row.ended:
                self.traced.setdefault(row.prompt, []).append(own)
        return super()._choose(logits, rows, sampling)


class _Check:
    """The check of one model."""

    def __init__(self, decoder: Decoder) -> None:
        from retune.training.config_limits import rotary_limit, text_config

        self.decoder, self.core = decoder, decoder._core
        config = text_config(self.core)
        self.rotary_limit = rotary_limit(config)
        self.context = int(min(decoder.context, self.rotary_limit, _PREFIX + max(_SUFFIXES) + 2))
        self.kind = self.core.config.model_type
        self.prompts = self._generated_prompts()
        self.long_prompts = self._long_prompts(config)
        self.tolerance = 0.0

    def _generated_prompts(self) -> list[list[int]]:
        """Return prompts of ordinary tokens, drawn at random; always the same ones."""
        from retune.training.generated_records import ordinary_tokens

        total = _PREFIX + sum(_SUFFIXES) + sum(_UNSHARED)
        drawn = ordinary_tokens(self.core, self.decoder.tokenizer, total)
        prefix, offset, prompts = drawn[:_PREFIX], _PREFIX, []
        for length, start in [*((tail, prefix) for tail in _SUFFIXES), *((alone, []) for alone in _UNSHARED)]:
            prompts.append([*start, *drawn[offset : offset + length]])
            offset += length
        longest = max(1, self.context - 2)
        return [prompt[-longest:] if len(prompt) > longest else prompt for prompt in prompts]

    def _long_prompts(self, config: Any) -> list[list[int]]:
        """Return a prompt long enough to show how the base treats long ones, and a short one; none if none can be longer."""
        from retune.training.config_limits import length_needed
        from retune.training.generated_records import ordinary_tokens

        most = min(
            self.decoder.context, self.rotary_limit, _MAX_LONG_PROMPT[self.decoder.device.type == "cpu"]
        )
        length = length_needed(config, int(most)) - _NEW
        if length <= max(map(len, self.prompts)):
            return []
        drawn = ordinary_tokens(self.core, self.decoder.tokenizer, length + _UNSHARED[1])
        return [drawn[:length], drawn[length:]]

    def run(self) -> Answered:
        from retune.training.model_attention import using_attention

        shares = can_be_split(self.decoder.model)
        reason = "" if shares else "what it keeps of a prompt cannot be shared by others that begin with it"
        ways: list[tuple[Way, bool]] = [("shared", False)] if shares else []
        ways += [
            ("padded", False),
            ("one by one", False),
            ("padded", True),
            ("one by one", True),
            ("without cache", True),
        ]
        for way, eager in ways:
            with using_attention(self.core, "eager") if eager else nullcontext():
                difference, failed = self._difference(way)
            if not failed and difference <= self.tolerance:
                if self.rotary_limit < self.decoder.context:
                    limit = int(self.rotary_limit)
                    long = f"prompts of more than {limit} tokens are read one by one: its rotary frequencies change"
                    reason = f"{reason}; {long}" if reason else long
                return Answered(way, eager, reason, difference, self.tolerance)
            how = f"{way}{', eager' if eager else ''}"
            reason = f"{how}: " + (
                failed
                or f"a token's log-likelihood differs by {difference:.2g} from the plain forward, "
                f"rounding allows {self.tolerance:.2g}"
            )
        raise InputError(
            f"a base (here of type {self.kind}) must answer prompts as its plain forward does, but it does not; {reason}",
            "model.base",
        )

    def _difference(self, way: Way) -> tuple[float, str]:
        """Return how far a way is from the plain forward, or why it fails."""
        self.tolerance = 0.0
        of_short, failed = self._compare(way, self.prompts, self.context)
        if failed or not self.long_prompts:
            return of_short, failed
        of_long, failed = self._compare(way, self.long_prompts, max(map(len, self.long_prompts)) + _NEW)
        return max(of_short, of_long), failed

    def _compare(self, way: Way, prompts: Sequence[list[int]], context: int) -> tuple[float, str]:
        """Return the same as `_difference` for some prompts that are processed together, in a context of `context` tokens."""
        import torch

        from retune.training.rounding import max_difference, min_tolerances, rounding_tolerance

        original = self.decoder
        # The cost of a call on a CPU, so that these few short prompts share their prefix on a GPU too.
        decoder = _Traced(
            original.model,
            _NoEnd(original.tokenizer),
            original.device,
            context,
            8,
            way,
            call_tokens=CALL_TOKENS["cpu"],
        )
        try:
            answers = decoder.tokens(prompts, _NEW)
            measured = decoder.likelihoods(prompts, answers)
        except Exception as error:
            if isinstance(error, RetuneError) or is_out_of_memory(error):
                raise
            text = " ".join(str(error).split())[:200]
            return 0.0, f"it fails with {type(error).__name__}: {text}"
        worst = 0.0
        for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            reference = self._plain(prompt, answer)
            top = reference.topk(min(_TOP_TOKENS, reference.shape[-1])).indices
            reference_top = reference.gather(1, top)

            def read(prompt: list[int] = prompt, answer: list[int] = answer, k: Any = top) -> torch.Tensor:
                return self._plain(prompt, answer).gather(1, k)

            if not index and max_difference(reference_top, again := read()) > min_tolerances(self.core)[0]:
                raise InputError(
                    f"a base (here of type {self.kind}) must give the same answer to the same prompt, but the log-likelihoods "
                    f"of two readings differ by {max_difference(reference_top, again):.2g}",
                    "model.base",
                )
            rounding = rounding_tolerance(self.core, reference_top, read)
            self.tolerance = max(self.tolerance, rounding)
            traced = torch.stack(decoder.traced[index])
            worst = max(worst, max_difference(reference_top, traced.gather(1, top)))
            own = reference.gather(1, torch.tensor(answer, device=reference.device)[:, None])
            worst = max(worst, max_difference(own.mean(), own.new_tensor(measured[index] / len(answer))))
        return worst, ""

    def _plain(self, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
        """Return the log-likelihood of every token at each place of an answer, shape ``(answer, vocabulary)``."""
        import torch

        from retune.training import plain_forward
        from retune.training.model_attention import using_attention

        ids = torch.tensor([[*prompt, *answer[:-1]]], device=self.decoder.device)
        rows = torch.arange(len(prompt) - 1, ids.shape[1], device=self.decoder.device)
        with using_attention(self.core, "eager"):
            logits = plain_forward.logits(self.decoder.model, ids, rows)
        if not bool(torch.isfinite(logits).all()):
            raise TrialFailed("the model's output is not finite: it gives no answer to score", "nan")
        return torch.log_softmax(logits, -1)
