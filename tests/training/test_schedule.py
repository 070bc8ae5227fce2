"""The schedules are those of transformers, number by number."""

import pytest
import torch
from transformers import TrainingArguments, get_scheduler

from retune.training import schedule


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.5])
@pytest.mark.parametrize("steps", [1, 7, 100])
def test_equals_transformers(name, share, steps, tmp_path):
    warmup = schedule.warmup_steps(steps, share)
    assert warmup == TrainingArguments(str(tmp_path), warmup_steps=share).get_warmup_steps(steps)
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler("constant_with_warmup" if name == "constant" else name, optimiser, warmup, steps)
    for step in range(steps):
        assert schedule.factor(name, step, steps, warmup) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimiser.step()
        theirs.step()


def test_falls_to_zero():
    assert schedule.factor("linear", 10, 10, 0) == 0
    assert schedule.factor("cosine", 10, 10, 0) == pytest.approx(0, abs=1e-12)
