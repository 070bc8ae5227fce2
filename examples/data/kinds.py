"""The kinds of task in the demo's instruction data, by name: each is a function that draws one task.

A task is worded in one of several ways, so that a model has to learn to follow instructions and not one
string. Answers are short: a tiny model can know them.
"""

from __future__ import annotations

from examples.data import facts, language, lists, reading
from examples.data.task import Draw

_DRAWS: list[Draw] = [
    language.opposite,
    language.plural,
    language.past_tense,
    language.comparative,
    lists.addition,
    lists.subtraction,
    lists.larger,
    lists.sort_letters,
    lists.sort_words,
    lists.reverse,
    lists.pick,
    lists.count,
    facts.group,
    facts.odd_one_out,
    facts.member,
    facts.geography,
    facts.animal,
    facts.colour,
    facts.trade,
    facts.calendar,
    lists.number_word,
    language.bullet_list,
    language.blank,
    language.replace_word,
    lists.python_function,
    facts.brainstorm,
    language.topic,
    language.mood,
    reading.story_question,
    reading.extraction,
    reading.summary,
]
KINDS: dict[str, Draw] = {draw.__name__: draw for draw in _DRAWS}
