"""A study whose search is finished, made without training."""

import pytest

from retune import models, store
from retune.data import mixing
from retune.records import TrialRecord
from retune.workspace import folders
from retune.workspace.ledger import Ledger
from retune.workspace.search_folder import SearchFolder, SearchRecord
from tests.evaluation.conftest import make_adapter, make_base, write_mmlu

CHAT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"


@pytest.fixture
def searched(small, tmp_path):
    """A study whose search is finished and whose benchmark is not, with two adapters of its base."""
    return finished(small, tmp_path)


@pytest.fixture
def searched_chat(small, tmp_path):
    """The same, tuned by the base's chat template, whose turns end with a token that is not the end of text."""
    return finished(small, tmp_path, "data.prompt=chat")


def finished(small, tmp_path, *more):
    base = make_base(tmp_path / "base")
    if more:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
        tokenizer.chat_template = CHAT
        tokenizer.save_pretrained(base)
        model = AutoModelForCausalLM.from_pretrained(base)
        model.resize_token_embeddings(len(tokenizer))
        model.save_pretrained(base)
    data = write_mmlu(tmp_path / "mmlu")
    study = small(
        f"model.base={base}",
        "data.max_length=512",
        "benchmark.tasks=[mmlu]",
        f"benchmark.data={{mmlu: {data}}}",
        *more,
    )
    record = mixing.mix(study.data, study.seed, models.locate(study.model), folders.data_folder(study))
    folder = folders.search_folder(study, record.digest)
    ledger = Ledger(folder)
    for number, role in enumerate(("base", "default", "search")):
        adapter = make_adapter(base, tmp_path / f"adapter-{number}") if number else None
        ledger.issue(number, role, {"rank": 4} if number else {}, 0)
        trial = TrialRecord(
            trial=f"trial-{number:03d}", number=number, role=role, assignment={"rank": 4} if number else {}, seed=0,
            status="completed", values={"validation_loss": 3.0 - number}, adapter_uri=str(adapter) if adapter else None,
            data_digest=record.digest, base=study.model.base,
        )  # fmt: skip
        ledger.finish(trial, write=True)
    store.write(store.join(folder, "study.json"), study.model_dump_json().encode())
    made = SearchRecord(
        study=study.name, algorithm="random", stopped_by="trials", trials=2, completed=2, failed=0, best="trial-002",
        digest="d", data_digest=record.digest, hours=0.1,
    )  # fmt: skip
    store.write(store.join(folder, "search.json"), made.to_json())
    return study, SearchFolder(folder), tmp_path
