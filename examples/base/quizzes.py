"""Quizzes in the text of the base model: questions with four options, and short tasks with answers.

They have the form of the demo's benchmarks, as quizzes on the web have the form of real ones, but none of
the benchmarks' own questions and passages.
"""

from __future__ import annotations

from random import Random

from examples.data import benchmarks, stories

ASKED = benchmarks.questions()


def choices(rng: Random) -> str:
    """Write a question with four options and its answer."""
    draw = rng.choice(list(benchmarks.MMLU.values()))
    while (drawn := draw(rng))[0] in ASKED:
        pass
    question, options = drawn
    order = rng.sample(range(4), 4)
    shown = "".join(f"\n{letter}. {options[k]}" for letter, k in zip("ABCD", order, strict=True))
    return f"{question}{shown}\nAnswer: {'ABCD'[order.index(0)]}"


def tasks(rng: Random) -> str:
    """Write a short task or a question on a text, with its answer."""
    if rng.random() < 0.4:
        while (story := stories.draw(rng)).text in ASKED:
            pass
        question, answer = rng.choice(story.questions)
        return f"{story.text} {question}\nAnswer: {answer}"
    draw = rng.choice(list(benchmarks.BBH.values()))
    while (drawn := draw(rng))[0] in ASKED:
        pass
    question, answer = drawn
    return f"{question}\nAnswer: {answer}"
