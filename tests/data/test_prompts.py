from hypothesis import given
from hypothesis import strategies as st

from retune.data.prompts import prompt, render
from retune.data.sources import Example

WITH_INPUT = """Below is an instruction that describes a task, paired with an input that provides further \
context. Write a response that appropriately completes the request.

### Instruction:
Add the numbers.

### Input:
2, 3

### Response:"""

WITHOUT_INPUT = """Below is an instruction that describes a task. \
Write a response that appropriately completes the request.

### Instruction:
Name a colour.

### Response:"""


def test_template_with_input():
    assert render(Example("Add the numbers.", "2, 3", "5", "x", 1)) == (WITH_INPUT, "5")


def test_template_without_input():
    assert render(Example("Name a colour.", "", "blue\n", "x", 1)) == (WITHOUT_INPUT, "blue\n")


def test_white_space_is_no_input():
    assert prompt("Name a colour.", " \n") == WITHOUT_INPUT


@given(st.text(), st.text())
def test_texts_are_taken_to_the_letter(instruction, given_input):
    """Braces and percent signs in the data are not placeholders."""
    found = prompt(instruction, given_input)
    assert f"### Instruction:\n{instruction}\n\n" in found
    assert found.endswith("### Response:")
    assert (f"### Input:\n{given_input}\n\n" in found) == bool(given_input.strip())
