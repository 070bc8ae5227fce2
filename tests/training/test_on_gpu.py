"""What only a GPU can show: FlashAttention with record borders, 4 bits, and Llama-2-7B's shape in the memory there is.

`make test-gpu` runs this with all of tests/training, tests/trials and tests/evaluation and prints the peaks. Without a GPU all of it skips.
"""

import time

import pytest
import torch

from retune import models
from retune.data.tokens import pack
from retune.study import Model, Training
from retune.training import attention, lora, lora_linear, memory
from retune.training.attention import segments
from retune.training.devices import Devices
from retune.training.loss import loss_sum
from retune.training.model_attention import by_segments
from retune.training.passes import Passes
from retune.training.resident import ResidentBase
from retune.trials.run_trial import run_trial
from tests.training.conftest import make_base, make_study

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
GIB = 1 << 30


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("scale", [None, 0.1])
def test_flash_attention_equals_one_record_at_a_time(dtype, key_heads, scale):
    torch.manual_seed(0)
    lengths = [70, 1, 33]
    query = torch.randn(1, 4, 104, 64, device="cuda", dtype=dtype, requires_grad=True)
    key, value = (
        torch.randn(1, key_heads, 104, 64, device="cuda", dtype=dtype, requires_grad=True) for _ in "kv"
    )
    records, options = segments(lengths, lengths, query.device), attention.AttentionOptions(scale)
    weigh = torch.randn(1, 104, 4, 64, device="cuda", dtype=dtype)
    found = []
    for attend in (attention.attend, attention._attend_by_record):
        out = attend(query, key, value, records, options)
        found.append((out, *torch.autograd.grad((out * weigh).sum(), (query, key, value))))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("model", [{"dtype": "bfloat16"}, {"dtype": "float16"}, {"quantization": "nf4"}])
def test_a_trial_in_each_precision(data, tmp_path, task, model):
    """Near to float32's loss; in 4 bits the base is another one, so there only that it learns."""
    if "quantization" in model:
        pytest.importorskip("bitsandbytes")
    folder = make_base(tmp_path / "base", hidden=64)
    losses = {}
    for name, section in {"float32": {"dtype": "float32"}, "tried": model}.items():
        base = ResidentBase(Model(base=str(folder), **section))
        study = make_study(folder).model_copy(update={"model": base.model})
        untuned = base.evaluate(None, data, study)
        record = run_trial(study, data, task.model_copy(update={"folder": str(tmp_path / name)}), base)
        assert record.status == "completed", record.reason
        assert record.values["validation_loss"] < untuned
        losses[name] = record.values["validation_loss"]
    if "dtype" in model:
        assert losses["tried"] == pytest.approx(losses["float32"], rel=0.05)


def seven_billion():
    """Llama-2-7B's shape in bfloat16 with random weights, made on the GPU."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        max_position_embeddings=4096, attn_implementation="sdpa",
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.to_empty(device="cuda").requires_grad_(False)
    model.model.rotary_emb = LlamaRotaryEmbedding(config, device="cuda")
    for name, parameter in model.named_parameters():
        parameter.fill_(1.0) if name.endswith("norm.weight") else parameter.normal_(std=0.02)
    return model.eval()


@pytest.fixture(scope="module")
def seven():
    if torch.cuda.get_device_properties(0).total_memory < 75 * GIB:
        pytest.skip("the shape of 7B in bfloat16 is meant for 80 GB")
    yield seven_billion()
    torch.cuda.empty_cache()


@pytest.mark.slow
@pytest.mark.parametrize("records", ["Alpaca's", "4,096 tokens"])
@pytest.mark.parametrize("allowed", [None, 60, 24])
def test_batches_of_32_train_at_7b(seven, records, allowed, capsys):
    """With all of the memory, and where the allocator is told to refuse more than 60 or 24 GiB, which no estimate knows."""
    torch.manual_seed(0)
    lengths = [4096] * 32 if records == "4,096 tokens" else torch.randint(60, 310, (32,)).tolist()
    tokens = pack(
        [(torch.randint(3, 32000, (n,)).tolist(), [place > n // 3 for place in range(n)]) for n in lengths]
    )
    notes = []
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(1.0 if allowed is None else allowed * GIB / total)
    memory.reset_peak(seven.device)
    try:
        with (
            by_segments(seven),
            lora.adapted(
                seven,
                Training(
                    rank=8, alpha=32, dropout=0.1, learning_rate=1e-4, target_modules=["q_proj", "v_proj"]
                ),
                "x",
                0,
            ) as adapted,
        ):
            lora_linear.install(adapted)
            adapted.train()
            trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
            passes = Passes(adapted, seven, tokens, trained, Devices(), loss_sum, lambda x: x, notes.append)
            start = time.monotonic()
            loss = passes.add_gradients(list(range(32)), int(tokens.counted.sum()), 0, "")
            mean = float(loss) / int(tokens.counted.sum())
            seconds = time.monotonic() - start
            norms = [
                float(parameter.grad.norm()) for parameter in trained if "lora_B" in _name(adapted, parameter)
            ]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert 9 < mean < 14  # about ln 32,000 for random weights
    assert all(norm > 0 for norm in norms)
    with capsys.disabled():
        peak = memory.peak(torch.device("cuda"))["peak_gpu_gib"]
        print(
            f"\n7B, 32 records of {records} ({sum(lengths):,} tokens), {allowed or 'all'} GiB: peak {peak:.1f} GiB, "
            f"{seconds:.1f} s, computes again: {passes.budget.recomputes}, {[note.text for note in notes]}"
        )


def _name(model, parameter):
    return next(name for name, other in model.named_parameters() if other is parameter)


def test_the_gpu_is_what_the_base_is_on(base):
    assert base.load().device.type == "cuda"
    assert models.pick_dtype(Model(base="x"), base.load().device) != torch.float32
