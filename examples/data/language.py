"""Tasks about words and sentences."""

from __future__ import annotations

from random import Random

from examples import world
from examples.data.task import Task


def opposite(rng: Random) -> Task:
    """Antonyms."""
    word, other = rng.sample(rng.choice(world.OPPOSITES), 2)
    asked = ["Name the opposite of the given word.", "Give an antonym.", "Which word means the opposite?"]
    if rng.random() < 0.4:
        return Task(rng.choice(asked), word, other)
    asked = [
        f"What is the opposite of {word}?",
        f"Give an antonym of '{word}'.",
        f"Name a word that means the opposite of {word}.",
    ]
    return Task(rng.choice(asked), "", f"The opposite of {word} is {other}.")


def plural(rng: Random) -> Task:
    """Plural forms."""
    one, many = rng.choice(world.PLURALS)
    asked = [
        f"What is the plural of {one}?",
        f"Write the plural form of the noun '{one}'.",
        f"One {one}, two what?",
    ]
    if rng.random() < 0.4:
        return Task(rng.choice(["Write the plural form of the noun.", "Make this noun plural."]), one, many)
    return Task(rng.choice(asked), "", many)


def past_tense(rng: Random) -> Task:
    """Past tense of verbs."""
    now, then = rng.choice(world.PAST)
    if rng.random() < 0.5:
        name = rng.choice(world.NAMES)
        asked = ["Rewrite the sentence in the past tense.", "Put this sentence into the past tense."]
        return Task(rng.choice(asked), f"I {now} with {name}.", f"I {then} with {name}.")
    asked = [f"What is the past tense of {now}?", f"Give the past tense of the verb '{now}'."]
    return Task(rng.choice(asked), "", then)


def comparative(rng: Random) -> Task:
    """Comparative and superlative forms."""
    base, more, most = rng.choice(world.COMPARATIVES)
    if rng.random() < 0.5:
        return Task(
            rng.choice(
                [f"What is the comparative form of {base}?", f"Compare with '{base}': write the -er form."]
            ),
            "",
            more,
        )
    return Task(
        rng.choice([f"What is the superlative form of {base}?", f"Write the superlative of '{base}'."]),
        "",
        most,
    )


def blank(rng: Random) -> Task:
    """Filling a gap in a sentence of facts."""
    land, beast, job = rng.choice(world.COUNTRIES), rng.choice(world.ANIMALS), rng.choice(world.JOBS)
    word, other = rng.choice(world.OPPOSITES)
    sentence, missing = rng.choice([
        (f"___ is the capital of {land.name}.", land.capital),
        (f"The river ___ flows through {land.name}.", land.river),
        (f"A young {beast.name} is called a ___.", beast.young),
        (f"The ___ says {beast.sound}.", beast.name),
        (f"A {job.name} makes ___.", job.makes),
        (f"The opposite of {word} is ___.", other),
    ])  # fmt: skip
    return Task(
        rng.choice(["Fill in the blank.", "Complete the sentence with the missing word."]), sentence, missing
    )


def replace_word(rng: Random) -> Task:
    """Editing one word of a sentence."""
    name, thing = rng.choice(world.NAMES), rng.choice(world.THINGS)
    old, new = rng.sample(world.COLOURS, 2)
    asked = [f"Replace the word '{old}' with '{new}'.", f"Change {old} to {new} in the sentence."]
    return Task(rng.choice(asked), f"{name} has a {old} {thing}.", f"{name} has a {new} {thing}.")


def bullet_list(rng: Random) -> Task:
    """Following a format: a list with dashes, or a sentence from a list."""
    words = rng.sample(rng.choice(list(world.GROUPS.values())), 3)
    if rng.random() < 0.5:
        asked = ["Write the items as a list with dashes.", "Make a bullet list."]
        return Task(rng.choice(asked), world.joined(words), "\n".join(f"- {word}" for word in words))
    asked = [
        "Join the items with commas and 'and'.",
        "Write the list in one line with 'and' before the last item.",
    ]
    return Task(rng.choice(asked), "\n".join(words), world.joined(words))


def topic(rng: Random) -> Task:
    """What a sentence is about."""
    name = rng.choice(list(world.TOPICS))
    choices = world.joined(sorted(world.TOPICS))
    asked = [
        "What is the topic of this sentence?",
        "Classify the sentence by its topic.",
        f"Is this text about {choices.replace(' and ', ' or ')}?",
    ]
    text = " ".join(rng.sample(world.TOPICS[name], rng.randint(1, 2)))
    return Task(rng.choice(asked), text, name)


def mood(rng: Random) -> Task:
    """Whether a review is positive or negative."""
    thing = rng.choice(world.THINGS)
    good = rng.random() < 0.5
    word = rng.choice(
        ["lovely", "great", "fine", "perfect", "useful"]
        if good
        else ["broken", "awful", "ugly", "useless", "terrible"]
    )
    text = rng.choice(
        [
            f"The {thing} is {word}.",
            f"I bought a {thing} and it was {word}.",
            f"What a {word} {thing} this is.",
        ]
    ).replace("a apple", "an apple")
    asked = ["Is this review positive or negative?", "Classify the review as positive or negative."]
    return Task(rng.choice(asked), text, "positive" if good else "negative")
