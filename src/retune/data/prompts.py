"""How a record becomes text: the prompt template that a model is tuned with, and so must be prompted with afterwards.

`alpaca` is exactly the template of Stanford Alpaca (tatsu-lab/stanford_alpaca, README "Data Release" and ``train.py``): the
completion follows the colon of "### Response:" directly. Nothing is stripped, and the end-of-text token is added by
`retune.data.encode`. The base's own chat template is in `retune.data.chat`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from retune.data.example import Example, Turn
from retune.errors import InputError

_PREAMBLE = "Below is an instruction that describes a task"
_WITH_INPUT = (
    f"{_PREAMBLE}, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
_WITHOUT_INPUT = f"{_PREAMBLE}. Write a response that appropriately completes the request."
_PLACEHOLDER = re.compile(r"\{(prompt|instruction|question|input|system)\}")


class Prompt(BaseModel):
    """The prompt template of a study, as recorded in `mix.json`.

    Attributes:
        kind: ``chat`` is a chat template in Jinja, the base's own or `text`; ``fields`` is `text` with placeholders such as
            ``{instruction}``; ``alpaca`` and ``none`` need no text.
        text: the template of a file; None for the base's own.
    """

    kind: Literal["chat", "fields", "alpaca", "none"] = "alpaca"
    text: str | None = None


def read_template(text: str, subject: str) -> Prompt:
    """Return the prompt template in a file: Jinja as in chat templates, or text with `{instruction}`.

    Raises:
        InputError: if it is neither.
    """
    if "{%" in text or "{{" in text:
        return Prompt(kind="chat", text=text)
    placeholders = set(_PLACEHOLDER.findall(text))
    if not placeholders & {"prompt", "instruction", "question"}:
        raise InputError(
            "a template must be a Jinja chat template over `messages`, or a text that has {instruction} (and {input}, {system}) "
            "and after which the answer follows, but this one is neither",
            subject,
        )
    return Prompt(kind="fields", text=text)


def prompt(instruction: str, input: str = "", system: str = "") -> str:
    """Return the Alpaca prompt; an input of white space only counts as none, a system prompt replaces the first sentence."""
    opening = system.strip() or (_WITH_INPUT if input.strip() else _WITHOUT_INPUT)
    if input.strip():
        return f"{opening}\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
    return f"{opening}\n\n### Instruction:\n{instruction}\n\n### Response:"


def render(example: Example) -> tuple[str, str]:
    """Return the Alpaca prompt and the completion of a record that is no conversation; a text has no prompt."""
    if example.is_text:
        return "", example.output
    return prompt(example.instruction, example.input, example.system), example.output


def pieces(example: Example, template: Prompt) -> list[tuple[str, str]]:
    """Return a record as pairs of prompt and completion, one pair per turn of the assistant.

    Raises:
        InputError: if it is a conversation of several turns, and the template does not support that.
    """
    if example.is_text:
        return [("", example.output)]
    if not example.messages:
        return [
            (_render_prompt(example.instruction, example.input, example.system, template), example.output)
        ]
    exchanges = list(_exchanges(example.messages))
    if template.kind != "alpaca" and len(exchanges) > 1:
        raise InputError(
            f"{example.source}, record {example.row}: a conversation of {len(exchanges)} answers needs `prompt: chat` or "
            "`prompt: alpaca`, since the other templates do not define how a second question begins",
            "data.prompt",
        )
    system = next((text for role, text in example.messages if role == "system"), "")
    first, answer = exchanges[0]
    texts = [(_render_prompt(first, "", system, template), answer)]
    return texts + [
        (f"\n\n### Instruction:\n{asked}\n\n### Response:", answer) for asked, answer in exchanges[1:]
    ]


def ask(turns: Sequence[Turn], template: Prompt) -> str:
    """Return the text that prompts a model for its next turn; for ``chat`` see `retune.data.chat`."""
    example = Example("", "", "", "chat", 0, messages=(*turns, ("assistant", "")))
    return "".join(asked + answer for asked, answer in pieces(example, template))


def _render_prompt(instruction: str, context: str, system: str, template: Prompt) -> str:
    if template.kind == "alpaca":
        return prompt(instruction, context, system)
    whole = f"{instruction}\n\n{context}" if context.strip() else instruction
    if template.kind == "none":
        return f"{system}\n\n{whole}" if system.strip() else whole
    text = template.text or ""
    has_input_placeholder = "{input}" in text
    values = {"input": context, "system": system}
    return _PLACEHOLDER.sub(lambda m: values.get(m[1], instruction if has_input_placeholder else whole), text)


def _exchanges(turns: Sequence[Turn]) -> list[tuple[str, str]]:
    """Return pairs of a question, joining consecutive turns of user and tools, and its answer."""
    exchanges: list[tuple[str, str]] = []
    asked: list[str] = []
    for role, text in turns:
        if role == "assistant":
            exchanges.append(("\n\n".join(asked), text))
            asked = []
        elif role != "system":
            asked.append(text)
    return exchanges
