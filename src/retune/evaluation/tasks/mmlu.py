"""MMLU (Hendrycks et al. 2021): 57 subjects, four choices, five shots from the subject's dev split.

Prompts, limits and averages are those of Instruct-Eval's ``mmlu.py`` (commit 49bbd2ce), its quirks included:
two spaces after "about", and choices that pandas reads as missing (``None``, ``N/A``, …) printed as ``nan``.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from retune.errors import InputError
from retune.evaluation.tasks.question import (
    Question,
    Score,
    Task,
    by_group,
    first_few,
    share,
    starts_with_label,
)

SHOTS = 5
LETTERS = "ABCD"

# category -> sub-category -> subjects
CATEGORIES: dict[str, dict[str, str]] = {
    "STEM": {
        "physics": "astronomy college_physics conceptual_physics high_school_physics",
        "chemistry": "college_chemistry high_school_chemistry",
        "biology": "college_biology high_school_biology",
        "computer science": "college_computer_science computer_security high_school_computer_science machine_learning",
        "math": "abstract_algebra college_mathematics elementary_mathematics high_school_mathematics high_school_statistics",
        "engineering": "electrical_engineering",
    },
    "humanities": {
        "history": "high_school_european_history high_school_us_history high_school_world_history prehistory",
        "philosophy": "formal_logic logical_fallacies moral_disputes moral_scenarios philosophy world_religions",
        "law": "international_law jurisprudence professional_law",
    },
    "social sciences": {
        "politics": "high_school_government_and_politics public_relations security_studies us_foreign_policy",
        "culture": "human_sexuality sociology",
        "economics": "econometrics high_school_macroeconomics high_school_microeconomics",
        "geography": "high_school_geography",
        "psychology": "high_school_psychology professional_psychology",
    },
    "other": {
        "other": "global_facts miscellaneous professional_accounting",
        "business": "business_ethics management marketing",
        "health": "anatomy clinical_knowledge college_medicine human_aging medical_genetics nutrition "
        "professional_medicine virology",
    },
}  # fmt: skip
PLACES = {
    subject: (subcategory, category)
    for category, parts in CATEGORIES.items()
    for subcategory, subjects in parts.items()
    for subject in subjects.split()
}

# The texts that pandas.read_csv takes for a missing value; Instruct-Eval prints such a choice as "nan". Ten choices
# of the test split are the word "None".
_MISSING = frozenset(
    ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL",
     "NaN", "None", "n/a", "nan", "null"]
)  # fmt: skip


def files(path: Path) -> list[Path]:
    """Return the CSV files under ``dev/`` and ``test/``."""
    return sorted(path.glob("dev/*_dev.csv")) + sorted(path.glob("test/*_test.csv"))


def read(path: Path) -> list[Question]:
    """Return all test questions, subjects in alphabetical order.

    Raises:
        InputError: if there is no test file, a dev file is missing or short, or a row is not
            ``question,A,B,C,D,answer letter``.

    """
    tests = sorted(path.glob("test/*_test.csv"))
    if not tests:
        raise InputError(
            f"an MMLU folder holds dev/<subject>_dev.csv and test/<subject>_test.csv, but {path} has no test file"
        )
    problems: list[str] = []
    questions: list[Question] = []
    for test in tests:
        subject = test.name.removesuffix("_test.csv")
        dev = path / "dev" / f"{subject}_dev.csv"
        if dev.is_file():
            shots = rows(dev, problems)
            if len(shots) < SHOTS:
                problems.append(f"{dev}: {SHOTS} examples are needed for the shots, but got {len(shots)}")
        else:
            problems.append(f"{dev}: there is no such file, but {test.name} needs its examples")
            shots = []
        examples = tuple(f"{body(row)} {row[5]}\n\n" for row in shots[:SHOTS])
        for number, row in enumerate(rows(test, problems)):
            questions.append(
                Question(f"{subject}/{number}", subject, header(subject), examples, body(row), row[5])
            )
    if problems:
        raise InputError(problems)
    return questions


def header(subject: str) -> str:
    """Return the line before the shots, e.g. ``… about  college biology.`` with two spaces."""
    return (
        f"The following are multiple choice questions (with answers) about  {subject.replace('_', ' ')}.\n\n"
    )


def body(row: Sequence[str]) -> str:
    """Return a row as a question with its four choices."""
    choices = [
        f"\n{letter}. {'nan' if cell in _MISSING else cell}"
        for letter, cell in zip(LETTERS, row[1:5], strict=True)
    ]
    return row[0] + "".join(choices) + "\nAnswer:"


def average(questions: Sequence[Question], right: Sequence[bool]) -> Score:
    """Return the micro-average over all questions, and over those of each subject, sub-category and category."""
    parts: dict[str, dict[str, list[bool]]] = {"subject": {}, "subcategory": {}, "category": {}}
    for subject, verdicts in by_group(questions, right).items():
        parts["subject"][subject] = verdicts
        if subject in PLACES:
            subcategory, category = PLACES[subject]
            parts["subcategory"].setdefault(subcategory, []).extend(verdicts)
            parts["category"].setdefault(category, []).extend(verdicts)
    groups = {
        f"{level}:{name}": share(v)[0] for level, named in parts.items() for name, v in sorted(named.items())
    }
    return Score(*share(right), groups)


def rows(path: Path, problems: list[str]) -> list[list[str]]:
    """Return the right rows of a file, question, four choices and letter; what is wrong with others goes into `problems`."""
    reasons: list[str] = []
    good: list[list[str]] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if len(row) != 6:
                    reasons.append(
                        f"{where}: a row has 6 columns (question, 4 choices, answer), but got {len(row)}"
                    )
                elif row[5] not in tuple(LETTERS):
                    reasons.append(f"{where}: the answer is one of A, B, C, D, but got {row[5]!r}")
                else:
                    good.append(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reasons.append(f"{path}: cannot be read as CSV in UTF-8: {error}")
    problems += first_few(reasons)
    if not good and not reasons:
        problems.append(f"{path}: the file is empty")
    return good


TASK = Task("mmlu", SHOTS, 2048, 2, files, read, starts_with_label, average)
