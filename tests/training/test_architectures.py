"""Every causal architecture of the installed transformers that can be built small: tuned and scored as by the plain forward.

Each architecture is compared with its row of the table in docs/models.md. To write the table: ``RETUNE_WRITE_DOCS=1``, in one
process.
"""

import os
import re
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from retune.data.batches import flatten
from retune.errors import InputError
from retune.evaluation.decoding import self_check as answers
from retune.study import Training
from retune.training import lora, lora_linear, plain_forward, self_check
from retune.training.loss import loss_sum
from retune.training.model_attention import using_attention

from . import zoo
from .test_loss import random_tokens

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
SETTING = Training(rank=4, alpha=8, dropout=0.0, learning_rate=1e-3)
NAMES = zoo.names()
WRITING = bool(os.environ.get("RETUNE_WRITE_DOCS"))
MARK = "<!-- table -->\n| Architecture | Losses | Answers | Why not faster |\n|---|---|---|---|\n"
ROWS: dict[str, str] = {}
REFUSED = {"prophetnet", "xlm", "xlnet"}  # they see later tokens
TOKENS = random_tokens([9, 41, 3, 20], zoo.VOCABULARY)


class Numbers:
    """A tokenizer whose texts are the tokens' numbers."""

    pad_token_id, eos_token_id, all_special_ids = 0, 2, (0, 1, 2)

    def __len__(self):
        return zoo.VOCABULARY

    def decode(self, tokens, **options):
        return " ".join(map(str, tokens))


def plain_losses(tuned, core):
    """The sum of -log p, each record alone, by nothing of ours but the reset of a rope that remembers."""
    total = torch.zeros(())
    with using_attention(core, "eager"):
        for record in range(len(TOKENS)):
            span = slice(int(TOKENS.offsets[record]), int(TOKENS.offsets[record + 1]))
            ids, counted = TOKENS.ids[span].long(), TOKENS.counted[span][1:]
            plain_forward.reset_rotary(core)
            logits = tuned(input_ids=ids[None], use_cache=False).logits[0, :-1]
            total = total + cross_entropy(logits.float()[counted], ids[1:][counted], reduction="sum")
    return total


def plain_answer(core, prompt, eager):
    """Greedy tokens, the whole sequence read anew for each, and how close each choice was."""
    ids, made, gaps = list(prompt), [], []
    with using_attention(core, "eager" if eager else core.config._attn_implementation), torch.no_grad():
        for _ in range(4):
            logits = core(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            first, second = logits.topk(2)[0].tolist()
            gaps.append(first - second)
            ids.append(int(logits.argmax()))
            if ids[-1] == Numbers.eos_token_id:
                break
            made.append(ids[-1])
    return made, min(gaps)


def tuning(model):
    """Check that the way taken gives the plain losses and gradients of an adapter, and return it."""
    with lora.adapted(
        model, SETTING.model_copy(update={"target_modules": zoo.targets(model)}), "x", 0
    ) as tuned:
        lora.add_noise(tuned)
        found = self_check.check(tuned, None, 64, train=True)
        tuned.eval()
        weights = [parameter for parameter in tuned.parameters() if parameter.requires_grad]

        def gradients(loss):
            made = torch.autograd.grad(loss, weights, allow_unused=True)
            return torch.cat(
                [
                    (torch.zeros_like(w) if g is None else g).flatten()
                    for g, w in zip(made, weights, strict=True)
                ]
            )

        flat = found.way == "flattened"
        with (
            self_check.reading(tuned, found),
            lora_linear.installed(tuned) if flat else using_attention(model, "eager"),
        ):
            ours = loss_sum(tuned, flatten(TOKENS, range(len(TOKENS))))
            of_ours = gradients(ours)
        right = plain_losses(tuned, model)
        of_right = gradients(right)
    assert float(ours) == pytest.approx(float(right), rel=1e-6)
    assert float((of_ours - of_right).norm() / of_right.norm()) < 1e-4
    return found


def scoring(model):
    """Check that prompts are answered as by the plain forward, and return the way."""
    draws = torch.Generator().manual_seed(1)
    words = torch.randint(4, zoo.VOCABULARY, (90,), generator=draws).tolist()
    prompts = [words[:40] + words[40 + n : 42 + 2 * n] for n in (0, 5, 9)] + [words[60:64], words[70:81]]
    with answers.decoding(model, Numbers(), torch.device("cpu"), 128, 4) as (decoder, found):
        made = decoder.tokens(prompts, 4)
    if not found.reason.startswith("its rotary"):  # there the cache keeps what a shorter length gave
        for prompt, answer in zip(prompts, made, strict=True):
            right, gap = plain_answer(model, prompt, found.eager)
            assert answer == right or gap < 1e-3
    return found


def short(reason):
    """A reason without what differs from machine to machine."""
    text = re.sub(r" by [\d.]+(e[+-]\d+)?\b", "", reason)
    text = re.sub(r", rounding allows .*", "", text)
    return re.sub(r"((?:pass through it|it fails) ?(?:with|:)).*", r"\1 an error", text).replace(
        ": an", ", with an"
    )


def documented():
    """The ways of each architecture in docs/models.md, for losses and for answers, and why they are not faster."""
    lines = PAGE.read_text().partition(MARK)[2].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {name: tuple(rest) for name, *rest in cells}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_tuned_and_scored_as_by_the_plain_forward(name):
    model = zoo.build(name)
    row = documented().get(name)
    if model is None:
        assert row is None or WRITING
        pytest.skip("cannot be built small from its config alone")
    try:
        tuned, scored = tuning(model), scoring(model)
        assert name not in REFUSED
        why = "; ".join(short(text) for text in (tuned.reason, scored.reason) if text)
        found = (tuned.way, scored.way + (", eager" if scored.eager else ""), why)
    except InputError as error:
        assert name in REFUSED
        why = short(error.problems[0])
        found = ("refused", "refused", why)
    ROWS[name] = f"| {name} | {' | '.join(found)} |\n"
    if not WRITING:
        assert row is not None, f"not in the table: {ROWS[name]}"
        # The reason may name another of several differences where a processor rounds differently
        assert (row[:2], bool(row[2])) == (found[:2], bool(why)), f"the table says {row}, found {found}"


def test_the_page_lists_many_architectures():
    if WRITING:
        assert len(ROWS) >= 40, "run the whole file in one process"
        PAGE.write_text(PAGE.read_text().partition(MARK)[0] + MARK + "".join(ROWS.values()))
    rows = documented()
    assert set(rows) <= set(NAMES)
    assert len(rows) >= 40
    assert sum(losses == "flattened" for losses, _, _ in rows.values()) >= 40
