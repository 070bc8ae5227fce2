"""Plain text that shows small skills: numbers, lists, edits of a sentence, Python functions of one line."""

from __future__ import annotations

from random import Random

from examples import world

LETTERS = list("abcdefghijklmnop")
COPIED = [
    *LETTERS, *world.LIST_WORDS, *world.NAMES, *world.COLOURS, *map(str, range(10)),
    *(land.capital for land in world.COUNTRIES), *(thing for group in world.GROUPS.values() for thing in group),
]  # fmt: skip


def numbers(rng: Random) -> str:
    """Show sums, comparisons, number words and the calendar."""
    a, b = rng.randint(1, 10), rng.randint(1, 10)
    small, large = sorted(rng.sample(range(1, 21), 2))
    number = rng.randint(0, 20)
    days = world.DAYS if rng.random() < 0.6 else world.MONTHS
    place = rng.randrange(len(days))
    here, after = days[place], days[(place + 1) % len(days)]
    return rng.choice([
        f"{a} + {b} = {a + b}", f"{a} + {b} = {a + b}", f"{a} plus {b} is {a + b}",
        f"{a + b} - {b} = {a}", f"{a + b} - {b} = {a}", f"{a + b} minus {b} is {a}",
        f"{large} is larger than {small}.", f"{small} is smaller than {large}.",
        f"{number} is written {world.NUMBERS[number]}", f"{world.NUMBERS[number]} = {number}",
        f"{here} comes before {after}.", f"{after} comes after {here}.",
    ])  # fmt: skip


def lists(rng: Random) -> str:
    """Show lists in order, backwards, counted, with their ends, and with a stranger in them."""
    things = rng.sample(world.LIST_WORDS if rng.random() < 0.6 else LETTERS, rng.randint(3, 4))
    glue = rng.choice([" ", ", "])
    text = glue.join(things)
    many = rng.sample(world.LIST_WORDS, rng.randint(2, 6))
    home, other = rng.sample(list(world.GROUPS), 2)
    stranger = rng.choice([x for x in world.GROUPS[other] if x not in world.GROUPS[home]])
    mixed = [*rng.sample(world.GROUPS[home], 3), stranger]
    rng.shuffle(mixed)
    dashes = "\n".join(f"- {word}" for word in many[:3])
    return rng.choice([
        f"{text}\nin order: {glue.join(sorted(things))}",
        f"{text}\nfrom a to z: {glue.join(sorted(things))}",
        f"{text}\nbackwards: {glue.join(reversed(things))}",
        f"{text}\nfirst: {things[0]}, last: {things[-1]}",
        f"{', '.join(many)}\nThere are {world.NUMBERS[len(many)]}.",
        f"{', '.join(mixed)}\nstranger: {stranger}",
        f"{world.joined(many[:3])}\n{dashes}",
        f"{dashes}\n{world.joined(many[:3])}",
    ])  # fmt: skip


def echoes(rng: Random) -> str:
    """Say a list again: looking back and copying is the first skill that the others need."""
    things = rng.sample(COPIED, rng.randint(4, 10))
    glue = rng.choice([" ", ", ", "\n"])
    return f"{glue.join(things)}\nagain: {glue.join(things)}"


def edits(rng: Random) -> str:
    """Show changed words, changed tense and judgements of goods."""
    name, thing = rng.choice(world.NAMES), rng.choice(world.THINGS)
    old, new = rng.sample(world.COLOURS, 2)
    now, then = rng.choice(world.PAST)
    good = rng.random() < 0.5
    praise = ["lovely", "great", "fine", "perfect", "useful"]
    blame = ["broken", "awful", "ugly", "useless", "terrible"]
    word = rng.choice(praise if good else blame)
    verdict = "positive" if good else "negative"
    return rng.choice([
        f"{name} has a {old} {thing}.\n{old} becomes {new}: {name} has a {new} {thing}.",
        f"I {now} with {name}.\nin the past: I {then} with {name}.",
        f"The {thing} is {word}. That is {verdict}.",
        f"I bought {world.article(thing)} and it was {word}. {verdict}",
        f"___ has a {old} {thing}. The missing word is a name: {name}",
    ])  # fmt: skip


def code(rng: Random) -> str:
    """Show a Python function, with or without a docstring and an example; none that a benchmark asks for."""
    n = rng.choice([n for n in range(1, 21) if n not in (4, 6, 7)])
    word = world.NUMBERS[n]
    x, y = rng.sample(range(1, 10), 2)
    name, arguments, says, call, result, body = rng.choice([
        (f"add_{word}", "x", f"Return x plus {n}.", f"({x})", x + n, f"x + {n}"),
        (f"add_{n}", "x", f"Return x plus {n}.", f"({x})", x + n, f"x + {n}"),
        (f"minus_{word}", "x", f"Return x minus {n}.", f"({x + n})", x, f"x - {n}"),
        (f"subtract_{n}", "x", f"Return x minus {n}.", f"({x + n})", x, f"x - {n}"),
        (f"times_{word}", "x", f"Return x times {n}.", f"({x})", x * n, f"x * {n}"),
        (f"multiply_{n}", "x", f"Return x times {n}.", f"({x})", x * n, f"x * {n}"),
        ("sum", "a, b", "Return the sum of a and b.", f"({x}, {y})", x + y, "a + b"),
        ("larger", "a, b", "Return the larger of a and b.", f"({x}, {y})", max(x, y), "max(a, b)"),
        ("smaller", "a, b", "Return the smaller of a and b.", f"({x}, {y})", min(x, y), "min(a, b)"),
        ("product", "a, b", "Return the product of a and b.", f"({x}, {y})", x * y, "a * b"),
        ("first", "items", "Return the first of the items.", f"([{x}, {y}])", x, "items[0]"),
        ("last", "items", "Return the last of the items.", f"([{x}, {y}])", y, "items[-1]"),
        ("count", "items", "Return the number of items.", f"([{x}, {y}])", 2, "len(items)"),
        ("even", "x", "Return whether x is even.", f"({x})", x % 2 == 0, "x % 2 == 0"),
        ("odd", "x", "Return whether x is odd.", f"({x})", x % 2 == 1, "x % 2 == 1"),
    ])  # fmt: skip
    head = f"def {name}({arguments}):\n"
    example = f"    >>> {name}{call}\n    {result}\n" if rng.random() < 0.6 else ""
    docstring = f'    """ {says}\n{example}    """\n' if rng.random() < 0.8 else ""
    return f"{head}{docstring}    return {body}"
