"""How many records lose their end at `max_length`, and what length would keep them whole."""

from __future__ import annotations

from collections.abc import Sequence

from retune.data import filters
from retune.data.encode import Encoder
from retune.data.filters import Text

_LOOKED_AT = 10_000  # records; tokenising more takes longer than the rest of a check
_RARE = 0.01  # a value that keeps all but so many records is named too, if it is much smaller


def describe(
    texts: Sequence[Text], encoder: Encoder, max_length: int, mean: float, context: int | None
) -> str | None:
    """Return a line for people; None if no record is cut.

    Args:
        texts: what was drawn, in the random order of the draw, so that its beginning is a fair sample.
        encoder: as of a trial. max_length: the study's. context: the most tokens that the base reads.
        mean: tokens of a record after the cut, as far as known: records that are surely short are not tokenised.
    """
    looked_at = texts[:_LOOKED_AT]
    filters.count_longer(looked_at, encoder, max_length)
    lengths = sorted(text.prompt_tokens + text.completion_tokens for text in looked_at)
    cut = [length for length in lengths if length > max_length]
    if not cut:
        return None
    lost = sum(cut) - max_length * len(cut)
    share = lost / (lost + mean * len(looked_at))
    count = f"{len(cut):,} of {len(looked_at):,} records"
    if len(looked_at) < len(texts):
        count += f" (of {len(texts):,} in all)"
    remedy = _remedy(lengths, max_length, context)
    return f"{count} are cut at `max_length`, {max_length:,} tokens, and lose {_percent(share)} of all tokens; {remedy}"


def _remedy(lengths: Sequence[int], max_length: int, context: int | None) -> str:
    """Return which `max_length` keeps all of these records, and which keeps nearly all, if that is much less."""
    longest, most = lengths[-1], context or lengths[-1]
    usual = lengths[int((1 - _RARE) * (len(lengths) - 1))]
    if max_length >= most:
        return f"the longest has {longest:,}, and the base reads no more than {most:,}"
    if longest > most:
        return f"the longest has {longest:,}, but the base reads at most {most:,}: `data.max_length: {most}` keeps most"
    if max_length < usual < 0.75 * longest:
        return f"`data.max_length: {usual}` keeps 99 % of the records whole, {longest} all"
    return f"`data.max_length: {longest}` keeps them whole"


def _percent(share: float) -> str:
    return "less than 1 %" if share < 0.01 else f"about {100 * share:.0f} %"
