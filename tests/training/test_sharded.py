"""A base loaded by shards answers as one that was loaded whole. Two processes: see test_devices."""

import pytest
import torch
from torch import distributed
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)  # fmt: skip

from retune import models
from retune.training import sharded
from tests.training.conftest import SIZE

MODELS = {
    "plain": lambda: LlamaForCausalLM(LlamaConfig(**SIZE)),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZE, tie_word_embeddings=True)),
    "scaled embeddings": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZE)),
    "other names in the file": lambda: MixtralForCausalLM(MixtralConfig(**SIZE, num_local_experts=3)),
    "a prefix": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4)),
}

pytestmark = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="this torch has FSDP2 on GPUs only"
)


@pytest.fixture
def mesh():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.device_mesh.init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("file_size", ["10GB", "20KB"])
def test_shards_are_the_base(tmp_path, mesh, monkeypatch, name, file_size):
    torch.manual_seed(0)
    MODELS[name]().save_pretrained(tmp_path, max_shard_size=file_size)
    whole = models.read_model(tmp_path, torch.float32, None).eval()
    if name != "other names in the file":
        monkeypatch.setattr(models, "read_model", None)
    model = sharded.load(tmp_path, torch.float32, None, mesh).eval()
    assert all(type(parameter).__name__ == "DTensor" for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    ids = torch.arange(2, 30)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, whole(input_ids=ids).logits)
