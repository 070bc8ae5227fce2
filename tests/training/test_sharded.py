"""A base loaded by shards answers as one that was loaded whole. Two processes: see test_devices."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import distributed
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)  # fmt: skip

from retune import models
from retune.data.batches import flatten
from retune.training import plain_forward, sharded
from retune.training.devices import Devices
from retune.training.guarded import OutOfMemory, guarding
from retune.training.loss import loss_sum
from tests.training.conftest import SIZE

from .test_loss import random_tokens

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


class Full(torch.autograd.Function):
    """Runs out of memory in the backward."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise torch.OutOfMemoryError("CUDA out of memory in the backward pass.")


def full(x):
    raise torch.OutOfMemoryError("CUDA out of memory.")


# Where memory runs out: a module of the model, whether in its forward or its backward, before or behind it
FULL = {
    "layer, forward": ("layer", full),
    "layer, backward": ("layer", Full.apply),
    "head, forward": ("norm", full),
    "head, backward": ("norm", Full.apply),
    "embedding, backward": ("embedding", Full.apply),
}


@pytest.mark.parametrize("where", FULL)
@pytest.mark.parametrize("name", ["one tensor", "several tensors"])
def test_memory_that_runs_out_anywhere_ends_no_process(tmp_path, mesh, monkeypatch, name, where):
    """Nothing leaves the pass but `OutOfMemory`, at its end; and the next pass gives the gradients of a base that is whole."""
    torch.manual_seed(0)
    if name == "one tensor":
        LlamaForCausalLM(LlamaConfig(**SIZE)).save_pretrained(tmp_path)
    else:  # a layer gives its attention too
        config = GPTJConfig(vocab_size=97, n_embd=32, n_layer=2, n_head=4, rotary_dim=8, n_positions=64)
        GPTJForCausalLM(config).save_pretrained(tmp_path)
    setting = LoraConfig(r=2, target_modules=["q_proj", "embed_tokens", "wte"], init_lora_weights=False)

    def tuned(core):
        torch.manual_seed(1)
        return get_peft_model(core, setting).train(False)

    devices = Devices()
    devices.sharded = True
    batch = flatten(random_tokens([9, 21], 97), [0, 1])

    def gradients(model):
        core = plain_forward.transformers_model(model)
        with (
            plain_forward.by_plain_forward(core, reading=plain_forward.Reading(True, True)),
            guarding(core) as guard,
        ):
            loss = loss_sum(model, batch)
            guard.agree(devices)
            loss.backward()
            guard.agree(devices)
        found = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
        for parameter in model.parameters():
            parameter.grad = None
        return found

    right = gradients(tuned(models.read_model(tmp_path, torch.float32, "eager")))
    core = sharded.load(tmp_path, torch.float32, "eager", mesh)
    model = tuned(core)
    torch.testing.assert_close(gradients(model), right)
    body = core.base_model
    module = {
        "layer": (body.layers if name == "one tensor" else body.h)[1],
        "norm": body.norm if name == "one tensor" else body.ln_f,
        "embedding": body.get_input_embeddings(),
    }[FULL[where][0]]
    what = FULL[where][1]
    if module is body.get_input_embeddings():
        handle = module.register_forward_hook(lambda module, given, output: what(output))
    else:
        inner = module.mlp if FULL[where][0] == "layer" else module
        handle = inner.register_forward_pre_hook(lambda module, given: (what(given[0]),))
    with pytest.raises(OutOfMemory, match="CUDA out of memory"):
        gradients(model)
    handle.remove()
    for parameter in model.parameters():
        parameter.grad = None
    torch.testing.assert_close(gradients(model), right)
