import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from retune import store
from retune.data import filters, formats, mixing, prompts
from retune.data.draw import counts, draw, grouped, largest_feasible
from retune.data.encode import Encoder
from retune.data.example import Example
from retune.data.formats import Format, Schema
from retune.data.mix_record import Lengths
from retune.data.prompts import Prompt
from retune.data.tokens import tokenize
from retune.errors import InputError
from retune.study import Data, Source
from tests.data.test_tokens import tokenizer

pytest_plugins = ["tests.s3_server"]

# Shares and draw: pure functions.

shares = st.lists(st.integers(1, 100), min_size=1, max_size=5).map(
    lambda parts: [p / sum(parts) for p in parts]
)


@given(st.integers(0, 100_000), shares)
def test_counts_are_exact_and_near_their_shares(total, given_shares):
    found = counts(total, given_shares)
    assert sum(found) == total
    parts = [Fraction(str(share)) for share in given_shares]
    assert all(abs(count - total * part / sum(parts)) < 1 for count, part in zip(found, parts))


def test_counts_of_the_paper():
    """Tribes et al. 2024, "Datasets": 54k and 13k, both 70 % Alpaca and 30 % Dolly."""
    assert counts(54_000, [0.7, 0.3]) == [37_800, 16_200]
    assert counts(13_000, [0.7, 0.3]) == [9_100, 3_900]
    assert counts(10, [0.3333333, 0.3333333, 0.3333333]) == [4, 3, 3]


@st.composite
def pools(draw_):
    """Up to four sources of up to 30 records with a few prompts, some of them shared; all texts differ."""
    sizes = draw_(st.lists(st.integers(0, 30), min_size=1, max_size=4))
    prompt = st.integers(0, draw_(st.sampled_from([3, 10, 60])))
    numbers = iter(range(1000))
    return [[(b"p%d" % draw_(prompt), b"t%d" % next(numbers)) for _ in range(size)] for size in sizes]


@given(pools(), st.data(), st.integers(0, 2**31 - 1))
def test_draw_is_exact_disjoint_and_without_replacement(given_stocks, data, seed):
    wanted = [
        data.draw(st.lists(st.integers(0, 20), min_size=len(given_stocks), max_size=len(given_stocks)))
        for _ in "tv"
    ]
    drawn = draw(grouped(given_stocks, seed), *wanted)
    asked = Counter({k: first + second for k, (first, second) in enumerate(zip(*wanted))})
    got = Counter(source for source, _ in drawn.train + drawn.validation)
    assert all(asked[k] - got[k] == drawn.missing[k] for k in range(len(given_stocks)))
    for split, want in zip((drawn.train, drawn.validation), wanted):
        assert all(Counter(source for source, _ in split)[k] <= want[k] for k in range(len(want)))
    assert len({*drawn.train, *drawn.validation}) == len(drawn.train) + len(drawn.validation)
    prompts_of = [
        {given_stocks[source][place][0] for source, place in split}
        for split in (drawn.train, drawn.validation)
    ]
    assert not prompts_of[0] & prompts_of[1]


@given(st.lists(st.integers(0, 60), min_size=1, max_size=4), st.data(), st.integers(0, 2**31 - 1))
def test_all_that_is_there_can_be_drawn_if_no_prompt_stands_twice(sizes, data, seed):
    given_stocks = [
        [(b"%d/%d" % (k, n), b"%d/%d" % (k, n)) for n in range(size)] for k, size in enumerate(sizes)
    ]
    train = [data.draw(st.integers(0, size)) for size in sizes]
    drawn = draw(grouped(given_stocks, seed), train, [size - part for size, part in zip(sizes, train)])
    assert not any(drawn.missing)


def test_repeated_prompts_waste_nothing_that_fits():
    """100 prompts with three answers each: 30 records of validation are ten prompts, 270 are left."""
    pool = [(b"p%d" % (n // 3), b"t%d" % n) for n in range(300)]
    assert draw(grouped([pool], 0), [270], [30]).missing == [0]
    assert draw(grouped([pool], 0), [269], [29]).missing == [0]  # the third answer of one prompt goes unused
    assert draw(grouped([pool], 0), [271], [29]).missing == [1]


@given(pools(), st.integers(0, 2**31 - 1), st.randoms())
def test_draw_does_not_depend_on_the_order_of_records(given_stocks, seed, chance):
    wanted = [len(pool) // 3 for pool in given_stocks]
    shuffled = [chance.sample(pool, len(pool)) for pool in given_stocks]

    def texts(of):
        drawn = draw(grouped(of, seed), wanted, wanted)
        return [[of[source][place] for source, place in split] for split in (drawn.train, drawn.validation)]

    assert texts(given_stocks) == texts(shuffled)


@given(st.integers(10, 50), st.integers(0, 50), st.integers(0, 2**31 - 1))
def test_draw_of_a_source_does_not_depend_on_the_others(size, other, seed):
    mine = [(b"m%d" % n, b"m%d" % n) for n in range(size)]
    theirs = [(b"o%d" % n, b"o%d" % n) for n in range(other)]
    alone = draw(grouped([mine], seed), [5], [3])
    among = draw(grouped([theirs, mine], seed), [other // 2, 5], [other // 3, 3])
    for split in ("train", "validation"):
        assert [p for _, p in getattr(alone, split)] == [p for k, p in getattr(among, split) if k == 1]


def test_more_train_keeps_validation_and_the_train_before():
    groups = grouped([[(b"p%d" % (n // 2), b"t%d" % n) for n in range(100)]], 0)
    small, large = draw(groups, [20], [10]), draw(groups, [60], [10])
    assert small.validation == large.validation
    assert set(small.train) < set(large.train)


def test_seed_decides():
    pool = [(b"p%d" % n, b"t%d" % n) for n in range(1000)]
    first, second = (draw(grouped([pool], seed), [500], [100]) for seed in (0, 1))
    assert first != second
    both = len({p for _, p in first.validation} & {p for _, p in second.validation})
    assert both < 30  # 10 expected of 100; 30 would be six standard deviations


@settings(max_examples=30)
@given(pools(), st.integers(1, 60), st.integers(1, 20), st.integers(0, 99))
def test_largest_works_and_one_more_does_not(given_stocks, train, validation, seed):
    even = [1 / len(given_stocks)] * len(given_stocks)
    groups = grouped(given_stocks, seed)

    def fits(first, second):
        return not any(draw(groups, counts(first, even), counts(second, even)).missing)

    assume(not fits(train, validation))
    most = largest_feasible(groups, even, train, validation)
    assert most is not None or not fits(1, 1)
    if most:
        size = max(train, validation)
        parts = [
            (max(1, train * part // size), max(1, validation * part // size)) for part in range(1, size + 1)
        ]
        assert most in parts
        assert fits(*most)
        last = max(part for part, scaled in enumerate(parts) if scaled == most)
        assert not fits(*parts[last + 1])


@given(st.lists(st.integers(0, 1000), min_size=1))
def test_lengths(lengths):
    found = Lengths.of(lengths)
    assert (found.min, found.max) == (min(lengths), max(lengths))
    assert math.isclose(found.mean, sum(lengths) / len(lengths), abs_tol=0.005)
    for at, share in ((found.p50, 0.5), (found.p95, 0.95)):
        assert sum(n <= at for n in lengths) >= share * len(lengths) > sum(n < at for n in lengths)


# Whole mixes.


def write_alpaca(path, records):
    rows = [{"instruction": i, "input": g, "output": o} for i, g, o in records]
    path.write_text(json.dumps(rows, ensure_ascii=False))
    return Source(format="alpaca", uri=str(path), share=0.7)


def write_dolly(path, records):
    rows = [{"instruction": i, "context": g, "response": o, "category": "x"} for i, g, o in records]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(format="dolly", uri=str(path), share=0.3)


def numbered(word, count):
    return [(f"{word} {n}", "" if n % 2 else f"given {n}", f"answer {n}") for n in range(count)]


@pytest.fixture
def two(tmp_path):
    """Return the data section of a study: 70 of 200 Alpaca and 30 of 100 Dolly records, and 14 + 6."""
    first = write_alpaca(tmp_path / "a.json", numbered("ask", 200))
    second = write_dolly(tmp_path / "d.jsonl", numbered("tell", 100))
    return Data(sources=[first, second], train=100, validation=20, max_length=512)


def files(folder):
    return {name: store.read(store.join(folder, name)) for name in store.listing(folder)}


def test_mix(two, tmp_path):
    record = mixing.mix(two, 0, None, str(tmp_path / "out"))
    train, validation, read = mixing.read_mix(str(tmp_path / "out"))
    assert read == record
    assert Counter(e.source for e in train) == {"a.json": 70, "d.jsonl": 30}
    assert Counter(e.source for e in validation) == {"a.json": 14, "d.jsonl": 6}
    assert {e.source for e in train[:12]} == {"a.json", "d.jsonl"}  # shuffled, not one source after the other
    assert not {prompts.render(e)[0] for e in train} & {prompts.render(e)[0] for e in validation}
    place = json.loads((tmp_path / "a.json").read_text())
    for example in train + validation:
        if example.source == "a.json":
            assert place[example.row - 1] == {
                "instruction": example.instruction, "input": example.input, "output": example.output
            }  # fmt: skip
    assert [(s.name, s.read, s.available, s.splits["train"].records) for s in record.sources] == [
        ("a.json", 200, 200, 70),
        ("d.jsonl", 100, 100, 30),
    ]
    assert store.listing(tmp_path / "out") == ["mix.json", "train.jsonl", "validation.jsonl"]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_rules_hold_for_any_records(tmp_path_factory, data):
    """Few different words, so that texts and prompts are often equal, also in different white space."""
    word = st.sampled_from(["a", "b", "c ", " d", "e  e", "e e", ""])
    records = [data.draw(st.lists(st.tuples(word, word, word), min_size=1, max_size=40)) for _ in range(2)]
    folder = tmp_path_factory.mktemp("mix")
    given_sources = [write_alpaca(folder / "a.json", records[0]), write_dolly(folder / "d.jsonl", records[1])]
    wanted = Data(
        sources=given_sources, train=data.draw(st.integers(1, 20)), validation=data.draw(st.integers(1, 8))
    )
    out = str(folder / "out")
    try:
        record = mixing.mix(wanted, 0, None, out)
    except InputError:
        assert store.listing(out) == []
        return
    for source, given_records in zip(sorted(record.sources, key=lambda s: s.name), records):
        assert source.read == len(given_records)
        assert (
            source.read
            == source.empty + source.duplicate + source.shared + source.too_long + source.available
        )
        assert source.empty == sum(not i.strip() or not o.strip() for i, _, o in given_records)
    train, validation, _ = mixing.read_mix(out)
    assert (len(train), len(validation)) == (wanted.train, wanted.validation)
    # Which source has the record that a tie leaves over is decided by their files.
    exact = counts(wanted.train, [0.7, 0.3]), counts(wanted.train, [0.3, 0.7])[::-1]
    assert [s.splits["train"].records for s in record.sources] in exact

    def seen(text):
        return " ".join(text.split())

    whole = [tuple(map(seen, prompts.render(e))) for e in train + validation]
    assert len(set(whole)) == len(whole)
    assert not {seen(prompts.render(e)[0]) for e in train} & {seen(prompts.render(e)[0]) for e in validation}


def test_same_inputs_give_the_same_bytes(two, tmp_path):
    mixing.mix(two, 0, tokenizer(), str(tmp_path / "one"))
    mixing.mix(two, 0, tokenizer(), str(tmp_path / "two"))
    other_order = two.model_copy(update={"sources": two.sources[::-1]})
    mixing.mix(other_order, 0, tokenizer(), str(tmp_path / "three"))
    assert files(tmp_path / "one") == files(tmp_path / "two") == files(tmp_path / "three")


def test_same_bytes_in_another_process_and_folder(two, tmp_path):
    """The result depends neither on Python's hash seed nor on the folder of the files."""
    record = mixing.mix(two, 0, None, str(tmp_path / "one"))
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for source in two.sources:
        Path(source.uri).rename(moved / Path(source.uri).name)
        source.uri = str(moved / Path(source.uri).name)
    code = (
        "import sys; from retune.data import mixing; from retune.study import Data\n"
        "print(mixing.mix(Data.model_validate_json(sys.argv[1]), 0, None, sys.argv[2]).digest)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", code, two.model_dump_json(), str(tmp_path / "two")]
    assert subprocess.check_output(command, env=environment, text=True).strip() == record.digest
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_second_run_writes_nothing(two, tmp_path, monkeypatch):
    out = str(tmp_path / "out")
    first = mixing.mix(two, 0, None, out)
    monkeypatch.setattr(store, "write", lambda *_: pytest.fail("written again"))
    assert mixing.mix(two, 0, None, out) == first


@pytest.mark.parametrize("name", ["train.jsonl", "validation.jsonl", "mix.json"])
@pytest.mark.parametrize(
    "harm", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-10])]
)
def test_damaged_mix_is_refused_and_made_again(two, tmp_path, name, harm):
    out = tmp_path / "out"
    mixing.mix(two, 0, None, str(out))
    whole = files(out)
    harm(out / name)
    with pytest.raises(InputError, match="retune mix"):
        mixing.read_mix(str(out))
    mixing.mix(two, 0, None, str(out))
    assert files(out) == whole


def test_no_mix_there(tmp_path):
    with pytest.raises(InputError, match=r"run `retune mix` first"):
        mixing.load_split(str(tmp_path), "train")


def test_recipe_digest_sees_all_that_decides(two, tmp_path):
    def recipe(seed=0, tokens=None, **changes):
        return mixing.recipe_digest(two.model_copy(update=changes), seed, tokens)

    assert recipe() == recipe() == mixing.mix(two, 0, None, str(tmp_path / "out")).recipe
    assert recipe(sources=two.sources[::-1]) == recipe()
    # Without a tokenizer, both change nothing
    assert recipe(loss_on="all") == recipe(max_length=99) == recipe()
    shares_changed = [s.model_copy(update={"share": 0.5}) for s in two.sources]
    found = [
        recipe(), recipe(seed=1), recipe(train=99), recipe(validation=19), recipe(sources=shares_changed),
        recipe(tokens=tokenizer()), recipe(tokens=tokenizer(), max_length=99),
    ]  # fmt: skip
    assert len(set(found)) == len(found)
    path = Path(two.sources[0].uri)
    path.write_text(path.read_text().replace("answer 7", "another 7"))
    assert recipe() != found[0]


def test_recipe_digest_of_a_tokenizer_and_of_its_folder_are_the_same(two, tmp_path):
    from transformers import AutoTokenizer

    tokenizer().save_pretrained(tmp_path / "base")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "base")
    loaded.pad_token = loaded.eos_token
    before = mixing.recipe_digest(two, 0, loaded)
    loaded(["a", "b c"], padding=True, truncation=True, max_length=3)  # use leaves traces in a tokenizer
    assert mixing.recipe_digest(two, 0, loaded) == before == mixing.recipe_digest(two, 0, tmp_path / "base")
    made = tokenizer()
    made.pad_token = made.eos_token
    before = mixing.recipe_digest(two, 0, made)
    made(["a", "b c"], padding=True, truncation=True, max_length=3)
    assert mixing.recipe_digest(two, 0, made) == before
    with pytest.raises(InputError, match="must have a tokenizer"):
        mixing.recipe_digest(two, 0, tmp_path)


def test_tokenizer_is_loaded_from_its_folder_only_if_needed(two, tmp_path, monkeypatch):
    tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text("{}")
    first = mixing.mix(two, 0, tmp_path / "base", str(tmp_path / "out"))
    assert first.splits["train"].tokens
    monkeypatch.setattr(mixing.models, "load_tokenizer", lambda _: pytest.fail("loaded"))
    assert mixing.mix(two, 0, tmp_path / "base", str(tmp_path / "out")) == first


def test_dropped_records_are_counted_by_rule(tmp_path):
    kept = numbered("ask", 20)
    # Twice the first again
    first = [*kept, ("ask 0", "given 0", "answer 0"), ("ask\n0", " given  0", "answer 0 ")]
    first += [
        ("ask 90", "", " \n"),
        (" ", "", "answer"),
        ("Caf\u00e9?", "", "yes"),
        ("Cafe\u0301?", "", "yes"),
    ]
    second = [*numbered("tell", 20), *kept[:3]]
    data = Data(
        sources=[write_alpaca(tmp_path / "a.json", first), write_dolly(tmp_path / "d.jsonl", second)],
        train=20, validation=5,
    )  # fmt: skip
    record = mixing.mix(data, 0, None, str(tmp_path / "out"))
    a, d = record.sources
    assert (a.read, a.empty, a.duplicate) == (26, 2, 3)
    assert (d.read, d.empty, d.duplicate) == (23, 0, 0)
    assert a.shared + d.shared == 3
    assert a.available + d.available == 41
    assert 0 in (a.shared, d.shared)  # one of the two sources keeps all


def test_plain_texts_are_kept_whatever_tells_that_they_are_some(tmp_path, monkeypatch):
    texts = [f"The cat {n} sat on the mat." for n in range(20)]
    (tmp_path / "d.jsonl").write_text(
        "".join(json.dumps({"body": text, "text": text}) + "\n" for text in texts)
    )
    package = Format(
        Schema("pages", {"text": "body"}), lambda data: enumerate(map(json.loads, data.splitlines()), 1)
    )
    monkeypatch.setattr(formats, "package_format", lambda name: package if name == "pages" else None)
    plain = Source(uri=str(tmp_path / "d.jsonl"), share=1.0)
    for n, changes in enumerate([{}, {"columns": {"text": "body"}}, {"format": "pages"}]):
        data = Data(sources=[plain.model_copy(update=changes)], train="all", validation=5)
        record = mixing.mix(data, 0, None, str(tmp_path / f"out-{n}"))
        assert (record.sources[0].empty, record.sources[0].available) == (0, 20)


def test_shared_texts_stay_with_the_same_source_in_any_order(tmp_path):
    both = numbered("ask", 30)
    given_sources = [
        write_alpaca(tmp_path / "a.json", both + numbered("more", 30)),
        write_dolly(tmp_path / "d.jsonl", both + numbered("tell", 30)),
    ]
    found = [
        mixing.mix(Data(sources=order, train=30, validation=6), 0, None, str(tmp_path / str(k)))
        for k, order in enumerate((given_sources, given_sources[::-1]))
    ]
    assert found[0] == found[1]


def test_same_prompt_with_other_answers_stays_in_one_split_across_sources(tmp_path):
    """Every prompt stands in both sources, each time with another answer."""
    asked = [(f"ask {n}", "", f"one {n}") for n in range(60)]
    answers = [(f"ask {n}", "", f"two {n}") for n in range(60)]
    first, second = write_alpaca(tmp_path / "a.json", asked), write_dolly(tmp_path / "d.jsonl", answers)
    first.share = second.share = 0.5
    mixing.mix(Data(sources=[first, second], train=80, validation=40), 0, None, str(tmp_path / "out"))
    train, validation, _ = mixing.read_mix(str(tmp_path / "out"))
    assert not {e.instruction for e in train} & {e.instruction for e in validation}


def test_too_few_records_tells_what_works(two, tmp_path):
    data = two.model_copy(update={"train": 400, "validation": 40})
    with pytest.raises(InputError) as caught:
        mixing.mix(data, 0, None, str(tmp_path / "out"))
    first, second, advice = sorted(caught.value.problems)
    assert first.startswith(
        "a.json (share 0.7) must give 280 + 28 = 308 records, but gives 200: of 200 read, 0 are empty"
    )
    assert second.startswith("d.jsonl (share 0.3) must give 120 + 12 = 132 records, but gives 100")
    assert advice == "the most that these shares allow is data.train=260 data.validation=26"
    assert store.listing(tmp_path / "out") == []
    mixing.mix(data.model_copy(update={"train": 260, "validation": 26}), 0, None, str(tmp_path / "out"))


def test_all_problems_of_all_files_at_once_and_nothing_written(two, tmp_path):
    Path(two.sources[0].uri).write_text('[{"instruction": "x", "input": ""}]')
    Path(two.sources[1].uri).write_text('{"instruction": "x", "context": "", "response": 1}\n')
    with pytest.raises(InputError) as caught:
        mixing.mix(two, 0, None, str(tmp_path / "out"))
    assert sorted(problem.removeprefix(str(tmp_path)) for problem in caught.value.problems) == [
        "/a.json: record 1: field 'output' is missing: the format 'alpaca' needs it, but the records have the fields "
        "['instruction', 'input']; if other fields hold it, write `columns: {prompt: instruction, completion: …}`",
        "/d.jsonl: line 1: field 'response' must be text, but is a number; put it in quotes, if it is the text itself",
    ]
    for source in two.sources:
        source.uri += ".gone"
    with pytest.raises(InputError) as caught:
        mixing.mix(two, 0, None, str(tmp_path / "out"))
    assert len(caught.value.problems) == 2
    assert store.listing(tmp_path / "out") == []


def test_statistics_are_those_of_the_tokens_a_trial_reads(two, tmp_path):
    """Both count by themselves; they must agree on lengths and on what is cut."""
    for maker in (tokenizer, lambda: tokenizer(ends=True), lambda: tokenizer(starts=False)):
        data = two.model_copy(update={"max_length": 250})
        out = str(tmp_path / str(maker))
        record = mixing.mix(data, 0, maker(), out)
        for split in ("train", "validation"):
            pairs = [prompts.render(e) for e in mixing.load_split(out, split)]
            tokens = tokenize(pairs, maker(), data.max_length)
            found = record.splits[split]
            assert found.tokens == len(tokens.ids)
            assert found.truncated == tokens.cut
            whole = tokenize(pairs, maker(), 10_000)
            assert found.lengths["total"] == Lengths.of(whole.lengths.tolist())
            assert found.lengths["completion"] == Lengths.of(whole.counts.tolist())
            assert found.tokens == sum(s.splits[split].tokens for s in record.sources)


@pytest.mark.parametrize("room", [-1, 0, 1])
def test_prompts_that_fill_the_length_are_dropped(tmp_path, room):
    """One token per byte, and one in front: n bytes leave room only if max_length is at least n + 2."""
    long = "ä" * 50  # two tokens a character: the shortcut by characters must not let it in
    records = [*numbered("ask", 20), (long, "", "an answer"), ("x" * 100, "", "an answer")]
    source = write_alpaca(tmp_path / "a.json", records)
    source.share = 1
    length = len(prompts.prompt(long).encode()) + 1
    data = Data(sources=[source], train=15, validation=5, max_length=length + room)
    record = mixing.mix(data, 0, tokenizer(), str(tmp_path / "out"))
    fits = sum(len(prompts.prompt(i, g).encode()) + 1 < length + room for i, g, _ in records)
    assert record.sources[0].available == fits
    assert record.sources[0].too_long == (2 if room < 1 else 0)


@given(st.lists(st.text(st.characters(codec="ascii"), min_size=1), max_size=5), st.integers(2, 300))
@settings(max_examples=50, deadline=None)
def test_shortcut_by_characters_drops_the_same_as_counting(texts, max_length):
    def pool():
        given_texts = [filters.Text(Example(text, "", "x", "x", 1), (b"", b"")) for text in texts]
        return filters.Pool(None, b"", "", texts=given_texts)

    def length(text):
        return len(tokenizer()(prompts.render(text.example)[0])["input_ids"])

    quick = pool()
    filters.drop_too_long([quick], Encoder(tokenizer(), Prompt()), max_length)
    counted = [text for text in pool().texts if text.example.is_text or length(text) < max_length]
    assert [text.example for text in quick.texts] == [text.example for text in counted]


def test_line_separators_in_texts_survive(tmp_path):
    records = [(f"ask {n}", "a\u2028b\u0085c\x1cd", "x\ny\r\nz") for n in range(8)]
    source = write_alpaca(tmp_path / "a.json", records)
    source.share = 1
    mixing.mix(Data(sources=[source], train=4, validation=2), 0, None, str(tmp_path / "out"))
    for example in mixing.load_split(str(tmp_path / "out"), "train"):
        assert (example.input, example.output) == ("a\u2028b\u0085c\x1cd", "x\ny\r\nz")


def test_to_and_from_s3(two, tmp_path, s3):
    for source in two.sources:
        store.upload(source.uri, f"{s3}/raw/{Path(source.uri).name}")
    remote = [s.model_copy(update={"uri": f"{s3}/raw/{Path(s.uri).name}"}) for s in two.sources]
    there = mixing.mix(two.model_copy(update={"sources": remote}), 0, None, f"{s3}/mixed")
    here = mixing.mix(two, 0, None, str(tmp_path / "out"))
    assert there == here
    assert mixing.read_mix(f"{s3}/mixed") == mixing.read_mix(str(tmp_path / "out"))
    assert files(f"{s3}/mixed") == files(tmp_path / "out")
    store.write(f"{s3}/raw/a.json", store.read(f"{s3}/raw/a.json").replace(b"answer 7", b"another 7"))
    assert mixing.recipe_digest(two.model_copy(update={"sources": remote}), 0) != here.recipe


@pytest.mark.slow
def test_killed_at_any_moment_leaves_no_half_mix(two, tmp_path):
    """It replaces the mix of another seed, whose marker could be mistaken for that of the new one."""
    code = (
        "import sys; from retune.data import mixing; from retune.study import Data\n"
        "data = Data.model_validate_json(sys.argv[1])\n"
        "print('starts', flush=True)\n"
        "for seed in range(100000): mixing.mix(data, seed, None, sys.argv[2])"
    )
    out, chance = str(tmp_path / "out"), random.Random(0)
    for _ in range(8):
        child = subprocess.Popen(
            [sys.executable, "-c", code, two.model_dump_json(), out], stdout=subprocess.PIPE, text=True
        )
        child.stdout.readline()
        time.sleep(chance.uniform(0.01, 0.15))
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        if store.exists(store.join(out, "mix.json")):
            mixing.read_mix(out)  # compares digests
    assert mixing.mix(two, 0, None, out) == mixing.mix(two, 0, None, str(tmp_path / "other"))


def test_marker_goes_before_and_comes_after_the_files(two, tmp_path, monkeypatch):
    """As the test above, but stopped after each single write."""
    out = str(tmp_path / "out")
    mixing.mix(two, 1, None, out)
    write = store.write
    for stop in range(3):
        left = [stop]

        def halting(uri, data, left=left):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            write(uri, data)

        monkeypatch.setattr(store, "write", halting)
        with pytest.raises(KeyboardInterrupt):
            mixing.mix(two, 0, None, out)
        assert not store.exists(store.join(out, "mix.json"))
        with pytest.raises(InputError):
            mixing.load_split(out, "train")


@pytest.mark.slow
def test_paper_sized_mix(tmp_path):
    """54k + 13k records in the paper's shares, of data sets as large as needed."""
    first = write_alpaca(tmp_path / "a.json", numbered("ask", 47_000))
    second = write_dolly(tmp_path / "d.jsonl", numbered("tell", 20_200))
    data = Data(sources=[first, second], train=54_000, validation=13_000)
    record = mixing.mix(data, 0, None, str(tmp_path / "out"))
    assert [[s.splits[split].records for split in ("train", "validation")] for s in record.sources] == [
        [37_800, 9_100],
        [16_200, 3_900],
    ]
    assert len(mixing.load_split(str(tmp_path / "out"), "train")) == 54_000


DATA = Path(os.environ.get("RETUNE_DATA") or Path(__file__).parents[3] / "shared" / "data")


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="no real data: set RETUNE_DATA")
def test_real_alpaca_and_dolly(tmp_path):
    alpaca = Source(format="alpaca", uri=str(DATA / "alpaca/alpagasus_random_9k.json"), share=0.7)
    dolly = Source(format="dolly", uri=str(DATA / "dolly/databricks-dolly-15k.rebuilt.jsonl.gz"), share=0.3)
    data = Data(sources=[alpaca, dolly], train=54_000, validation=13_000)
    with pytest.raises(InputError, match=r"data\.train=10622 data\.validation=2557") as caught:
        # Dolly's 15,011 records do not hold the paper's 20,100
        mixing.mix(data, 0, None, str(tmp_path / "out"))
    assert any(
        "must give 16,200 + 3,900 = 20,100 records, but gives 14,996" in p for p in caught.value.problems
    )
    most = data.model_copy(update={"train": 10_622, "validation": 2_557})
    record = mixing.mix(most, 0, None, str(tmp_path / "out"))
    assert [(s.read, s.empty, s.duplicate, s.shared, s.available) for s in record.sources] == [
        (9_229, 4, 0, 0, 9_225),
        (15_011, 0, 15, 0, 14_996),
    ]
    train, validation, _ = mixing.read_mix(str(tmp_path / "out"))
    assert not {prompts.render(e)[0] for e in train} & {prompts.render(e)[0] for e in validation}
