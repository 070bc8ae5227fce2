"""The tokens that `mix` stores equal those that a trial would compute, and are used only if they do."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from retune import store
from retune.data import mixing, stored_tokens
from retune.data.encode import tokenize_examples
from retune.errors import InputError
from retune.models import load_tokenizer
from retune.study import Data, Model
from tests.conftest import ROOT
from tests.data.test_tokens import tokenizer

pytest_plugins = ["tests.s3_server"]

TINY = ROOT / "examples/base/tiny"
ALPACA, DOLLY = (ROOT / f"examples/data/{name}" for name in ("alpaca-demo.json", "dolly-demo.jsonl"))


def study_data(**settings):
    sources = [{"format": "alpaca", "uri": str(ALPACA), "share": 0.7}, {"format": "dolly", "uri": str(DOLLY), "share": 0.3}]  # fmt: skip
    return Data.model_validate(
        {"sources": sources, "train": 60, "validation": 20, "max_length": 64, **settings}
    )


def loaded(uri, split, data, folder=TINY):
    return mixing.load_tokens(
        uri, split, lambda: pytest.fail("made again"), folder, data.max_length, data.loss_on
    )


def made(uri, split, data):
    how = mixing.read_mix_record(uri).prompt
    given = load_tokenizer(Model(base=str(TINY)))
    return tokenize_examples(mixing.load_split(uri, split), given, how, data.max_length, data.loss_on)


def same(one, other):
    assert (one.cut, one.dropped) == (other.cut, other.dropped)
    for name in ("ids", "counted", "offsets", "counts"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.slow
@pytest.mark.parametrize("loss_on", ["completion", "all"])
@pytest.mark.parametrize("prompt", ["auto", "none"])
def test_stored_tokens_are_those_that_a_trial_makes(tmp_path, prompt, loss_on):
    data, out = study_data(prompt=prompt, loss_on=loss_on), str(tmp_path)
    mixing.mix(data, 0, TINY, out)
    for split in ("train", "validation"):
        same(loaded(out, split, data), made(out, split, data))
    assert loaded(out, "train", data).cut > 0 or prompt == "none"


def test_they_come_from_a_bucket_too(tmp_path, s3):
    data = study_data()
    mixing.mix(data, 0, TINY, s3)
    same(loaded(s3, "train", data), made(s3, "train", data))


@pytest.mark.parametrize("change", [{"max_length": 56}, {"loss_on": "all"}])
def test_other_settings_make_their_own(tmp_path, change):
    data, out = study_data(), str(tmp_path)
    mixing.mix(data, 0, TINY, out)
    other = data.model_copy(update=change)
    found = mixing.load_tokens(
        out, "train", lambda: load_tokenizer(Model(base=str(TINY))), TINY, other.max_length, other.loss_on
    )
    same(found, made(out, "train", other))
    assert not torch.equal(found.counted, loaded(out, "train", data).counted)


def test_another_tokenizer_makes_its_own(tmp_path):
    data, out, base = study_data(), str(tmp_path / "out"), tmp_path / "base"
    mixing.mix(data, 0, TINY, out)
    shutil.copytree(TINY, base)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 7}))
    asked = []
    mixing.load_tokens(
        out, "train", lambda: asked.append(1) or load_tokenizer(Model(base=str(base))), base, 64, "completion"
    )
    assert asked


def test_a_folder_without_them_still_works_and_the_next_mix_stores_them(tmp_path):
    data, out = study_data(), str(tmp_path)
    mixing.mix(data, 0, TINY, out)
    (folder,) = tmp_path.glob("tokens-*")
    shutil.rmtree(folder)
    found = mixing.load_tokens(
        out, "train", lambda: load_tokenizer(Model(base=str(TINY))), TINY, 64, "completion"
    )
    record = store.read(f"{out}/mix.json")
    mixing.mix(data, 0, TINY, out)
    same(found, loaded(out, "train", data))
    assert store.read(f"{out}/mix.json") == record


def test_another_loss_on_the_same_data_stores_its_own(tmp_path):
    data, out = study_data(), str(tmp_path)
    mixing.mix(data, 0, TINY, out)
    whole = data.model_copy(update={"loss_on": "all"})
    mixing.mix(whole, 0, TINY, out)
    assert len(list(tmp_path.glob("tokens-*"))) == 2
    same(loaded(out, "train", whole), made(out, "train", whole))
    same(loaded(out, "train", data), made(out, "train", data))


def test_conversations_under_a_chat_template(tmp_path):
    talks = [{"messages": [{"role": "user", "content": f"ask {k}"}, {"role": "assistant", "content": f"say {k}"}]} for k in range(9)]  # fmt: skip
    path, base = tmp_path / "talks.jsonl", tmp_path / "base"
    path.write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    given = tokenizer()
    given.chat_template = "{% for m in messages %}{{ m.role }}:{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    given.save_pretrained(base)
    (base / "config.json").write_text('{"model_type": "llama"}')
    data = Data(
        sources=[{"format": "messages", "uri": str(path), "share": 1}], train=5, validation=2, max_length=64
    )
    out = str(tmp_path / "out")
    mixing.mix(data, 0, base, out)
    found = loaded(out, "train", data, base)
    how = mixing.read_mix_record(out).prompt
    assert how.kind == "chat"
    same(found, tokenize_examples(mixing.load_split(out, "train"), given, how, 64))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train-ids.npy", "train-counted.npy", "train-offsets.npy", "tokens.json"])
@pytest.mark.parametrize(
    "harm", [lambda b: b[:-3], lambda b: b[:-1] + bytes([b[-1] ^ 1])], ids=["cut", "flipped"]
)
def test_damage_is_seen_and_mended_by_the_next_mix(tmp_path, name, harm):
    data, out = study_data(), str(tmp_path)
    mixing.mix(data, 0, TINY, out)
    (folder,) = tmp_path.glob("tokens-*")
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(harm(whole))
    with pytest.raises(Exception, match=name) as caught:
        loaded(out, "train", data)
    assert isinstance(caught.value, InputError) or "cannot be read" in str(caught.value)
    mixing.mix(data, 0, TINY, out)
    assert (folder / name).read_bytes() == whole


def test_a_killed_mix_leaves_no_marker(tmp_path, monkeypatch):
    """`tokens.json` is the last of its folder, and before `mix.json`."""
    written = []
    monkeypatch.setattr(store, "write", lambda uri, data: written.append(uri.rpartition("/")[2]))
    mixing.mix(study_data(), 0, TINY, str(tmp_path))
    assert written[-2:] == ["tokens.json", "mix.json"]
    assert len(written) == 2 + 6 + 2


@pytest.mark.slow
def test_the_files_are_mapped_not_read(tmp_path):
    """9 million tokens are opened by a process that grows by far less than they take as lists."""
    import numpy as np

    place, count, length = str(tmp_path / "tokens-x"), 50_000, 180
    flat = stored_tokens.Flat(
        np.arange(count * length, dtype=np.int32) % 1000,
        np.arange(count * length) % length > 90,
        np.arange(count + 1, dtype=np.int64) * length,
        0,
        0,
    )
    stored_tokens.save(place, {"train": flat, "validation": flat})
    code = (
        "import sys, torch\n"
        "from retune.data import stored_tokens\n"
        "def rss(): return int(open('/proc/self/statm').read().split()[1]) * 4096 / 1e6\n"
        "from retune.data.batches import flatten\n"
        "before = rss()\n"
        "tokens = stored_tokens.load(sys.argv[1], 'train').tokens()\n"
        "assert int(tokens.counts.sum()) == 50_000 * 89 and len(tokens) == 50_000\n"
        "flatten(tokens, [7, 49_999])\n"
        "print(rss() - before)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code, place], capture_output=True, text=True, check=True
    ).stdout
    assert float(printed) < 100
