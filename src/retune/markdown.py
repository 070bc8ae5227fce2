"""Texts of others within Markdown: names, settings, questions and answers that must stay plain text.

A pull request, a model card or a page of results is shown by GitHub, GitLab or a hub, which turn `@name` into a message to a
person and "fixes #1" into the end of an issue, beside links, images and HTML.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# Punctuation with a meaning anywhere; an underscore only where it can begin or end an emphasis
_MEANT = re.compile(
    r"[\\`*\[\]<>|~&]|(?<!\w)_|_(?!\w)|(?<=\w):(?=//)|(?<=\bwww)\.|^[-+=#]|(?<=^\d)[.)](?=\s|$)",
    re.IGNORECASE,
)
_CALLS = re.compile(r"[@#!](?=[\w-])")
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


def plain(text: object) -> str:
    """Return `text` escaped for Markdown, on one line: nothing in it becomes markup, a link, a mention or a reference."""
    line = _UNSEEN.sub("", " ".join(str(text).split()))
    # A backslash does not keep forges from seeing a name; a space of no width does
    return _CALLS.sub(r"\g<0>&#8203;", _MEANT.sub(r"\\\g<0>", line))


def row(cells: Sequence[object]) -> str:
    """Return a row of a table."""
    return "| " + " | ".join(plain(cell) for cell in cells) + " |"


def block(text: str) -> str:
    """Return a text of several lines as a block of code, between fences longer than any in it."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return f"{fence}text\n{text}\n{fence}"
