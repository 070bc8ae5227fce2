"""A console of rich for foreign texts: tables, progress bars, and lines that are wrapped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich import console
from rich.segment import Segment
from rich.text import Text

from retune.errors import sanitized


class Console(console.Console):
    """Prints texts as they are: no markup (``[draft].jsonl``), no emoji (``1:100:2``), and control characters escaped.

    Args:
        options: of rich's own console.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text of a line or a cell, escaped before its width is measured."""
        return super().render_str(sanitized(text), **options)

    def render(
        self, renderable: console.RenderableType, options: console.ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield the segments of what is printed; those that move the cursor for rich itself hold no text."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else sanitized(text), style, control)
