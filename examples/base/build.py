"""Build the tiny base model of the demo from nothing: its text, its tokenizer and its weights.

From the repository root::

    python -m examples.base.build            # writes tiny/ beside this file, in some minutes on one core
    python -m examples.base.build --out DIR --steps 50

A Llama architecture of 0.8 million parameters, pre-trained on the plain text of `examples.base.text`. Its
weights are kept as bfloat16. The tokenizer comes out the same, byte for byte, everywhere; the weights depend
on the machine in their last digits.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.base.text import documents

VOCABULARY = 1536
TOKENIZER_DOCUMENTS = 12_000
BLOCK = 256
BATCH = 4
STEPS = 2600
MUON_RATE = 1e-2
ADAM_RATE = 4e-3
# A line break is always a token of its own, so that a prompt ending in one is cut like the same text within a
# longer one; so is every digit.
WORDS = Regex(r"\n| ?[A-Za-z]+| ?\d| ?[^\sA-Za-z\d]+|[^\S\n]+(?!\S)|\s")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the first documents; like Llama's it puts ``<s>`` before a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(WORDS, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.islice(documents(seed=0), TOKENIZER_DOCUMENTS), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=2048,
    )


def blocks(tokenizer: PreTrainedTokenizerFast, count: int, seed: int) -> torch.Tensor:
    """Return documents laid end to end and cut into `count` rows of `BLOCK` token ids."""
    wanted, ids = count * BLOCK, []
    stream = documents(seed)
    while len(ids) < wanted:
        for row in tokenizer(list(itertools.islice(stream, 1000)))["input_ids"]:
            ids += [*row, tokenizer.eos_token_id]
    return torch.tensor(ids[:wanted]).view(count, BLOCK)


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return the untrained model."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def pretrain(model: LlamaForCausalLM, rows: torch.Tensor, held_out: torch.Tensor) -> None:
    """Train `model` in place on `rows`, each seen once, and print the losses (nats per token)."""
    steps = len(rows) // BATCH
    # Muon, made for the matrices inside a network, learns this text in a third of the steps that AdamW takes.
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() < 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.01),
        torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]

    def share(step: int) -> float:  # of the full rate: up in 5 % of the steps, then down to 0
        return min((step + 1) / (0.05 * steps), 1 - step / steps)

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, share) for optimizer in optimizers]
    started = time.monotonic()
    for step, batch in enumerate(rows.split(BATCH), start=1):
        loss = model(input_ids=batch, labels=batch).loss
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in (*optimizers, *schedules):
            part.step()
        if step % 200 == 0 or step == steps:
            held = held_out_loss(model, held_out)
            seconds = time.monotonic() - started
            print(
                f"step {step}: training {loss.item():.3f}, held-out {held:.3f}, {seconds:.0f} s", flush=True
            )


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, rows: torch.Tensor) -> float:
    """Return the mean loss over `rows` in nats per token."""
    losses = [model(input_ids=batch, labels=batch).loss.item() for batch in rows.split(BATCH)]
    return sum(losses) / len(losses)


def main() -> None:
    """Build and save the base."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tiny", help="folder to write to")
    parser.add_argument(
        "--steps", type=int, default=STEPS, help="training steps; 0 writes the tokenizer only"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(given.out)
    if given.steps == 0:
        return
    model = new_model(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    pretrain(model, blocks(tokenizer, given.steps * BATCH, seed=1), blocks(tokenizer, 32, seed=2))
    model.to(torch.bfloat16).save_pretrained(given.out)


if __name__ == "__main__":
    main()
