"""Which tokens of a conversation are the assistant's: compared with the text of its turns, for many templates."""

import signal
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from retune.data.chat import ChatTemplate, TurnsNotFound
from retune.data.encode import Encoder, tokenize_examples
from retune.data.example import Example
from retune.data.prompts import Prompt
from retune.errors import InputError
from tests.conftest import wait_for
from tests.data.test_tokens import tokenizer as by_bytes

TINY = Path(__file__).parents[2] / "examples" / "base" / "tiny"
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|end|>", "[INST]", "[/INST]"]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The next turn's own special token is no end: the model closes with </s>.
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# Writes an empty thought into the last answer only, as Qwen3 does.
THINKS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.last %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
LAST_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'user' and loop.index0 >= (messages | length) - 2 %}{{ '[INST] now ' + m.content + '[/INST]' }}"
    "{% elif m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)


@cache
def merging():
    """The demo's own tokenizer: byte-level BPE with merges, and special tokens for turns."""
    found = AutoTokenizer.from_pretrained(TINY)
    found.add_special_tokens({"additional_special_tokens": SPECIAL})
    return found


@cache
def spaced():
    """A tokenizer that puts a space in front of every text, as SentencePiece's do."""
    pieces = [chr(n) for n in range(32, 127)] + ["\n", "▁"]
    vocabulary = {t: n for n, t in enumerate(["<unk>", "<s>", "</s>", *pieces])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    raw.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ["<s>", "</s>", *SPECIAL]])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@cache
def single_bytes():
    found = by_bytes(starts=False)
    found.add_special_tokens({"additional_special_tokens": SPECIAL})
    return found


TOKENIZERS = {"merging": merging, "bytes": single_bytes, "spaced": spaced}
said = st.text(st.sampled_from("abc \n.:é|<>1"), min_size=1, max_size=12).filter(str.strip)
plain = st.text(st.sampled_from("abc .:1"), min_size=1, max_size=12).filter(str.strip)


@st.composite
def conversations(draw, text=said):
    pairs = draw(st.lists(st.tuples(text, text), min_size=1, max_size=3))
    return [turn for asked, answer in pairs for turn in (("user", asked), ("assistant", answer))]


def decoded(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def parts(tokenizer, ids, counted):
    """Return the text of each run of counted tokens, and of all tokens."""
    runs, run = [], []
    for token, flag in [*zip(ids, counted, strict=True), (None, False)]:
        if flag:
            run.append(token)
        elif run:
            runs.append(decoded(tokenizer, run))
            run = []
    return runs, decoded(tokenizer, ids)


EXPECTED = {
    "chatml": (CHATML, lambda text, last: text + "<|im_end|>"),
    "marked": (MARKED, lambda text, last: text + "<|im_end|>"),
    "zephyr": (ZEPHYR, lambda text, last: text + "</s>"),
    "llama2": (LLAMA2, lambda text, last: " " + text.strip() + " </s>"),
    "thinks": (THINKS, lambda text, last: ("<think>\n\n</think>\n\n" if last else "") + text + "<|im_end|>"),
}


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("kind", ["merging", "bytes"])
@given(turns=conversations())
@settings(max_examples=40, deadline=None)
def test_counted_tokens_are_the_assistants_text_and_its_end(name, kind, turns):
    template, answer = EXPECTED[name]
    tokenizer = TOKENIZERS[kind]()
    ids, counted = ChatTemplate(tokenizer, template).encode(turns)
    runs, whole = parts(tokenizer, ids, counted)
    answers = [text for role, text in turns if role == "assistant"]
    assert runs == [answer(text, n == len(answers) - 1) for n, text in enumerate(answers)]
    rendered = tokenizer.apply_chat_template(
        [{"role": role, "content": text} for role, text in turns], chat_template=template, tokenize=False
    )
    assert whole == rendered


@pytest.mark.parametrize("name", ["chatml", "marked", "zephyr"])
@given(turns=conversations(plain))
@settings(max_examples=40, deadline=None)
def test_a_tokenizer_that_puts_spaces_in_front_puts_none_inside(name, turns):
    template, answer = EXPECTED[name]
    tokenizer = spaced()
    ids, counted = ChatTemplate(tokenizer, template).encode(turns)
    answers = [text for role, text in turns if role == "assistant"]
    joint = tokenizer(
        tokenizer.apply_chat_template(
            [{"role": r, "content": t} for r, t in turns], chat_template=template, tokenize=False
        ),
        add_special_tokens=False,
    )["input_ids"]
    assert decoded(tokenizer, ids) == decoded(tokenizer, joint)
    runs, _ = parts(tokenizer, ids, counted)
    assert runs == [answer(text, False) for text in answers]


@given(turns=conversations(plain))
@settings(max_examples=40, deadline=None)
def test_answers_that_begin_with_a_space_are_located_where_decoding_drops_it(turns):
    """Llama 2's template with its tokenizer as `tokenizers` has it: a space in front of every text, dropped in decoding."""
    raw = Tokenizer.from_str(spaced().backend_tokenizer.to_str().replace("INST]", "TURN]"))
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    chat = ChatTemplate(tokenizer, LLAMA2)
    ids, counted = chat.encode(turns)
    assert ids == tokenizer(chat.spans(turns)[0], add_special_tokens=False)["input_ids"]
    runs, _ = parts(tokenizer, ids, counted)
    assert runs == [text.strip() + " </s>" for role, text in turns if role == "assistant"]


@given(turns=conversations())
@settings(max_examples=30, deadline=None)
def test_the_prompt_of_each_answer_is_what_the_model_is_asked_with(turns):
    """The tokens before an answer are those of the generation prompt, so that training and asking agree."""
    tokenizer = merging()
    chat = ChatTemplate(tokenizer, CHATML)
    ids, counted = chat.encode(turns[:2])
    asked = tokenizer(chat.ask(turns[:1]), add_special_tokens=False)["input_ids"]
    assert ids[: counted.index(True)] == asked


def test_without_special_tokens_the_end_of_text_closes_the_last_answer():
    tokenizer = single_bytes()
    ids, counted = ChatTemplate(tokenizer, PLAIN).encode([("user", "a"), ("assistant", "b c")])
    runs, whole = parts(tokenizer, ids, counted)
    assert (runs, whole) == ([" b c</s>"], "user: a\nassistant: b c</s>")


def test_what_cannot_be_told_is_refused_by_name():
    tokenizer = single_bytes()
    two = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    with pytest.raises(TurnsNotFound, match="renders earlier turns differently"):
        ChatTemplate(tokenizer, LAST_SYSTEM).encode(two)
    for role in ("user", "assistant"):
        changes = CHATML.replace("m.content", f"(m.content | upper if m.role == '{role}' else m.content)")
        with pytest.raises(TurnsNotFound, match=f"changes what the {role} said"):
            ChatTemplate(tokenizer, changes).encode(two)
    no_system = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system, please') }}{% endif %}" + CHATML
    )
    with pytest.raises(TurnsNotFound, match="rejects the conversation: no system, please"):
        ChatTemplate(tokenizer, no_system).encode([("system", "s"), *two])
    drops = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
    with pytest.raises(TurnsNotFound, match="leaves out or changes what the system said"):
        ChatTemplate(tokenizer, drops).encode([("system", "be kind"), *two])


def test_a_template_that_never_ends_is_refused(monkeypatch):
    """Templates come with a base, from strangers. An alarm that was set before still fires."""
    monkeypatch.setattr("retune.data.chat._SECONDS", 0.5)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{{ i }}{% endfor %}{% endfor %}"
    alarms = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: alarms.append(number))
    left, _ = signal.setitimer(signal.ITIMER_REAL, 2.0)
    try:
        with pytest.raises(TurnsNotFound, match="it takes longer than"):
            ChatTemplate(merging(), endless).encode([("user", "Hi"), ("assistant", "Hello")])
        wait_for(lambda: alarms)
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, left)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("{{ 'a' * 30000000 }}", "renders the conversation as 30,000,"),
        ("{{ ''.__class__.__mro__ }}", "is unsafe"),
    ],
)
def test_a_template_that_is_an_attack_is_refused(more, words):
    with pytest.raises(TurnsNotFound, match=words):
        ChatTemplate(merging(), CHATML + more).encode([("user", "Hi"), ("assistant", "Hello")])


def test_turns_of_tools_are_kept_under_any_template():
    tokenizer = single_bytes()
    turns = [("user", "weather?"), ("assistant", '{"name": "get"}'), ("tool", "18 C"), ("assistant", "Mild.")]
    ids, _ = ChatTemplate(tokenizer, CHATML).encode(turns)
    assert "<|im_start|>tool\n18 C<|im_end|>" in decoded(tokenizer, ids)
    strict = CHATML.replace(
        "{% for m in messages %}", "{% for m in messages if m.role in ('user', 'assistant') %}"
    )
    ids, counted = ChatTemplate(tokenizer, strict).encode(turns)
    assert "<|im_start|>user\n18 C<|im_end|>" in decoded(tokenizer, ids)
    assert parts(tokenizer, ids, counted)[0] == ['{"name": "get"}<|im_end|>', "Mild.<|im_end|>"]


def talk(*texts, row=1):
    turns = [("user" if n % 2 == 0 else "assistant", text) for n, text in enumerate(texts)]
    return Example(texts[0], "", texts[1], "x.jsonl", row, messages=tuple(turns))


def test_refused_records_are_named_with_what_to_do():
    encoder = Encoder(single_bytes(), Prompt(kind="chat", text=LAST_SYSTEM))
    with pytest.raises(InputError) as caught:
        list(encoder.encode([talk("a", "b"), *(talk("a", "b", "c", "d", row=n) for n in range(2, 9))]))
    messages = caught.value.problems
    assert messages[0].startswith("x.jsonl, record 2: the template renders")
    assert messages[3] == "and 4 more records"
    assert "{% generation %}" in messages[4]


def test_a_base_without_chat_template_is_refused():
    with pytest.raises(
        InputError, match="no chat template, which `prompt: chat` needs; write `prompt: alpaca`"
    ):
        Encoder(single_bytes(), Prompt(kind="chat"))


def test_alpaca_and_none_for_conversations():
    tokenizer = single_bytes()
    found = tokenize_examples([talk("a", "b", "c", "d")], tokenizer, Prompt(), 1000)
    text = decoded(tokenizer, found.ids.tolist())
    assert text.endswith(
        "### Instruction:\na\n\n### Response:b</s>\n\n### Instruction:\nc\n\n### Response:d</s>"
    )
    assert parts(tokenizer, found.ids.tolist(), found.counted.tolist())[0] == ["b</s>", "d</s>"]
    with pytest.raises(
        InputError, match="a conversation of 2 answers needs `prompt: chat` or `prompt: alpaca`"
    ):
        tokenize_examples([talk("a", "b", "c", "d")], tokenizer, Prompt(kind="none"), 1000)
    single = Example("ask ", "", "said", "x", 1, system="Be kind.")
    for how, asked in [
        (Prompt(kind="none"), "Be kind.\n\nask "),
        (Prompt(kind="fields", text="{system} Q: {prompt}\nA:"), "Be kind. Q: ask \nA:"),
        (Prompt(kind="fields", text="Q: {instruction} ({input})\nA:"), "Q: ask  ()\nA:"),
    ]:
        found = tokenize_examples([single], tokenizer, how, 1000)
        assert decoded(tokenizer, found.ids.tolist()) == asked + "said</s>"
        assert parts(tokenizer, found.ids.tolist(), found.counted.tolist())[0] == ["said</s>"]


@pytest.mark.parametrize("template", [CHATML, MARKED, ZEPHYR, None])
def test_answers_of_weight_0_are_read_but_not_learned(template):
    turns = (("user", "Hi"), ("assistant", "Wrong"), ("user", "No"), ("assistant", "Right"))
    tokenizer = merging()
    how = Prompt(kind="chat", text=template) if template else Prompt()
    (every, counted), (ids, learned) = Encoder(tokenizer, how).encode(
        [Example("", "", "", "x", 1, messages=turns, unlearned=places) for places in ((), (1,))]
    )
    assert ids == every
    assert [
        flag and place >= counted.index(False, counted.index(True)) for place, flag in enumerate(counted)
    ] == learned
    assert tokenizer.decode([token for token, flag in zip(ids, learned, strict=True) if flag]).startswith(
        "Right"
    )


def test_a_text_is_learned_whole_under_any_prompt():
    tokenizer = by_bytes()  # puts <s> in front
    for how in (Prompt(), Prompt(kind="none"), Prompt(kind="chat", text=CHATML)):
        found = tokenize_examples([Example("", "", "a b", "x", 1)], tokenizer, how, 1000)
        assert decoded(tokenizer, found.ids.tolist()) == "<s>a b</s>"
        assert found.counted.tolist() == [False, True, True, True, True]
