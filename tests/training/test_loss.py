"""Flattened batches must mean exactly what ordinary padded batches mean."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retune.data.batches import flatten
from retune.data.tokens import pack
from retune.study import Training
from retune.training import blocked_attention, llama_layer, lora, lora_linear
from retune.training.attention import attend, segments
from retune.training.loss import loss_sum
from retune.training.model_attention import by_segments
from tests.training.conftest import ON_GPU

from .conftest import flat

CPU = torch.device("cpu")
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.sampled_from([(4, 4), (4, 2), (4, 1)]))
@settings(max_examples=30, deadline=None)
def test_attention_equals_one_record_at_a_time(lengths, heads):
    torch.manual_seed(sum(lengths))
    total, dim = sum(lengths), 8
    query = torch.randn(1, heads[0], total, dim)
    key, value = torch.randn(2, 1, heads[1], total, dim)
    found = attend(query, key, value, segments(lengths, lengths, CPU))
    repeat = heads[0] // heads[1]
    start = 0
    for n in lengths:
        q, k, v = (x[0, :, start : start + n] for x in (query, key, value))
        k, v = k.repeat_interleave(repeat, 0), v.repeat_interleave(repeat, 0)
        scores = (q @ k.transpose(1, 2)) * dim**-0.5
        scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf)
        expected = (scores.softmax(-1) @ v).transpose(0, 1)
        torch.testing.assert_close(found[0, start : start + n], expected, atol=1e-5, rtol=1e-5)
        start += n


@given(st.integers(1, 200), st.integers(1, 200))
@settings(max_examples=25, deadline=None)
def test_blocked_attention_equals_the_plain_formula(length, queries):
    """Forward and all three gradients, for the last `queries` places of a record."""
    queries = min(length, queries)
    torch.manual_seed(length)
    query = torch.randn(2, queries, 8, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(2, length, 8, dtype=torch.float64, requires_grad=True) for _ in "kv")
    hidden = torch.ones(queries, length, dtype=torch.bool).triu(length - queries + 1)
    expected = ((query @ key.transpose(1, 2)) * 0.3).masked_fill(hidden, -torch.inf).softmax(-1) @ value
    gradient = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, (query, key, value), gradient)
    with torch.no_grad():
        out, of_query, of_key, of_value = (torch.zeros_like(x) for x in (query, query, key, value))
        kept = blocked_attention.forward(query, key, value, 0.3, out)
        blocked_attention.backward(gradient, query, key, value, 0.3, kept, of_query, of_key, of_value)
    torch.testing.assert_close(out, expected)
    for found, right in zip((of_query, of_key, of_value), gradients, strict=True):
        torch.testing.assert_close(found, right)


def padded_loss(model, tokens, records):
    """The loss sum the ordinary way: padding on the right, mask, labels of -100."""
    spans = [slice(int(tokens.offsets[r]), int(tokens.offsets[r + 1])) for r in records]
    longest = max(s.stop - s.start for s in spans)
    ids = torch.ones(len(spans), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for place, span in enumerate(spans):
        n = span.stop - span.start
        ids[place, :n] = tokens.ids[span]
        mask[place, :n] = 1
        labels[place, :n] = torch.where(tokens.counted[span], tokens.ids[span], -100)
    ids, mask, labels = (x.to(model.device) for x in (ids, mask, labels))
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")


def random_tokens(lengths, vocabulary=258):
    torch.manual_seed(7)
    return pack(
        [(torch.randint(2, vocabulary, (n,)).tolist(), [k >= n // 3 for k in range(n)]) for n in lengths]
    )


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ALL_LINEAR])
def test_loss_and_gradients_equal_padded_batches(base, targets):
    tokens = random_tokens([5, 60, 17, 2, 33])
    model = base.load().model
    with lora.adapted(
        model, Training(rank=4, alpha=8, dropout=0.0, learning_rate=1e-3, target_modules=targets), "x", 0
    ) as adapted:
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
        adapted.train()
        found = {}
        for how in ("padded", "flat"):
            adapted.zero_grad()
            if how == "padded":
                loss = padded_loss(adapted, tokens, [3, 1, 4, 0, 2])
            else:
                lora_linear.install(adapted)
                with by_segments(model):
                    loss = loss_sum(adapted, flatten(tokens, [3, 1, 4, 0, 2]).to(model.device))
            loss.backward()
            found[how] = (
                loss.item(),
                {n: p.grad.clone() for n, p in adapted.named_parameters() if p.requires_grad},
            )
    assert found["flat"][0] == pytest.approx(found["padded"][0], rel=1e-5)
    assert len(found["flat"][1]) == 2 * 2 * len(targets)
    for name, gradient in found["padded"][1].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(found["flat"][1][name], gradient, rtol=1e-3, atol=1e-4)


def test_a_record_does_not_see_its_neighbours(base):
    """The loss of two records together is the sum of each alone; with leaking attention it would not be."""
    tokens = random_tokens([30, 30])
    with flat(base) as model, torch.no_grad():
        together = loss_sum(model, flatten(tokens, [0, 1]).to(model.device)).item()
        alone = sum(loss_sum(model, flatten(tokens, [r]).to(model.device)).item() for r in (0, 1))
    assert together == pytest.approx(alone, rel=1e-6)


def test_the_models_own_attention_is_back_afterwards_even_after_an_error(base):
    model = base.load().model
    before = model.config._attn_implementation
    with pytest.raises(ZeroDivisionError), by_segments(model):
        1 / (model.config._attn_implementation == before)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("loss_on_all", [False, True])
def test_the_written_out_layer_is_used_and_equals_transformers_own(base, monkeypatch, loss_on_all):
    """Loss and gradients of an adapter in every linear layer, with the layers of transformers and with ours."""
    tokens = random_tokens([7, 60, 17, 6, 33])
    if loss_on_all:
        tokens = pack(
            [(tokens.ids[s:e].tolist(), [True] * (e - s)) for s, e in pairwise(tokens.offsets.tolist())]
        )
    model = base.load().model
    used = []
    real = llama_layer.LlamaLayer.backward
    monkeypatch.setattr(
        llama_layer.LlamaLayer,
        "backward",
        staticmethod(lambda ctx, g: (used.append(ctx.rows is None), real(ctx, g))[1]),
    )
    found = []
    with lora.adapted(
        model, Training(rank=4, alpha=8, dropout=0.0, learning_rate=1e-3, target_modules=ALL_LINEAR), "x", 0
    ) as adapted:
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
        adapted.train()
        for ours in (False, True):
            with monkeypatch.context() as patch:
                if not ours:
                    patch.setattr(llama_layer, "_SUPPORTED", set())
                with by_segments(model):
                    adapted.zero_grad()
                    loss = loss_sum(adapted, flatten(tokens, [3, 1, 4, 0, 2]).to(model.device))
                    loss.backward()
            found.append([loss.detach(), *(p.grad.clone() for p in adapted.parameters() if p.requires_grad)])
            assert len(used) == (2 if ours and not ON_GPU else 0)
    expected = [True, True] if loss_on_all else [False, True]  # the last layer comes first, trimmed
    assert used == ([] if ON_GPU else expected)  # a GPU computes by transformers' own
    for theirs, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_dropout_reaches_every_adapter_of_the_written_out_layer(base):
    """With a dropout near 1 next to nothing is left of the adapters, and evaluation has none."""
    tokens = random_tokens([40])
    model = base.load().model
    with lora.adapted(
        model, Training(rank=4, alpha=64, dropout=0.97, learning_rate=1e-3, target_modules=ALL_LINEAR), "x", 0
    ) as adapted:
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
        with by_segments(model), torch.no_grad():
            losses = []
            for training in (True, True, False, False):
                adapted.train(training)
                losses.append(loss_sum(adapted, flatten(tokens, [0]).to(model.device)).item())
    assert losses[0] != losses[1]
    assert losses[2] == losses[3]
