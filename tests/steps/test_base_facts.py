"""Facts read from a base's files alone equal those of the loaded model."""

import json
import shutil
import struct
import subprocess
import sys

import pytest
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

from retune.data import plain_tokenizer
from retune.errors import InputError
from retune.models import load_tokenizer
from retune.steps import base_facts
from retune.study import Model
from tests.conftest import DEMO, ROOT
from tests.evaluation.conftest import make_base

TINY = ROOT / "examples/base/tiny"
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 96}  # fmt: skip


def save(folder, kind, **settings):
    config = CONFIG_MAPPING[kind](**SIZES, **settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size="20KB")
    return folder


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_files_tell_what_the_built_model_does(tmp_path, kind, tied):
    base = save(tmp_path, kind, tie_word_embeddings=tied)
    assert base_facts._from_files(base) == base_facts._from_model(base)


def test_another_design_is_built(tmp_path):
    base = save(tmp_path, "gemma")
    assert base_facts._from_files(base) is None
    assert base_facts.read(base).context == 96


def contradicting(folder, change):
    base = save(folder, "llama", head_dim=8)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | change))
    return base


@pytest.mark.parametrize(
    "change",
    [{"num_hidden_layers": 3}, {"num_hidden_layers": 1}, {"quantization_config": {"quant_method": "gptq"}},
     {"rope_parameters": {"rope_type": "odd"}}, {"hidden_act": "odd"}],
)  # fmt: skip
def test_files_that_contradict_config_json_are_not_believed(tmp_path, change):
    assert base_facts._from_files(contradicting(tmp_path, change)) is None


@pytest.mark.parametrize(
    "change", [{"hidden_size": 64}, {"vocab_size": 65}, {"num_attention_heads": 2}, {"head_dim": 4}]
)
def test_weights_of_other_shapes_are_refused(tmp_path, change):
    with pytest.raises(InputError, match=r"must be those of config\.json, but"):
        base_facts.read(contradicting(tmp_path, change))


def test_more_layers_than_can_be_built_are_refused(tmp_path):
    base = contradicting(tmp_path, {"num_hidden_layers": 10**6})
    with pytest.raises(InputError, match="must be at most 10,000, but is 1,000,000"):
        base_facts.read(base)


def header(content, behind=b""):
    return struct.pack("<Q", len(content)) + content + behind


TWICE = json.dumps({name: {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]} for name in "ab"}).encode()
GAP = json.dumps({"a": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]}}).encode()
NEGATIVE = json.dumps({"a": {"dtype": "U8", "shape": [-2], "data_offsets": [0, 2]}}).encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "does not begin with the header"),
        (b"cut off", "does not begin with the header"),
        (struct.pack("<Q", 1 << 62) + b"{}", "is truncated in its header"),
        (header(b"[1, 2]"), "does not begin with the header"),
        (header(b"x" * 8), "does not begin with the header"),
        (header(b'{"a":' + b"[" * 100000 + b"]" * 100000 + b"}"), "does not begin with the header"),
        (header(b'{"a": 1}'), "does not begin with the header"),
        (header(TWICE, b"xx"), "overlap or leave gaps"),
        (header(GAP, b"xxxx"), "overlap or leave gaps"),
        (header(NEGATIVE, b"xx"), "overlap or leave gaps"),
        (header(TWICE.replace(b"[0, 2]", b"[2, 4]", 1), b"xxx"), "holds .* bytes, but its header tells of"),
        (None, "has neither"),
    ],
)
def test_damaged_weights_are_refused(tmp_path, content, words):
    base = save(tmp_path, "llama")
    for file in base.glob("*.safetensors"):
        file.unlink()
    if content is not None:
        (base / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=words):
        base_facts.read(base)


@pytest.mark.parametrize("made", [False, True])
def test_the_tokenizer_is_the_one_that_transformers_takes(tmp_path, made):
    base = make_base(tmp_path) if made else TINY
    ours, theirs = load_tokenizer(Model(base=str(base))), AutoTokenizer.from_pretrained(base)
    text = ["a  line\nand <s> more</s>", "", "Ünïcode 12345"]
    assert type(ours) is type(theirs)
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.get_vocab() == theirs.get_vocab()


def plain(folder, **settings):
    """Return a copy of the demo's base with more in its tokenizer's settings."""
    shutil.copytree(TINY, folder, dirs_exist_ok=True)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


@pytest.mark.parametrize("settings", [{}, {"pad_token": "</s>", "unk_token": "<s>"}, {"eos_token": None}])
def test_without_transformers_a_plain_tokenizer_gives_the_same(tmp_path, settings):
    base = plain(tmp_path / "base", **settings)
    ours, theirs = plain_tokenizer.load(base), load_tokenizer(Model(base=str(base)))
    assert ours is not None
    texts = ["a  line\nand <s> more</s>", "", "Ünïcode 12345 <pad><unk>", " Write a poem."]
    for special in (True, False):
        assert (
            ours(texts, add_special_tokens=special)["input_ids"]
            == theirs(texts, add_special_tokens=special)["input_ids"]
        )
    assert ours.eos_token_id == theirs.eos_token_id
    assert ours.get_vocab() == theirs.get_vocab()


@pytest.mark.parametrize(
    "settings",
    [{"eos_token": "<end>"}, {"tokenizer_class": "LlamaTokenizer"}, {"add_bos_token": True}, {"chat_template": "{{ messages }}"},
     {"added_tokens_decoder": {}}, {"eos_token": {"content": "</s>"}}, {"extra_special_tokens": ["<new>"]}],
)  # fmt: skip
def test_a_tokenizer_that_transformers_may_change_is_left_to_it(tmp_path, settings):
    assert plain_tokenizer.load(plain(tmp_path / "base", **settings)) is None


@pytest.mark.parametrize("name", ["special_tokens_map.json", "added_tokens.json", "chat_template.jinja"])
def test_so_is_one_with_further_files(tmp_path, name):
    base = plain(tmp_path / "base")
    (base / name).write_text("{}")
    assert plain_tokenizer.load(base) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"added_tokens": []}'])
def test_and_a_damaged_one(tmp_path, content):
    base = plain(tmp_path / "base", bos_token=None, eos_token=None, pad_token=None)
    (base / "tokenizer.json").write_text(content)
    assert plain_tokenizer.load(base) is None


def test_validating_the_demo_imports_no_torch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "retune", "validate", str(DEMO)], capture_output=True, text=True, check=True
    )  # fmt: skip
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "tokenizers" in names
    assert not {"torch", "transformers", "mlflow", "kfp", "scipy.linalg"} & names
