# %% [markdown]
# # A study in Python
#
# Define a study, run it on this machine, look at its history, load the winner with PEFT and ask it something. The same
# as a script (`python examples/04-python/study.py`) and as a notebook (study.ipynb, which `make docs` writes from it).
# It takes about two minutes on two cores. Run it again: what is done is not done again.

# %%
from pathlib import Path

import retune
from retune.workspace.progress import Progress

here = Path(__file__).parent if "__file__" in globals() else Path.cwd()
examples = here.parent

# %% [markdown]
# A study is the content of a study file. Names, defaults and checks are the same: what is wrong is told at once.

# %%
study = retune.Study.model_validate(
    {
        "name": "in-python",
        "model": {"base": str(examples / "base/tiny")},
        "data": {
            "sources": [
                {"format": "alpaca", "uri": str(examples / "data/alpaca-demo.json"), "share": 0.7},
                {"format": "dolly", "uri": str(examples / "data/dolly-demo.jsonl"), "share": 0.3},
            ],
            "train": 200,
            "validation": 60,
            "max_length": 160,
        },
        "training": {"epochs": 1},
        "search": {
            "algorithm": "mads-global",
            "parameters": [
                {"name": "rank", "kind": "discrete", "values": [4, 8, 16], "default": 8},
                {
                    "name": "learning_rate",
                    "kind": "real",
                    "low": 1e-5,
                    "high": 1e-1,
                    "scale": "log",
                    "default": 1e-4,
                },
            ],
            "trials": 6,
            "parallel": 2,
            "repeats": 1,
        },
        "promote": {"model": "in-python-adapter"},
    }
)
print("the first settings to be tried:", retune.suggest(study, count=3))

# %% [markdown]
# `run` mixes the data, trains, selects, registers and promotes, as `retune run` does. It calls back with where it stands.

# %%
seen = set()


def show(progress: Progress) -> None:
    if progress.done not in seen:
        seen.add(progress.done)
        print(f"{progress.step}: {progress.done} of {progress.total} trials, best {progress.best}")


outcome = retune.run(study, on_progress=show)
print(f"chosen: {outcome.selection.chosen}, gate: {outcome.gate.decision}, report: {outcome.report}")

# %% [markdown]
# Every trial left a record. The history, as a picture:

# %%
import matplotlib.pyplot as plt

trials = [
    record
    for record in outcome.records()
    if record.role in ("default", "search") and record.status == "completed"
]
numbers = [record.number for record in trials]
losses = [record.values["validation_loss"] for record in trials]
best = [min(losses[: k + 1]) for k in range(len(losses))]

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(numbers, losses, "o", label="trial")
axes.step(numbers, best, where="post", label="best so far")
axes.set(xlabel="trial", ylabel="validation loss")
axes.legend()
figure.savefig("history.png")

# %% [markdown]
# The winner is a PEFT adapter like any other. Load it and ask it something.

# %%
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from retune.data.prompts import prompt

base = study.model.base
tokenizer = AutoTokenizer.from_pretrained(base)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), outcome.adapter).eval()

tokens = tokenizer(prompt("Name the opposite of the word.", "hot"), return_tensors="pt")
answer = model.generate(**tokens, max_new_tokens=16, do_sample=False, pad_token_id=tokenizer.pad_token_id)
print(tokenizer.decode(answer[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True))
