"""Tasks with numbers and lists."""

from __future__ import annotations

from random import Random

from examples import world
from examples.data.task import Task


def addition(rng: Random) -> Task:
    """Sums of small numbers."""
    a, b = rng.randint(1, 10), rng.randint(1, 10)
    asked = [
        f"Add {a} and {b}.",
        f"What is the sum of {a} and {b}?",
        f"Calculate {a} + {b}.",
        f"How much is {a} plus {b}?",
    ]
    return Task(rng.choice(asked), "", f"{a} + {b} = {a + b}")


def subtraction(rng: Random) -> Task:
    """Differences of small numbers."""
    b, rest = rng.randint(1, 10), rng.randint(0, 10)
    a = b + rest
    asked = [
        f"Subtract {b} from {a}.",
        f"Take {b} away from {a}.",
        f"Calculate {a} - {b}.",
        f"How much is {a} minus {b}?",
    ]
    return Task(rng.choice(asked), "", f"{a} - {b} = {rest}")


def larger(rng: Random) -> Task:
    """Comparing two numbers."""
    a, b = rng.sample(range(1, 21), 2)
    if rng.random() < 0.5:
        asked = [f"Which number is larger, {a} or {b}?", f"Name the larger of the numbers {a} and {b}."]
        return Task(rng.choice(asked), "", f"{max(a, b)} is larger than {min(a, b)}.")
    asked = [f"Which number is smaller, {a} or {b}?", f"Name the smaller of the numbers {a} and {b}."]
    return Task(rng.choice(asked), "", f"{min(a, b)} is smaller than {max(a, b)}.")


def number_word(rng: Random) -> Task:
    """Numbers as words and words as numbers."""
    number = rng.randint(0, 20)
    word = world.NUMBERS[number]
    if rng.random() < 0.5:
        return Task(rng.choice(["Write the number as a word.", "Spell out this number."]), str(number), word)
    return Task(rng.choice(["Write this number in digits.", "Turn the word into digits."]), word, str(number))


def sort_letters(rng: Random) -> Task:
    """Putting letters in order."""
    letters = rng.sample("abcdefghijklmnop", rng.randint(3, 4))
    asked = [
        "Sort the letters.",
        "Put these letters in alphabetical order.",
        "Arrange the letters alphabetically.",
    ]
    return Task(rng.choice(asked), " ".join(letters), " ".join(sorted(letters)))


def sort_words(rng: Random) -> Task:
    """Putting words in alphabetical order."""
    words = rng.sample(world.LIST_WORDS, 3)
    asked = [
        "Sort the words alphabetically.",
        "Put these words in alphabetical order.",
        "Arrange the list from A to Z.",
    ]
    return Task(rng.choice(asked), ", ".join(words), ", ".join(sorted(words)))


def reverse(rng: Random) -> Task:
    """Reversing a list."""
    words = rng.sample(world.LIST_WORDS if rng.random() < 0.5 else list("abcdefghijklmnop"), 3)
    asked = ["Reverse the list.", "Write these items in reverse order.", "Say the list backwards."]
    return Task(rng.choice(asked), " ".join(words), " ".join(reversed(words)))


def pick(rng: Random) -> Task:
    """The first or the last item of a list."""
    words = rng.sample(world.LIST_WORDS, rng.randint(3, 4))
    place, word = rng.choice([("first", words[0]), ("last", words[-1])])
    asked = [
        f"What is the {place} word of the list?",
        f"Copy only the {place} word.",
        f"Pick out the {place} item.",
    ]
    return Task(rng.choice(asked), ", ".join(words), word)


def count(rng: Random) -> Task:
    """Counting the items of a list."""
    words = rng.sample(world.LIST_WORDS, rng.randint(2, 6))
    asked = ["How many words are in the list?", "Count the items.", "Count the words in this list."]
    return Task(rng.choice(asked), ", ".join(words), f"There are {world.NUMBERS[len(words)]}.")


def python_function(rng: Random) -> Task:
    """A Python function of one line."""
    verb, sign = rng.choice([("adds", "+"), ("subtracts", "-"), ("multiplies by", "*")])
    number = rng.randint(1, 20)
    does = f"{verb} {number}" + (" from x" if verb == "subtracts" else " to x" if verb == "adds" else "")
    name = {"+": "add", "-": "subtract", "*": "multiply"}[sign]
    asked = [f"Write a Python function that {does}.", f"Write Python code for a function of x that {does}."]
    return Task(rng.choice(asked), "", f"def {name}_{number}(x):\n    return x {sign} {number}")
