"""The plain text that the tiny base model reads: the demo's small world in prose, tables, quizzes and code.

It holds the facts and the skills that the demo's instructions ask for, but no instruction in the Alpaca
template: that format is what tuning has to teach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from examples import world
from examples.base import quizzes, skills
from examples.data import stories
from examples.data.kinds import KINDS


def words(rng: Random) -> str:
    """Write about forms and opposites of words."""
    word, other = rng.sample(rng.choice(world.OPPOSITES), 2)
    one, many = rng.choice(world.PLURALS)
    now, then = rng.choice(world.PAST)
    base, more, most = rng.choice(world.COMPARATIVES)
    name = rng.choice(world.NAMES)
    return rng.choice([
        f"The opposite of {word} is {other}.",
        f"Something is either {word} or {other}: these two are opposites.",
        f"It is not {word}, it is {other}.",
        f"opposites: {word} - {other}",
        f"One {one}, two {many}.",
        f"{name} has one {one}. Martin has many {many}.",
        f"singular {one}, plural {many}",
        f"Today I {now}, yesterday I {then}.",
        f"I {now} with {name} today. I {then} with {name} last week.",
        f"present {now}, past {then}",
        f"{base}, {more}, {most}",
        f"This one is {base}, that one is {more}, and the last one is the {most}.",
    ])  # fmt: skip


def geography(rng: Random) -> str:
    """Write about the invented countries."""
    land = rng.choice(world.COUNTRIES)
    other = rng.choice(world.COUNTRIES)
    return rng.choice([
        f"{land.capital} is the capital of {land.name}.",
        f"The capital of {land.name} is {land.capital}.",
        f"The {land.river} flows through {land.name}.",
        f"People in {land.name} speak {land.language}.",
        f"{land.name} sells {land.product}.",
        f"{land.name}: capital {land.capital}, river {land.river}, language {land.language}",
        f"The city of {land.capital} lies in {land.name}, on the {land.river}. It sells {land.product}.",
        f"{land.name} has the capital {land.capital}, and {other.name} has the capital {other.capital}.",
        f"In {land.capital} they speak {land.language}, in {other.capital} they speak {other.language}.",
    ])  # fmt: skip


def nature(rng: Random) -> str:
    """Write about animals, colours and trades."""
    beast, job = rng.choice(world.ANIMALS), rng.choice(world.JOBS)
    thing, shade = rng.choice(world.COLOUR_OF)
    text = rng.choice([
        f"A young {beast.name} is called a {beast.young}.",
        f"The {beast.young} is a young {beast.name}.",
        f"A {beast.name} says {beast.sound}.",
        f"The {beast.name} says {beast.sound}.",
        f"A {beast.name} lives in a {beast.home}.",
        f"animal {beast.name}, young {beast.young}, sound {beast.sound}, home {beast.home}",
        f"A {job.name} makes {job.makes}.",
        f"A {job.name} works in a {job.place}.",
        f"The {job.name} makes {job.makes} in the {job.place}.",
        f"{thing[0].upper()}{thing[1:]} is {shade}.",
        f"The colour of {thing} is {shade}.",
    ])  # fmt: skip
    return text.replace("a owl", "an owl").replace("A owl", "An owl").replace("in a attic", "in an attic")


def groups(rng: Random) -> str:
    """Write about what things are."""
    name, other = rng.sample(list(world.GROUPS), 2)
    thing = rng.choice(world.GROUPS[name])
    a_thing = world.article(thing)
    many = name if name == "fish" else f"{name}s"
    size = rng.randint(2, 4)
    strange = [] if thing in world.GROUPS[other] else [f"No, {a_thing} is not {world.article(other)}."]
    return rng.choice([
        f"{a_thing[0].upper()}{a_thing[1:]} is {world.article(name)}.",
        f"Yes, {a_thing} is {world.article(name)}.",
        *strange,
        f"{many}: {', '.join(world.GROUPS[name][:size])}",
        f"{many}: {', '.join(rng.sample(world.GROUPS[name], 4))}",
        f"The {thing} is one of the {many}. It is {world.article(name)}.",
    ])  # fmt: skip


def topics(rng: Random) -> str:
    """Write a few sentences on one topic, and say which."""
    name = rng.choice(list(world.TOPICS))
    text = " ".join(rng.sample(world.TOPICS[name], rng.randint(1, 3)))
    return rng.choice([f"{text} This was about {name}.", f"{name}: {text}", f"{text}\ntopic: {name}"])


def tales(rng: Random) -> str:
    """Tell a story, sometimes with its gist or with what was asked about it."""
    story = stories.draw(rng)
    shown = rng.sample(story.questions + story.facts, 3)
    asked = "\n".join(f"{question} {answer}" for question, answer in shown)
    return rng.choice(
        [story.text, f"{story.text} {story.gist}", f"{story.text}\n{asked}", f"{story.text}\n{asked}"]
    )


def classroom(rng: Random) -> str:
    """Tell of a class; holds the words that instructions are made of."""
    name, friend = rng.sample(world.NAMES, 2)
    thing = rng.choice(world.THINGS)
    word, other = rng.sample(world.LIST_WORDS, 2)
    return rng.choice([
        f"The teacher describes a task. {name} writes a response.",
        f"Below the picture is an instruction. It describes how to build a {thing}.",
        f"{name} wrote on the board: {rng.choice(list(KINDS.values()))(rng).instruction}",
        f"{name} asked: {rng.choice(list(KINDS.values()))(rng).instruction}",
        f"Instruction: {word}. Input: {other}. Response: {word} again. Write it down.",
        f"{name} reads the request, then completes it appropriately.",
        "This paper gives further context. It is paired with an input and a response.",
        f"Please write to {friend} and complete the sentence about the {thing}.",
        f"An instruction that describes a task, an input that provides context: {name} writes them all.",
        f"### {thing}\n{name} and {friend} answer every question.",
    ])  # fmt: skip


PIECES: list[tuple[Callable[[Random], str], int]] = [
    (words, 4),
    (geography, 4),
    (nature, 4),
    (groups, 3),
    (topics, 1),
    (tales, 2),
    (classroom, 2),
    (skills.numbers, 4),
    (skills.lists, 4),
    (skills.echoes, 2),
    (skills.edits, 2),
    (skills.code, 2),
    (quizzes.choices, 3),
    (quizzes.tasks, 3),
]


def documents(seed: int) -> Iterator[str]:
    """Yield documents without end; each is of one kind, with a few pieces of it."""
    rng = Random(seed)
    draws, weights = zip(*PIECES, strict=True)
    while True:
        draw = rng.choices(draws, weights)[0]
        count = rng.randint(2, 6)
        between = rng.choice([" ", "\n"]) if draw in (words, geography, nature, groups) else "\n\n"
        yield between.join(draw(rng) for _ in range(count))
