"""Small studies with known answers, and simulated people who fill in the form without a browser."""

import json
from pathlib import Path

from retune.evaluation.judge import form, key
from retune.evaluation.judge.record import Answered, Contestant, Generated
from retune.store import join, write

NAMES = {"a": "trial-009", "b": "trial-001"}
DIGESTS = {"a": "0123456789abcdef", "b": "fedcba9876543210"}


def make(folder: Path, answers: list[tuple[str, str]]) -> tuple[key.Key, str]:
    """Write the three files of a study whose k-th question got these answers from a and b; return key and form."""
    questions = [
        Answered(
            id=f"q{k}", category="generic", question=f"Question {k}?", prompt="", answers={"a": a, "b": b}
        )
        for k, (a, b) in enumerate(answers)
    ]
    models = {
        side: Contestant(
            name=NAMES[side], adapter_uri=f"s3://bucket/{NAMES[side]}", adapter_digest=DIGESTS[side]
        )
        for side in ("a", "b")
    }
    generated = Generated(models=models, inputs={"base": "models/llama"}, questions=questions)
    write(join(folder, "generated.json"), generated.to_json())
    the_key = key.fetch(generated, join(folder, "key.json"))
    page = form.build(the_key, generated)
    write(join(folder, "form.html"), page.encode())
    return the_key, page


def exported(the_key, name: str, votes: dict[str, str], **changes) -> dict:
    """Return what the form exports when `name` votes a, b or tie by question id; a always stands first."""
    comparisons = {question.id: question for question in the_key.comparisons()}
    answers = [
        {
            "question": comparisons[id].token,
            "choice": "tie" if vote == "tie" else comparisons[id].answers[vote],
            "first": comparisons[id].answers["a"],
        }
        for id, vote in votes.items()
    ]
    file = {"format": "retune-judge-answers", "version": 1, "form": the_key.form, "annotator": name, "session": f"s-{name}",
            "started": "2026-01-01T00:00:00.000Z", "exported": "2026-01-01T01:00:00.000Z", "asked": len(comparisons), "answers": answers}  # fmt: skip
    return {**file, **changes}


def save(folder: Path, name: str, content) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return str(path)
