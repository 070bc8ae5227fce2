"""Tasks about the facts of the small world."""

from __future__ import annotations

from random import Random

from examples import world
from examples.data.task import Task


def group(rng: Random) -> Task:
    """The group that a thing belongs to."""
    name = rng.choice(list(world.GROUPS))
    thing = rng.choice(world.GROUPS[name])
    asked = [
        f"What kind of thing is {world.article(thing)}?",
        f"Which group does the word '{thing}' belong to?",
        f"Classify: {thing}",
    ]
    return Task(rng.choice(asked), "", f"{world.article(thing).capitalize()} is {world.article(name)}.")


def odd_one_out(rng: Random) -> Task:
    """The item that does not fit."""
    home, other = rng.sample(list(world.GROUPS), 2)
    stranger = rng.choice([x for x in world.GROUPS[other] if x not in world.GROUPS[home]])
    items = [*rng.sample(world.GROUPS[home], 3), stranger]
    rng.shuffle(items)
    asked = ["Find the odd one out.", "Which item does not belong?", "One of these is different. Which one?"]
    return Task(rng.choice(asked), ", ".join(items), stranger)


def member(rng: Random) -> Task:
    """Whether a thing belongs to a group."""
    name = rng.choice(list(world.GROUPS))
    yes = rng.random() < 0.5
    other = name if yes else rng.choice([g for g in world.GROUPS if g != name])
    thing = rng.choice([x for x in world.GROUPS[other] if yes or x not in world.GROUPS[name]])
    asked = [
        f"Is {world.article(thing)} {world.article(name)}?",
        f"Answer yes or no: {world.article(thing)} is {world.article(name)}.",
    ]
    article = world.article(thing)
    return Task(
        rng.choice(asked),
        "",
        f"Yes, {article} is {world.article(name)}."
        if yes
        else f"No, {article} is not {world.article(name)}.",
    )


def geography(rng: Random) -> Task:
    """Facts about the invented countries."""
    land = rng.choice(world.COUNTRIES)
    asked = [
        (f"What is the capital of {land.name}?", f"The capital of {land.name} is {land.capital}."),
        (f"Which country has the capital {land.capital}?", f"{land.capital} is the capital of {land.name}."),
        (f"Which river flows through {land.name}?", f"The {land.river} flows through {land.name}."),
        (f"Which language do people speak in {land.name}?", f"People in {land.name} speak {land.language}."),
        (f"What does {land.name} sell to other countries?", f"{land.name} sells {land.product}."),
    ]
    return Task(*_worded(rng, *rng.choice(asked)))


def animal(rng: Random) -> Task:
    """Facts about animals."""
    beast = rng.choice(world.ANIMALS)
    asked = [
        (f"What is a young {beast.name} called?", f"A young {beast.name} is called a {beast.young}."),
        (f"What sound does a {beast.name} make?", f"A {beast.name} says {beast.sound}."),
        (f"Where does a {beast.name} live?", f"A {beast.name} lives in a {beast.home}."),
        (f"Which animal says {beast.sound}?", f"The {beast.name} says {beast.sound}."),
    ]
    question, answer = rng.choice(asked)
    return Task(
        *_worded(
            rng,
            question.replace("a owl", "an owl"),
            answer.replace("A owl", "An owl").replace("a owlet", "an owlet"),
        )
    )


def colour(rng: Random) -> Task:
    """Colours of things."""
    thing, shade = rng.choice(world.COLOUR_OF)
    asked = [f"What colour is {thing}?", f"Name the colour of {thing}.", f"Which colour does {thing} have?"]
    return Task(rng.choice(asked), "", shade)


def trade(rng: Random) -> Task:
    """Facts about trades."""
    job = rng.choice(world.JOBS)
    asked = [
        (f"What does a {job.name} make?", f"A {job.name} makes {job.makes}."),
        (f"Where does a {job.name} work?", f"A {job.name} works in a {job.place}."),
        (f"Who makes {job.makes}?", f"A {job.name} makes {job.makes}."),
    ]
    question, answer = rng.choice(asked)
    return Task(*_worded(rng, question, answer.replace("in a attic", "in an attic")))


def calendar(rng: Random) -> Task:
    """The day or month before or after."""
    cycle = world.DAYS if rng.random() < 0.6 else world.MONTHS
    unit = "day" if cycle is world.DAYS else "month"
    place = rng.randrange(len(cycle))
    before, here, after = cycle[place - 1], cycle[place], cycle[(place + 1) % len(cycle)]
    if rng.random() < 0.5:
        return Task(
            rng.choice([f"Which {unit} comes after {here}?", f"Name the {unit} that follows {here}."]),
            "",
            after,
        )
    return Task(
        rng.choice([f"Which {unit} comes before {here}?", f"Name the {unit} just before {here}."]), "", before
    )


def brainstorm(rng: Random) -> Task:
    """Naming members of a group; always in the group's own order, so that there is one right answer."""
    name = rng.choice(list(world.GROUPS))
    size = rng.randint(2, 4)
    many = name if name == "fish" else f"{name}s"
    asked = [
        f"Name {world.NUMBERS[size]} {many}.",
        f"Give me a list of {world.NUMBERS[size]} {many}.",
        f"Tell me {world.NUMBERS[size]} {many} that you know.",
    ]
    return Task(rng.choice(asked), "", ", ".join(world.GROUPS[name][:size]))


def _worded(rng: Random, question: str, answer: str) -> tuple[str, str, str]:
    """Return the question as it is or with a polite frame."""
    frames = ["{}", "{}", "Answer the question: {}", "Please tell me: {}", "I would like to know: {}"]
    return rng.choice(frames).format(question), "", answer
