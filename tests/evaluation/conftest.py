"""A base model of a few thousand random weights, adapters for it, and the real data if it is available."""

import os
from pathlib import Path

import pytest

TEXT = [
    "The following are multiple choice questions (with answers) about  anatomy.",
    "Which bone is the longest in the human body?\nA. femur\nB. tibia\nC. skull\nD. hand\nAnswer: A",
    "Passage: In the city, 21.8% are under the age of 18. Question: How many? Answer: 3",
    "def add(a, b):\n    return a + b\n\n\nTrue and not False is\nAnswer: True",
]


def make_base(folder: Path, *, hidden: int = 32, context: int = 512, seed: int = 0, end: bool = True) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=context, initializer_range=0.2,
        bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_adapter(base: Path, folder: Path, seed: int = 1, trained: float = 0.0, **settings) -> Path:
    """Save an adapter of random weights; `settings` are PEFT's, `trained` is noise on all that would be trained."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    usual = {"r": 4, "lora_alpha": 64, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    config = LoraConfig(**{**usual, **settings}, task_type="CAUSAL_LM")
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if trained and parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * trained)
    tuned.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def adapter(base, tmp_path_factory) -> Path:
    return make_adapter(base, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = Path(os.environ.get("RETUNE_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: set RETUNE_DATA or put it at {folder}")
    return folder


def write_mmlu(folder: Path, subjects=("anatomy", "formal_logic"), tests: int = 7) -> Path:
    for subject in subjects:
        for split, count in (("dev", 5), ("test", tests)):
            (folder / split).mkdir(parents=True, exist_ok=True)
            rows = [
                f'What is {k} plus {subject[:3]} {"x" * k}?,one,"t,wo",three,{k},{"ABCD"[k % 4]}\n'
                for k in range(count)
            ]
            (folder / split / f"{subject}_{split}.csv").write_text("".join(rows))
    return folder


@pytest.fixture
def mmlu(tmp_path) -> Path:
    return write_mmlu(tmp_path / "mmlu")


@pytest.fixture
def bbh(tmp_path) -> Path:
    import json

    folder = tmp_path / "bbh"
    folder.mkdir()
    for name in ("navigate", "snarks"):
        examples = [
            {"input": f"{name} question {k}", "target": "Yes" if k % 2 else "No"}
            for k in range(3 + (4 if name == "snarks" else 2))
        ]
        (folder / f"{name}.json").write_text(json.dumps({"canary": "-", "examples": examples}))
    return folder
