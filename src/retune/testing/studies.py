"""A study that takes seconds: a tiny random base and a few generated records, for contracts with real training."""

from __future__ import annotations

import json
from pathlib import Path

from retune.study import Study, parse


def make_base(folder: Path, seed: int = 1) -> Path:
    """Save a Llama of two layers with random weights and a byte tokenizer; return its folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate(["<s>", "</s>", *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocab), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_study(folder: Path, engine: str = "local", trials: int = 3, seed: int = 0) -> Study:
    """Write base and data below `folder` and return a study of them that takes seconds.

    Args:
        folder: base, data, artifacts and MLflow's database go there.
        engine: its `engine.kind`. trials: its `search.trials`. seed: its `seed`.
    """
    base = folder / "base"
    if not base.exists():
        make_base(base)
        records = [{"instruction": f"Repeat {k}: {k * 7}", "output": str(k * 7)} for k in range(24)]
        (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return parse(
        {
            "name": "contract",
            "seed": seed,
            "model": {"base": str(base)},
            "data": {
                "sources": [{"format": "jsonl", "uri": str(folder / "data.jsonl")}],
                "train": 12,
                "validation": 6,
                "max_length": 256,
            },
            "training": {"epochs": 1},
            "search": {"algorithm": "random", "trials": trials, "repeats": 0, "parallel": 1},
            "engine": {"kind": engine, "threads": 1},
            "promote": {"model": "contract"},
            "artifacts": {"uri": str(folder / "artifacts")},
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        },
        "contract",
    )
