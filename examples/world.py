"""The small world of the demo: words and facts that its data, its benchmarks and its tiny base model share.

Everything here was written for this project. The countries do not exist; the rest is common knowledge.
"""

from __future__ import annotations

from typing import NamedTuple


class Country(NamedTuple):
    """An invented country."""

    name: str
    capital: str
    river: str
    language: str
    product: str


class Animal(NamedTuple):
    """An animal, the name of its young, the sound it makes and where it lives."""

    name: str
    young: str
    sound: str
    home: str


class Job(NamedTuple):
    """A trade, where it is done and what comes out of it."""

    name: str
    place: str
    makes: str


def _rows(table: str) -> list[list[str]]:
    """Return the rows of a table: semicolons part the rows, spaces the cells."""
    return [row.split() for row in table.split(";")]


NAMES = [
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Henry",
    "Iris",
    "Jonas",
    "Lena",
    "Martin",
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
NUMBERS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]
COLOURS = ["red", "blue", "green", "yellow", "white", "black", "brown", "grey"]
LIST_WORDS = [
    "anchor",
    "bell",
    "candle",
    "desk",
    "engine",
    "feather",
    "garden",
    "hammer",
    "island",
    "jacket",
    "kettle",
    "ladder",
    "mirror",
    "needle",
    "orchard",
    "pillow",
    "quilt",
    "ribbon",
    "shovel",
    "ticket",
    "umbrella",
    "valley",
    "window",
    "yarn",
]
THINGS = ["boat", "book", "coin", "apple", "stone", "lamp", "key", "toy", "box", "coat", "shirt", "hat"]

COUNTRIES = [
    Country(*row)
    for row in _rows("""
Velmora Tarsin Ilva Velmoran wool; Ostria Benlok Dunmar Ostrian copper; Kandor Mirefal Sela Kandish
tea; Lurania Pelgrad Ostrel Luranic glass; Sorbeth Quilla Namur Sorbic salt; Tandria Wexholm Brenta
Tandrian timber; Yumara Zelport Oka Yumari rice; Feldora Grunfeld Aldera Feldic cheese; Hesmark
Ardsund Vik Hesmarkish fish; Jorvania Lindra Tova Jorvan honey; Carpesia Dorvale Rhona Carpesian
wine; Elbonia Stavik Morna Elbonic coal; Nubaria Kessab Zahra Nubari dates; Pamporo Chilaca Yuna
Pampor maize; Wendland Havenbrook Leith Wendish paper; Zafira Almadun Senn Zafiri silk
""")
]

OPPOSITES = _rows("""
hot cold; big small; old young; fast slow; high low; light dark; open closed; wet dry; full empty;
hard soft; long short; early late; happy sad; rich poor; strong weak; clean dirty; loud quiet; thick
thin; wide narrow; near far; good bad; right wrong; safe dangerous; sweet bitter; deep shallow;
sharp blunt; true false; first last; cheap expensive; easy difficult; brave afraid; smooth rough;
awake asleep; alive dead; simple complex; public private; tight loose; polite rude; ancient modern;
straight crooked; inside outside; above below; always never; up down; begin end; buy sell; win lose;
love hate; give take; push pull; laugh cry; remember forget; day night
""")

PLURALS = _rows("""
cat cats; book books; house houses; boat boats; table tables; lamp lamps; tree trees; stone stones;
river rivers; bridge bridges; window windows; door doors; apple apples; garden gardens; coin coins;
bird birds; box boxes; fox foxes; bus buses; dish dishes; glass glasses; church churches; brush
brushes; watch watches; city cities; baby babies; lady ladies; story stories; berry berries; party
parties; knife knives; leaf leaves; wolf wolves; shelf shelves; half halves; loaf loaves; man men;
woman women; child children; foot feet; tooth teeth; mouse mice; goose geese; sheep sheep; potato
potatoes; tomato tomatoes; hero heroes; key keys; day days; toy toys
""")

PAST = _rows("""
walk walked; play played; open opened; look looked; help helped; cook cooked; paint painted; wash
washed; carry carried; study studied; try tried; hurry hurried; stop stopped; plan planned; drop
dropped; go went; see saw; eat ate; drink drank; sing sang; swim swam; run ran; come came; give
gave; take took; make made; write wrote; read read; find found; think thought; buy bought; bring
brought; catch caught; teach taught; build built; send sent; sleep slept; keep kept; feel felt;
leave left; know knew; grow grew; fly flew; draw drew; speak spoke; break broke; fall fell; hold
held
""")

COMPARATIVES = _rows("""
big bigger biggest; small smaller smallest; old older oldest; fast faster fastest; slow slower
slowest; high higher highest; low lower lowest; hot hotter hottest; cold colder coldest; happy
happier happiest; easy easier easiest; heavy heavier heaviest; good better best; bad worse worst;
far farther farthest; long longer longest; short shorter shortest; strong stronger strongest; weak
weaker weakest; wide wider widest; thin thinner thinnest; dry drier driest; rich richer richest;
poor poorer poorest
""")

ANIMALS = [
    Animal(*row)
    for row in _rows("""
cow calf moo stable; dog puppy woof kennel; cat kitten meow basket; sheep lamb baa fold; horse foal
neigh paddock; hen chick cluck coop; duck duckling quack pond; pig piglet oink sty; bear cub growl
cave; bee larva buzz hive; frog tadpole croak marsh; owl owlet hoot barn; lion whelp roar savanna;
goat kid bleat hillside; swan cygnet hiss lake; deer fawn bellow forest
""")
]

JOBS = [
    Job(*row)
    for row in _rows("""
baker bakery bread; tailor workshop suits; farmer farm grain; potter studio bowls; brewer brewery
beer; weaver mill cloth; smith forge horseshoes; cobbler shop shoes; carpenter yard furniture;
printer press newspapers; cook kitchen meals; painter attic pictures
""")
]

GROUPS = {
    name: members
    for name, *members in _rows("""
fruit apple pear plum cherry banana peach orange grape; vegetable carrot onion potato cabbage leek
spinach turnip bean; bird robin eagle sparrow owl swan raven duck hen; fish trout salmon carp pike
herring cod tuna perch; tool hammer saw drill spade wrench chisel rake axe; instrument flute violin
drum piano harp trumpet cello guitar; vehicle car bus train tram truck bicycle ferry tractor;
garment shirt coat scarf glove hat sock skirt jacket; tree oak birch pine elm willow maple beech
spruce; metal iron copper silver gold tin zinc lead nickel
""")
}

COLOUR_OF = [
    ("grass", "green"),
    ("snow", "white"),
    ("the sky", "blue"),
    ("coal", "black"),
    ("a lemon", "yellow"),
    ("blood", "red"),
    ("chocolate", "brown"),
    ("milk", "white"),
    ("a cucumber", "green"),
    ("a banana", "yellow"),
    ("ink", "black"),
    ("a strawberry", "red"),
    ("wood", "brown"),
    ("ash", "grey"),
    ("the sea", "blue"),
    ("a raven", "black"),
    ("a cherry", "red"),
    ("lead", "grey"),
    ("a frog", "green"),
    ("butter", "yellow"),
    ("a swan", "white"),
    ("a chestnut", "brown"),
    ("spinach", "green"),
    ("an elephant", "grey"),
]

TOPICS = {
    "weather": [
        "Rain fell all morning and the wind was strong.",
        "The storm brought thunder and heavy snow.",
        "Tomorrow will be sunny with a few clouds.",
        "Thick fog and frost covered the valley.",
        "The clouds cleared and the sun came out.",
        "A cold wind brought hail in the evening.",
    ],
    "food": [
        "The soup needs more salt and a little butter.",
        "We baked bread and ate it with cheese.",
        "The salad was fresh and the rice was warm.",
        "Dinner was fish with potatoes and beans.",
        "She cooked noodles and a sweet plum cake.",
        "He likes his toast with honey and jam.",
    ],
    "sport": [
        "The goalkeeper caught the ball in the last minute.",
        "Our team won the match by two goals.",
        "She ran the race faster than all the others.",
        "The coach was proud of the young swimmers.",
        "He trained hard and won a medal.",
        "The players shook hands after the final whistle.",
    ],
    "music": [
        "The choir sang an old song.",
        "The drummer kept a steady beat for the band.",
        "She practised the violin for the concert.",
        "The melody was slow and the tune was sad.",
        "He tuned his guitar before the song.",
        "The orchestra played a cheerful dance.",
    ],
    "travel": [
        "The train left the station at noon.",
        "We packed our bags and flew to the coast.",
        "The ferry crossed the bay to the island.",
        "They booked a hotel near the harbour.",
        "Our passports were checked at the border.",
        "The bus took the tourists to the castle.",
    ],
    "school": [
        "The teacher wrote the lesson on the board.",
        "The pupils learned to spell new words.",
        "She did her homework before the exam.",
        "The class read a chapter of the book.",
        "He forgot his pencil and his notebook.",
        "The students answered every question on the test.",
    ],
}


def plural_of(noun: str) -> str:
    """Return the plural of a noun of this world; nouns outside `PLURALS` take an s."""
    return next((many for one, many in PLURALS if one == noun), f"{noun}s")


def article(noun: str) -> str:
    """Return `noun` with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def group_of(thing: str) -> str:
    """Return the group that `thing` is a member of."""
    return next(group for group, members in GROUPS.items() if thing in members)


def joined(words: list[str]) -> str:
    """Return words as an English list: ``a``, ``a and b``, ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
