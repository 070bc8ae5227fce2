"""Tasks about a short text."""

from __future__ import annotations

from random import Random

from examples.data import stories
from examples.data.task import Task


def story_question(rng: Random) -> Task:
    """A question that a short story answers."""
    story = stories.draw(rng)
    question, answer = rng.choice(story.questions)
    return Task(question, story.text, answer)


def extraction(rng: Random) -> Task:
    """Pulling names, colours or places out of a text."""
    story = stories.draw(rng)
    asked, answer = rng.choice(story.facts)
    return Task(asked, story.text, answer)


def summary(rng: Random) -> Task:
    """A story in one sentence."""
    story = stories.draw(rng)
    return Task(
        rng.choice(
            ["Summarize the text in one sentence.", "What is this text about? Answer in one sentence."]
        ),
        story.text,
        story.gist,
    )
