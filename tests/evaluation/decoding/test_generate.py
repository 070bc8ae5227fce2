"""Decoding: the same answers as transformers' own greedy search, whatever the batch, the prefix or the memory."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from retune.errors import RetuneError, TrialFailed
from retune.evaluation.decoding.generate import Decoder, Sampling, _Row, _sample
from retune.evaluation.decoding.prefix import common_prefix, separation_cost, worth_sharing
from retune.models import load_base
from retune.study import Model


@pytest.fixture(scope="module")
def loaded(base):
    return load_base(Model(base=str(base), dtype="float32"))


def decoder(loaded, batch_size=8, context=512, model=None):
    return Decoder(model or loaded.model, loaded.tokenizer, loaded.device, context, batch_size)


class Padded:
    """A model that hides its layers, so that batches are padded and use transformers' own forward."""

    def __init__(self, model):
        self.forward, self.config = model, model.config

    def __call__(self, **settings):
        return self.forward(**settings)


def prompts(loaded, count=11, prefix=40, seed=0):
    rng = random.Random(seed)
    start = [rng.randrange(3, 300) for _ in range(prefix)]
    return [start + [rng.randrange(3, 300) for _ in range(rng.randrange(1, 30))] for _ in range(count)]


def one_at_a_time(loaded, prompts, new_tokens):
    """The reference: transformers' generate, one prompt, no padding, no shared prefix."""
    texts = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=loaded.device)
        out = loaded.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=2,
            eos_token_id=2,
        )
        texts.append(loaded.tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True))
    return texts


@pytest.mark.slow
@pytest.mark.parametrize("prefix", [0, 40])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
@pytest.mark.parametrize("padded", [False, True])
def test_same_answers_as_one_prompt_at_a_time(loaded, prefix, batch_size, padded):
    given = prompts(loaded, prefix=prefix)
    expected = one_at_a_time(loaded, given, 12)
    assert len(set(expected)) > 3  # else the test could not tell answers apart
    asked = decoder(loaded, batch_size, model=Padded(loaded.model) if padded else None)
    assert asked._packs is (not padded and loaded.device.type == "cpu")  # a GPU gets padded batches
    assert asked.complete(given, 12) == expected


def test_where_a_call_costs_much_passages_that_few_share_do_not_break_up_the_batches(loaded):
    rng = random.Random(1)

    def words(count):
        return [rng.randrange(3, 300) for _ in range(count)]

    shots, passages = words(200), [words(140) for _ in range(12)]
    given = [[*shots, *passages[k // 2], *words(20 + k % 3)] for k in range(24)]
    calls = []

    class Counted(Padded):
        def __call__(self, **settings):
            calls.append(settings["input_ids"].shape)
            return super().__call__(**settings)

    asked, found = decoder(loaded, model=Counted(loaded.model)), {}
    for price in (None, 2048):
        calls.clear()
        answers = replace(asked, call_tokens=price).complete(given, 2)
        found[price] = answers, len(calls)
    # The shots, and three batches of two tokens
    assert found[2048] == (
        one_at_a_time(loaded, given, 2),
        1 + 3 * 2,
    )
    assert found[None] == (found[2048][0], 1 + 12 + 12 * 2)  # here a call for each passage pays


def test_what_it_costs_to_compute_rows_apart():
    assert separation_cost("cpu", 128, rows=2, batch_size=32, steps=2) == 128
    # A full batch loses nothing
    assert separation_cost("cuda", 2048, rows=32, batch_size=32, steps=2) == 2048
    assert separation_cost("cuda", 2048, rows=8, batch_size=32, steps=2) == 2048 * (1 + 2 * 0.75)
    two = [[*range(400), k] for k in (1, 2)]
    assert worth_sharing(two, 0, separation_cost("cpu", 128, 2, 32, 2))
    assert not worth_sharing(two, 0, separation_cost("cuda", 2048, 2, 32, 2))


def test_equal_prompts_and_a_prompt_that_is_the_prefix(loaded):
    asked = prompts(loaded, count=3)
    asked += [asked[0], asked[0][:40]]
    assert decoder(loaded).complete(asked, 6) == one_at_a_time(loaded, asked, 6)


def test_a_row_that_ends_early_leaves_and_the_others_go_on(loaded):
    asked = prompts(loaded, count=6)
    expected = one_at_a_time(loaded, asked, 20)
    stopped = decoder(loaded).complete(asked, 20, stop=lambda text: len(text) >= 4)
    assert all(
        whole.startswith(short) and len(short) >= 4 for whole, short in zip(expected, stopped, strict=True)
    )
    assert any(len(short) < len(whole) for whole, short in zip(expected, stopped, strict=True))


def test_the_end_of_text_token_ends_a_row(loaded):
    asked = prompts(loaded, count=4)
    ids = torch.tensor([asked[2]], device=loaded.device)
    first = int(loaded.model(ids).logits[0, -1].argmax())

    class EndsThere:
        pad_token_id, eos_token_id, decode = 2, first, loaded.tokenizer.decode

    whole = decoder(loaded).complete(asked, 5)
    ended = Decoder(loaded.model, EndsThere, loaded.device, 512, 8).complete(asked, 5)
    assert ended[2] == ""
    assert any(ended[k] == whole[k] for k in (0, 1, 3))


def test_the_context_ends_an_answer(loaded):
    asked = prompts(loaded, count=2)
    longest = max(map(len, asked))
    short = decoder(loaded, context=longest + 2).complete(asked, 50)
    whole = decoder(loaded).complete(asked, 50)
    place = [len(prompt) for prompt in asked].index(longest)
    assert len(short[place]) < len(whole[place])
    assert whole[place].startswith(short[place])


def test_the_checkpoint_generation_config_is_not_read(loaded):
    asked = prompts(loaded, count=2)
    before = decoder(loaded).complete(asked, 5)
    kept = loaded.model.generation_config.do_sample, loaded.model.generation_config.max_length
    loaded.model.generation_config.do_sample, loaded.model.generation_config.max_length = True, 1
    assert decoder(loaded).complete(asked, 5) == before
    loaded.model.generation_config.do_sample, loaded.model.generation_config.max_length = kept


def test_sampled_answers_depend_on_seed_and_name_and_not_on_the_batch(loaded):
    asked = prompts(loaded, count=5) * 2
    names = [str(k) for k in range(10)]

    def sample(seed=3, batch_size=4, order=range(10), temperature=1.5):
        drawn = Sampling(temperature, seed).named([names[k] for k in order])
        texts = decoder(loaded, batch_size).complete([asked[k] for k in order], 8, sampling=drawn)
        return [texts[list(order).index(k)] for k in range(10)]

    first = sample()
    assert sample(batch_size=1) == sample(batch_size=64, order=range(9, -1, -1)) == first
    assert sample(seed=4) != first
    assert first[:5] != first[5:]  # the same prompts under other names
    cold = sample(temperature=1e-4)
    assert cold == decoder(loaded).complete(asked, 8)


@pytest.mark.slow
def test_tokens_are_drawn_as_often_as_they_are_likely(loaded):
    logits = torch.tensor([[0.0, 1.0, 2.0]]).expand(4000, 3)
    rows = [_Row(1, Sampling(0.5, 0, [str(k) for k in range(4000)]).rng(k)) for k in range(4000)]
    drawn = _sample(logits, rows, Sampling(0.5, 0)).bincount(minlength=3) / 4000
    assert torch.allclose(drawn, torch.softmax(logits[0] / 0.5, -1), atol=0.03)


class Small:
    """A model on a device with room for so many rows."""

    def __init__(self, model, rows, error=None):
        self.model, self.rows, self.config = model, rows, model.config
        self.error = error or torch.OutOfMemoryError("no room")
        self.calls = []

    def __call__(self, input_ids, **settings):
        self.calls.append(len(input_ids))
        if len(input_ids) > self.rows:
            raise self.error
        return self.model(input_ids=input_ids, **settings)


ON_CPU = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("room", [0, 30])
def test_where_a_shared_prefix_has_no_room_each_prompt_is_read_whole(loaded, room):
    """Either the prefix itself does not fit, or nothing fits beside it."""
    asked = prompts(loaded, prefix=120)
    expected = decoder(loaded).complete(asked, 4), decoder(loaded).likelihoods(asked, [[5, 6]] * len(asked))

    class Tight(Small):
        def __call__(self, input_ids, past_key_values=None, **settings):
            kept = 0 if past_key_values is None else past_key_values.get_seq_length()
            if (room == 0 and input_ids.shape == (1, 120)) or (
                room and 0 < kept <= 120 and input_ids.shape[1] > 1
            ):
                raise ON_CPU
            return self.model(input_ids=input_ids, past_key_values=past_key_values, **settings)

    tight = decoder(loaded, model=Tight(loaded.model, 0))
    assert tight.complete(asked, 4) == expected[0]
    assert tight.likelihoods(asked, [[5, 6]] * len(asked)) == pytest.approx(expected[1], rel=1e-5)


@pytest.mark.parametrize("way", ["shared", "padded"])
def test_prompts_near_the_end_of_the_position_table_are_answered_too(loaded, way):
    """They leave after two tokens; the others of their batch would take them beyond it."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()
    model = model.to(loaded.device)
    given = [
        prompt[:length] for prompt, length in zip(prompts(loaded, 5, 80), (62, 62, 62, 50, 40), strict=True)
    ]
    asked = replace(decoder(loaded, context=64, model=model), way=way)
    alone = replace(asked, way="without cache")
    assert asked.tokens(given, 6) == alone.tokens(given, 6)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no room"), ON_CPU, MemoryError()])
def test_too_large_a_batch_is_halved_until_it_fits(loaded, error):
    asked = prompts(loaded)
    small = Small(loaded.model, 3, error)
    assert decoder(loaded, model=small).complete(asked, 4) == decoder(loaded).complete(asked, 4)
    assert max(small.calls) > 3


def test_one_row_too_large_is_said(loaded):
    with pytest.raises(TrialFailed, match=r"one prompt of .* tokens does not fit into memory") as found:
        decoder(loaded, model=Small(loaded.model, 0)).complete(prompts(loaded, count=3, prefix=0), 4)
    assert found.value.kind == "out_of_memory"


def test_output_that_is_not_finite_is_no_answer(loaded):
    class Broken(Small):
        def __call__(self, **settings):
            out = self.model(**settings)
            out.logits[..., 0] = float("nan")
            return out

    with pytest.raises(RetuneError, match="not finite"):
        decoder(loaded, model=Broken(loaded.model, 9)).complete(prompts(loaded, count=2), 4)


def test_done_counts_every_prompt_once(loaded):
    counts = []
    decoder(loaded, 4).complete(prompts(loaded), 2, done=counts.append)
    assert sum(counts) == 11


@settings(max_examples=200)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=6))
def test_common_prefix(rows):
    length = common_prefix(rows)
    assert all(row[:length] == rows[0][:length] and len(row) > length for row in rows)
    longer = length + 1
    assert any(row[:longer] != rows[0][:longer] or len(row) <= longer for row in rows)
