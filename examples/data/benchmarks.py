"""Small benchmark files in the schemas of MMLU, BBH, DROP and HumanEval, about the demo's small world.

The names of the subjects and tasks are real ones, so that programs that group them by name work; the
questions are not from those benchmarks, and a score on them says nothing about any other model.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from examples import world
from examples.data import stories
from examples.data.problems import PROBLEMS

Question = tuple[str, list[str]]  # the question and four options, the right one first
MMLU_DEV, MMLU_TEST, BBH_EACH, DROP_STORIES = 5, 40, 43, 45


def sums(rng: Random) -> Question:
    """Small sums and differences."""
    a, b = rng.randint(1, 10), rng.randint(1, 10)
    if rng.random() < 0.6:
        return f"What is {a} + {b}?", _numbers(rng, a + b)
    return f"What is {a + b} - {b}?", _numbers(rng, a)


def lands(rng: Random) -> Question:
    """Facts about the invented countries."""
    right, *wrong = rng.sample(world.COUNTRIES, 4)
    field, question = rng.choice([
        ("capital", f"Which city is the capital of {right.name}?"),
        ("river", f"Which of these rivers flows through {right.name}?"),
        ("language", f"Which language is spoken in {right.name}?"),
        ("name", f"In which country is {right.capital}?"),
        ("product", f"What is sold by {right.name}?"),
    ])  # fmt: skip
    return question, [getattr(land, field) for land in (right, *wrong)]


def words(rng: Random) -> Question:
    """Opposites, plurals, young animals."""
    if rng.random() < 0.4:
        pairs = rng.sample(world.OPPOSITES, 4)
        return f"Which word is the opposite of {pairs[0][0]}?", [other for _, other in pairs]
    if rng.random() < 0.5:
        nouns = rng.sample(world.PLURALS, 4)
        return f"Which word is the plural of {nouns[0][0]}?", [many for _, many in nouns]
    beasts = rng.sample(world.ANIMALS, 4)
    return f"Which name has the young of the {beasts[0].name}?", [beast.young for beast in beasts]


def logic(rng: Random) -> Question:
    """One step of deduction."""
    right, *wrong = rng.sample(list(world.GROUPS), 4)
    thing = rng.choice(world.GROUPS[right])
    many = "fish" if right == "fish" else f"{right}s"
    question = f"The {thing} is one of the {many}. What follows?"
    return question, [f"It is {world.article(name)}." for name in (right, *wrong)]


MMLU: dict[str, Callable[[Random], Question]] = {
    "elementary_mathematics": sums,
    "formal_logic": logic,
    "high_school_geography": lands,
    "miscellaneous": words,
}


def word_sorting(rng: Random) -> tuple[str, str]:
    """Words into alphabetical order."""
    chosen = rng.sample(world.LIST_WORDS, rng.randint(2, 3))
    return f"Sort the following words alphabetically: List: {' '.join(chosen)}", " ".join(sorted(chosen))


def object_counting(rng: Random) -> tuple[str, str]:
    """Adding up the things of a list."""
    chosen = rng.sample(
        [word for word in world.LIST_WORDS if word not in ("quilt", "yarn")], rng.randint(2, 3)
    )
    counts = [rng.randint(1, 3) for _ in chosen]
    held = [
        world.article(word) if n == 1 else f"{world.NUMBERS[n]} {world.plural_of(word)}"
        for word, n in zip(chosen, counts, strict=True)
    ]
    return f"I have {world.joined(held)}. How many objects do I have?", str(sum(counts))


def boolean_expressions(rng: Random) -> tuple[str, str]:
    """Truth values joined by and, or, not."""
    parts = [f"{rng.choice(['', 'not '])}{rng.choice(['True', 'False'])}" for _ in range(rng.randint(2, 3))]
    text = parts[0] + "".join(f" {rng.choice(['and', 'or'])} {part}" for part in parts[1:])
    return f"{text} is", str(eval(text, {}))  # built above from True, False, and, or, not alone


BBH: dict[str, Callable[[Random], tuple[str, str]]] = {
    "boolean_expressions": boolean_expressions,
    "object_counting": object_counting,
    "word_sorting": word_sorting,
}


def mmlu(subject: str) -> list[list[str]]:
    """Return the rows of one subject: question, four options, the right letter; the first five go to dev/."""
    rng = Random(f"mmlu/{subject}")
    rows: list[list[str]] = []
    for question, options in _distinct(lambda: MMLU[subject](rng), MMLU_DEV + MMLU_TEST):
        order = rng.sample(range(4), 4)
        rows.append([question, *(options[k] for k in order), "ABCD"[order.index(0)]])
    return rows


def bbh(task: str) -> dict[str, Any]:
    """Return the content of one task's file."""
    rng = Random(f"bbh/{task}")
    pairs = _distinct(lambda: BBH[task](rng), BBH_EACH)
    return {
        "canary": "Made for the demo of retune; not a part of BIG-Bench Hard.",
        "examples": [{"input": question, "target": target} for question, target in pairs],
    }


def drop() -> list[dict[str, str]]:
    """Return reading questions, two on each passage; some numbers may also be given as words."""
    rng = Random("drop")
    items = []
    for story in _distinct(lambda: stories.draw(rng), DROP_STORIES):
        for question, answer in rng.sample(story.questions, 2):
            spelled = (
                f"{answer}|{world.NUMBERS[int(answer)]}"
                if answer.isdigit() and rng.random() < 0.1
                else answer
            )
            context = f"Passage: {story.text}\nQuestion: {question}\nAnswer:"
            items.append({"context": context, "completion": f" {answer}", "ref_text": spelled})
    return items


def humaneval() -> list[dict[str, str]]:
    """Return the programming problems."""
    items = []
    for number, problem in enumerate(PROBLEMS):
        head = f"def {problem.name}({problem.arguments}):"
        example = f">>> {problem.name}{problem.call}\n    {problem.result}"
        asserts = "".join(f"    assert candidate{test}\n" for test in problem.tests)
        items.append({
            "task_id": f"HumanEval/{number}",
            "prompt": f'{head}\n    """ {problem.says}\n    {example}\n    """\n',
            "entry_point": problem.name,
            "canonical_solution": f"    return {problem.body}\n",
            "test": f"\n\ndef check(candidate):\n{asserts}\n",
        })  # fmt: skip
    return items


def questions() -> set[str]:
    """Return every question asked, the passages of DROP and the function names of HumanEval."""
    asked = {row[0] for subject in MMLU for row in mmlu(subject)}
    asked |= {example["input"] for task in BBH for example in bbh(task)["examples"]}
    asked |= {item["context"].partition("\n")[0].removeprefix("Passage: ") for item in drop()}
    return asked | {problem.name for problem in PROBLEMS}


def write(out: Path) -> dict[str, int]:
    """Write all files under `out` and return how many questions each benchmark asks."""
    for folder in ("mmlu/dev", "mmlu/test", "bbh"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for subject in MMLU:
        rows = mmlu(subject)
        (out / f"mmlu/dev/{subject}_dev.csv").write_text(_csv(rows[:MMLU_DEV]))
        (out / f"mmlu/test/{subject}_test.csv").write_text(_csv(rows[MMLU_DEV:]))
    for task in BBH:
        (out / f"bbh/{task}.json").write_text(json.dumps(bbh(task), indent=1) + "\n")
    _write_lines(out / "drop.jsonl.gz", drop())
    _write_lines(out / "humaneval.jsonl.gz", humaneval())
    return {
        "mmlu": MMLU_TEST * len(MMLU),
        "bbh": BBH_EACH * len(BBH),
        "drop": len(drop()),
        "humaneval": len(PROBLEMS),
    }


def _numbers(rng: Random, right: int) -> list[str]:
    wrong = rng.sample([n for n in range(max(0, right - 5), right + 6) if n != right], 3)
    return [str(right), *map(str, wrong)]


def _distinct(draw: Callable[[], Any], count: int) -> list[Any]:
    """Draw until there are `count` items whose first parts differ."""
    found: dict[str, Any] = {}
    while len(found) < count:
        item = draw()
        found.setdefault(item[0], item)
    return list(found.values())


def _csv(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _write_lines(path: Path, items: list[dict[str, str]]) -> None:
    """Write JSON lines, compressed; without name and time in the header: equal content gives equal bytes."""
    content = "".join(json.dumps(item) + "\n" for item in items).encode()
    path.write_bytes(gzip.compress(content, mtime=0))
