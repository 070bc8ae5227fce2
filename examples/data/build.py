"""Build the demo's instruction data and benchmark files, always the same bytes.

From the repository root::

    python -m examples.data.build            # writes beside this file
    python -m examples.data.build --out DIR  # writes elsewhere, to compare

Writes ``alpaca-demo.json`` (Alpaca schema), ``dolly-demo.jsonl`` (Dolly schema) and ``benchmarks/``.
Every word of them comes from the templates in this folder.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from random import Random

from examples.data import benchmarks
from examples.data.kinds import KINDS
from examples.data.task import Task

SEED = 20240614
ALPACA_EACH = 64
DOLLY_EACH = 72
# What Dolly calls the kinds that its file holds.
DOLLY_CATEGORY = {
    "story_question": "closed_qa", "extraction": "information_extraction", "summary": "summarization",
    "topic": "classification", "mood": "classification", "group": "classification", "geography": "open_qa",
    "animal": "open_qa", "trade": "general_qa", "brainstorm": "brainstorming",
}  # fmt: skip
DOLLY_ONLY = ("story_question", "extraction", "summary")
# On purpose, so that the mixing has something to find: records that stand twice, or have no answer.
DUPLICATES = {"alpaca": 14, "dolly": 6}
EMPTY = {"alpaca": 8, "dolly": 3}


def draw(kinds: dict[str, int], rng: Random, seen: set[tuple[str, str]]) -> list[tuple[str, Task]]:
    """Draw up to the given number of tasks of each kind, all different from each other and from `seen`.

    Kinds with few different tasks give what they have.
    """
    drawn: list[tuple[str, Task]] = []
    for kind, wanted in kinds.items():
        found = 0
        for _ in range(30 * wanted):
            task = KINDS[kind](rng)
            if (task.instruction, task.given) not in seen:
                seen.add((task.instruction, task.given))
                drawn.append((kind, task))
                found += 1
            if found == wanted:
                break
    rng.shuffle(drawn)
    return drawn


def spoil(tasks: list[tuple[str, Task]], duplicates: int, empty: int, rng: Random) -> list[tuple[str, Task]]:
    """Return `tasks` with some answers taken out and some records standing twice, at random places."""
    spoiled = list(tasks)
    for place in rng.sample(range(len(spoiled)), empty):
        kind, task = spoiled[place]
        spoiled[place] = kind, task._replace(answer="")
    twice = rng.sample([item for item in spoiled if item[1].answer], duplicates)
    for item in twice:
        spoiled.insert(rng.randrange(len(spoiled)), item)
    return spoiled


def drawn() -> tuple[list[tuple[str, Task]], list[tuple[str, Task]]]:
    """Return the tasks of both files with their kinds: Alpaca's and Dolly's."""
    rng = Random(SEED)
    seen: set[tuple[str, str]] = set()
    alpaca = draw({kind: ALPACA_EACH for kind in KINDS if kind not in DOLLY_ONLY}, rng, seen)
    dolly = draw(dict.fromkeys(DOLLY_CATEGORY, DOLLY_EACH), rng, seen)
    return (
        spoil(alpaca, DUPLICATES["alpaca"], EMPTY["alpaca"], rng),
        spoil(dolly, DUPLICATES["dolly"], EMPTY["dolly"], rng),
    )


def count() -> dict[str, int]:
    """Return how many records there are of each kind of task."""
    return dict(Counter(kind for tasks in drawn() for kind, _ in tasks))


def records() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return the records of both files: Alpaca's schema and Dolly's."""
    alpaca, dolly = drawn()
    return (
        [{"instruction": task.instruction, "input": task.given, "output": task.answer} for _, task in alpaca],
        [
            {
                "instruction": task.instruction,
                "context": task.given,
                "response": task.answer,
                "category": DOLLY_CATEGORY[kind],
            }
            for kind, task in dolly
        ],
    )


def main() -> None:
    """Write all files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    alpaca, dolly = records()
    (out / "alpaca-demo.json").write_text(json.dumps(alpaca, indent=1) + "\n")
    (out / "dolly-demo.jsonl").write_text("".join(json.dumps(record) + "\n" for record in dolly))
    counts = benchmarks.write(out / "benchmarks")
    print(f"records: alpaca-demo {len(alpaca)}, dolly-demo {len(dolly)}; {len(KINDS)} kinds of task")
    print("benchmarks: " + ", ".join(f"{task} {count}" for task, count in counts.items()))


if __name__ == "__main__":
    main()
