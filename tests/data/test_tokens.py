import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from retune.data.tokens import pack, tokenize
from retune.errors import InputError

START, END = 0, 1


def tokenizer(starts=True, ends=False):
    """A tokenizer with one token per byte, which adds the start token in front (as Llama's) and, on request, the end token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={t: n for n, t in enumerate(["<s>", "</s>", *letters])}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    single = ("<s> " if starts else "") + "$A" + (" </s>" if ends else "")
    raw.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", START), ("</s>", END)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")


def test_prompt_then_completion_then_end():
    found = tokenize([("ab", "cde"), ("f", "g")], tokenizer(), 100)
    a = {letter: tokenizer().convert_tokens_to_ids(letter) for letter in "abcdefg"}
    assert found.ids.tolist() == [
        START,
        a["a"],
        a["b"],
        a["c"],
        a["d"],
        a["e"],
        END,
        START,
        a["f"],
        a["g"],
        END,
    ]
    assert found.counted.int().tolist() == [0, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1]
    assert found.lengths.tolist() == [7, 4]
    assert found.counts.tolist() == [4, 2]
    assert (found.cut, found.dropped, len(found)) == (0, 0, 2)


def test_all_counts_everything_but_the_first_token_of_each_record():
    found = tokenize([("ab", "c"), ("d", "e")], tokenizer(), 100, "all")
    assert found.counted.int().tolist() == [0, 1, 1, 1, 1, 0, 1, 1, 1]


def test_a_tokenizer_that_closes_every_text_does_not_close_the_prompt():
    found = tokenize([("ab", "c")], tokenizer(ends=True), 100)
    assert (found.ids == END).sum() == 1
    assert found.ids[-1] == END


def test_a_text_begins_with_the_end_token_where_the_tokenizer_says_so():
    """OPT has one token for both; a plain text has no prompt, so that token is all there is in front."""
    raw = tokenizer().backend_tokenizer
    raw.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", END)])
    opt = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="</s>", eos_token="</s>")
    found = tokenize([("", "ab"), ("a", "b")], opt, 100)
    a, b = opt.convert_tokens_to_ids(["a", "b"])
    assert found.ids.tolist() == [END, a, b, END, END, a, b, END]
    assert found.counted.int().tolist() == [0, 1, 1, 1, 0, 0, 1, 1]


def test_cut_at_the_end_and_nothing_left_is_left_out():
    found = tokenize([("ab", "cdefgh"), ("abcdefgh", "i"), ("a", "b")], tokenizer(), 6)
    assert found.lengths.tolist() == [6, 4]
    assert found.counts.tolist() == [3, 2]
    assert (found.cut, found.dropped) == (2, 1)


def test_without_start_token_the_first_token_is_never_counted():
    found = tokenize([("", "abc")], tokenizer(starts=False), 100)
    assert found.counted.int().tolist() == [0, 1, 1, 1]


def test_nothing_to_learn_is_refused():
    with pytest.raises(InputError, match="at least one record"):
        tokenize([], tokenizer(), 10)
    with pytest.raises(InputError, match="must have a token to learn"):
        tokenize([("abcdefgh", "i")], tokenizer(), 6)


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=8), min_size=1, max_size=8))
def test_pack_keeps_every_record_that_has_something_to_learn(flags):
    kept = [f for f in flags if any(f[1:])]
    if not kept:
        with pytest.raises(InputError):
            pack([(list(range(len(f))), f) for f in flags])
        return
    found = pack([(list(range(len(f))), f) for f in flags])
    assert found.lengths.tolist() == [len(f) for f in kept]
    assert found.counts.tolist() == [sum(f[1:]) for f in kept]
    assert found.dropped == len(flags) - len(kept)
    assert torch.equal(found.ids.long(), torch.cat([torch.arange(len(f)) for f in kept]))
