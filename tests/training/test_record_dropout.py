"""Dropout in layers that are not ours: the same for a record, however the records of a step are split into passes."""

import pytest
import torch
from torch.nn import functional

from retune.data.tokens import pack
from retune.models import pick_device
from retune.study import Training
from retune.training import lora, lora_linear, recompute, self_check
from retune.training.devices import Devices
from retune.training.loss import layout, loss_sum
from retune.training.passes import Passes
from retune.training.record_dropout import per_record_dropout, record_generators

from . import zoo
from .test_loss import random_tokens

LENGTHS = [9, 41, 6, 20, 20, 33]
TOKENS = random_tokens(LENGTHS, zoo.VOCABULARY)
# What drops where: LoRA's input under padded batches, a base's own layers and attention, and PEFT's layers on flattened batches.
# Under "a window" some records are longer than it, and some passes have none of these.
CASES = {
    "bloom": ("bloom", "padded", {}, "lora"),
    "mamba": ("mamba", "padded", {}, "lora"),
    "own, padded": (
        "xglm",
        "padded",
        {"dropout": 0.3, "attention_dropout": 0.3, "activation_dropout": 0.1},
        "lora",
    ),
    "own, flattened": (
        "gpt2",
        "flattened",
        {"attn_pdrop": 0.3, "resid_pdrop": 0.3, "embd_pdrop": 0.3},
        "lora",
    ),
    "attention": ("llama (attention dropout)", "flattened", {}, "lora"),
    "dora": ("llama", "flattened", {}, "dora"),
    "a window": ("mistral", "flattened", {"sliding_window": 36}, "lora"),
    "routers": ("phimoe", "one by one", {}, "lora"),
    "layers left out": ("opt", "one by one", {"layerdrop": 0.5}, "lora"),
}


@pytest.fixture(params=CASES)
def step(request, monkeypatch):
    """Return a function that gives the loss and the gradients of a step with passes of at most so many tokens."""
    name, way, settings, variant = CASES[request.param]
    monkeypatch.setitem(zoo.FORMS, name, zoo.FORMS.get(name, {}) | settings)
    model = zoo.build(name).to(pick_device())
    chosen = Training(rank=4, alpha=8, dropout=0.3, target_modules=zoo.targets(model), variant=variant)
    with lora.adapted(model, chosen, "x", 0) as tuned:
        lora.add_noise(tuned)
        found = self_check.check(tuned, None, 64, train=True)
        assert found.way == way
        tuned.train()
        weights = [parameter for parameter in tuned.parameters() if parameter.requires_grad]

        def run(fails_above=None, again=False, seed="7 0"):
            def loss(model, batch):
                if fails_above is not None and max(batch.lengths) * len(batch.lengths) > fails_above:
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                return loss_sum(model, batch)

            passes = Passes(
                tuned, model, TOKENS, weights, Devices(), loss, lambda x: x, lambda note: None, layout(tuned)
            )
            passes.budget.recomputes = again
            for weight in weights:
                weight.grad = None
            torch.manual_seed(int(seed[-1]))
            total = passes.add_gradients(range(len(LENGTHS)), 50, 0, seed)
            return float(total), torch.cat(
                [(torch.zeros_like(w) if w.grad is None else w.grad).flatten() for w in weights]
            )

        with self_check.reading(tuned, found):
            if way == "flattened":
                lora_linear.install(tuned)
            yield run


def test_losses_and_gradients_do_not_depend_on_the_passes(step):
    total, gradients = step()
    for fails_above, again in ((60, False), (41, False), (41, True)):
        split, of_split = step(fails_above, again)
        assert split == pytest.approx(total, rel=1e-5)
        torch.testing.assert_close(of_split, gradients, rtol=1e-3, atol=1e-4)
    assert step(seed="7 1")[0] != pytest.approx(total, rel=1e-5)


def test_nor_where_a_record_has_no_prompt(step, monkeypatch):
    """All of its tokens are computed in the last layer, of the others only some: a pass of it alone looks like either."""
    records = [
        ([5 + k for k in range(n)], [place > (n // 2 if n > 9 else 0) for place in range(n)]) for n in LENGTHS
    ]
    monkeypatch.setitem(globals(), "TOKENS", pack(records))
    total, gradients = step()
    split, of_split = step(60)
    assert split == pytest.approx(total, rel=1e-5)
    torch.testing.assert_close(of_split, gradients, rtol=1e-3, atol=1e-4)


def test_equal_records_draw_different_numbers_and_torch_is_as_before():
    drop, attention = functional.dropout, functional.scaled_dot_product_attention
    x = torch.ones(2, 5, 40)
    given = record_generators([5, 5], True, [3, 4], "7 0", torch.device("cpu"))
    with per_record_dropout(given), recompute.tracking_generators(given.generators):
        found = torch.nn.Dropout(0.5)(x)
        kept = torch.nn.Dropout(0.5, inplace=True)(x.clone())
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found, kept)
    assert set(found.unique().tolist()) == {0.0, 2.0}
    assert (functional.dropout, functional.scaled_dot_product_attention) == (drop, attention)
