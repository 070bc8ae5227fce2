"""Short stories with questions about them: the context of reading tasks."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from examples import world


class Story(NamedTuple):
    """A text of a few sentences, questions with answers, things to pull out of it, and its gist."""

    text: str
    questions: list[tuple[str, str]]
    facts: list[tuple[str, str]]
    gist: str


def draw(rng: Random) -> Story:
    """Draw one story."""
    return rng.choice([owners, trip, market])(rng)


def owners(rng: Random) -> Story:
    """Draw a story of two people who own things of two colours."""
    one, two = rng.sample(world.NAMES, 2)
    thing = rng.choice(world.THINGS)
    many = world.plural_of(thing)
    red, blue = rng.sample(world.COLOURS, 2)
    a, b, c = rng.sample(range(2, 10), 3)
    return Story(
        f"{one} has {a} {red} {many} and {b} {blue} {many}. {two} has {c} {red} {many}.",
        [
            (f"How many {blue} {many} does {one} have?", str(b)),
            (f"How many {red} {many} does {one} have?", str(a)),
            (f"How many {many} does {two} have?", str(c)),
            (f"Who has {c} {red} {many}?", two),
            (f"Who has {blue} {many}?", one),
        ],
        [
            ("Which people are named in the text?", f"{one} and {two}"),
            ("Which colours are named in the text?", f"{red} and {blue}"),
            ("Extract all numbers from the text.", f"{a}, {b}, {c}"),
        ],
        f"{one} and {two} have {many}.",
    )


def trip(rng: Random) -> Story:
    """Draw a story of a journey."""
    name, day = rng.choice(world.NAMES), rng.choice(world.DAYS)
    start, end = rng.sample([land.capital for land in world.COUNTRIES], 2)
    ride, days = rng.choice(world.GROUPS["vehicle"]), rng.randint(2, 9)
    return Story(
        f"On {day} {name} went from {start} to {end} by {ride}. The trip took {days} days.",
        [
            (f"Where did {name} go?", end),
            (f"Where did {name} start?", start),
            (f"On which day did {name} leave?", day),
            ("How many days did the trip take?", str(days)),
            ("Who went on the trip?", name),
        ],
        [
            ("Which cities are named in the text?", f"{start} and {end}"),
            ("Extract the name of the person.", name),
            ("Extract the vehicle from the text.", ride),
        ],
        f"{name} went to {end}.",
    )


def market(rng: Random) -> Story:
    """Draw a story of things bought at a market."""
    name = rng.choice(world.NAMES)
    first, second = rng.sample(world.GROUPS["fruit"] + world.GROUPS["vegetable"], 2)
    price, change = rng.randint(2, 9), rng.randint(1, 9)
    place = rng.choice(world.COUNTRIES).capital
    return Story(
        f"{name} bought {world.article(first)} and {world.article(second)} at the market in {place}. "
        f"{name} paid {price} coins.",
        [
            ("Where is the market?", place),
            (f"How many coins did {name} pay?", str(price)),
            (f"Who bought {world.article(first)}?", name),
            (f"What did {name} buy besides {world.article(first)}?", world.article(second)),
            (f"If {name} had {price + change} coins before, how many are left?", str(change)),
        ],
        [
            ("List the things that were bought.", f"{first}, {second}"),
            ("Which city is named in the text?", place),
            ("Extract the price from the text.", f"{price} coins"),
        ],
        f"{name} went to the market in {place}.",
    )
