"""The page in which people judge: one HTML file that needs no network and knows nothing of the models."""

from __future__ import annotations

import json
from base64 import b64encode
from hashlib import sha256
from importlib import resources

from retune.evaluation.judge.key import Key
from retune.evaluation.judge.record import Generated


def build(key: Key, generated: Generated) -> str:
    """Return the form of a study as HTML.

    Questions and answers stand in the order of their random names, so that neither name nor place tells whose an
    answer is. Nothing in them is markup: the page shows them as plain text.
    """
    answered = {question.id: question for question in generated.questions}
    questions = []
    for hidden in key.comparisons():
        answers = answered[hidden.id]
        texts = [{"id": token, "text": answers.answers[side]} for side, token in hidden.answers.items()]
        questions.append(
            {
                "id": hidden.token,
                "text": answers.question,
                "answers": sorted(texts, key=lambda text: text["id"]),
            }
        )
    questions.sort(key=lambda question: str(question["id"]))
    study = json.dumps({"form": key.form, "questions": questions})
    page, style, script = (_part(name) for name in ("form.html", "form.css", "form.js"))
    page = page.replace("{{ style }}", style).replace("{{ script }}", script)
    page = page.replace("{{ style hash }}", _hash(style)).replace("{{ script hash }}", _hash(script))
    return page.replace("{{ study }}", study.replace("<", "\\u003c"))  # last: its texts may hold anything


def _part(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return the hash by which the page's content security policy lets `text` run."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
