"""The loss in parts equals the loss of all logits at once, for every head that transformers' models have."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)  # fmt: skip

from retune.models import pick_device
from retune.training import head
from tests.training.conftest import SIZE

MODELS = {
    "plain": lambda: LlamaForCausalLM(LlamaConfig(**SIZE)),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZE, tie_word_embeddings=True)),
    "capped": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZE, final_logit_softcapping=0.5)),
    "divided": lambda: GraniteForCausalLM(GraniteConfig(**SIZE, logits_scaling=8.0)),
    "multiplied": lambda: CohereForCausalLM(CohereConfig(**SIZE, logit_scale=0.25)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("trains_head", [False, True])
def test_loss_and_gradients_equal_those_of_all_logits(monkeypatch, name, trains_head):
    torch.manual_seed(0)
    device = pick_device()
    core = MODELS[name]().to(device).eval().requires_grad_(False)
    body = head.decoder(core)
    trained = [next(iter(body.parameters()))]  # the embeddings, which may be the head too
    if trains_head and core.get_output_embeddings().weight is not trained[0]:
        trained.append(core.get_output_embeddings().weight)
    for parameter in trained:
        parameter.requires_grad_(True)
    ids = torch.randint(2, 97, (1, 40), device=device)
    rows, targets = torch.arange(5, 39, device=device), ids[0, 6:]
    logits = core(input_ids=ids, use_cache=False).logits[0, rows]
    whole = cross_entropy(logits.float(), targets, reduction="sum")
    expected = torch.autograd.grad(whole / 7, trained)
    largest = []
    real = head._loss
    monkeypatch.setattr(
        head, "_loss", lambda logits, wanted: (largest.append(logits.shape), real(logits, wanted))[1]
    )
    monkeypatch.setattr(head, "MAX_LOGITS", 97 * 9)
    found = head.loss_sum(core, body, body(input_ids=ids, use_cache=False), rows, targets)
    gradients = torch.autograd.grad(found / 7, trained)
    assert {tuple(shape) for shape in largest} == {(9, 97), (34 % 9, 97)}
    torch.testing.assert_close(found, whole, rtol=1e-6, atol=1e-6)
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        output = body(input_ids=ids, use_cache=False)
        torch.testing.assert_close(
            head.loss_sum(core, body, output, rows, targets), whole, rtol=1e-6, atol=1e-6
        )
    assert "forward" not in vars(body)
