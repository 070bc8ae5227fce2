"""The prompt that a model is tuned with, and so the one it must be asked with.

The template is that of Stanford Alpaca (tatsu-lab/stanford_alpaca, README "Data Release" and ``train.py``),
to the letter: the completion follows the colon of "### Response:" directly. Nothing is stripped, and the
end-of-text token is left to the tokenising code (`retune.data.tokens`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retune.data.sources import Example

_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)


def prompt(instruction: str, input: str = "") -> str:
    """Return the prompt for an instruction; an input of white space only counts as none."""
    if input.strip():
        return f"{_WITH_INPUT}\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
    return f"{_WITHOUT_INPUT}\n\n### Instruction:\n{instruction}\n\n### Response:"


def render(example: Example) -> tuple[str, str]:
    """Return the prompt and the completion of an example."""
    return prompt(example.instruction, example.input), example.output
