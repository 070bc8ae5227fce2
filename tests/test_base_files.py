"""A malicious base is refused by its small files, before anything is built from them."""

import json
import os
import time
import tracemalloc

import pytest

from retune import base_files, models
from retune.errors import InputError
from retune.study import Model
from tests.training.conftest import make_base


def refused(folder, words):
    """Return the error of whatever first reads the base."""
    for read in (models.load_tokenizer, models.load_base):
        with pytest.raises(InputError, match=words) as caught:
            read(Model(base=str(folder), dtype="float32"))
    return caught.value


def change(folder, name, **values):
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | values))


@pytest.mark.parametrize(
    "key",
    [
        "hidden_size",
        "vocab_size",
        "num_hidden_layers",
        "intermediate_size",
        "num_attention_heads",
        "head_dim",
    ],
)
def test_sizes_beyond_the_weights_are_refused_before_they_are_allocated(key, tmp_path):
    folder = make_base(tmp_path)
    change(folder, "config.json", **{key: 10**9})
    tracemalloc.start()
    begin = time.process_time()
    error = refused(folder, f"{key}.*1,000,000,000")
    assert time.process_time() - begin < 20
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()
    assert str(folder / "config.json") in str(error)


def test_a_table_of_positions_by_positions_needs_room(tmp_path):
    change(tmp_path, "config.json", model_type="gpt2", n_embd=1, n_positions=10**7)
    (tmp_path / "model.safetensors").write_bytes(bytes(10**7))
    [problem] = base_files.problems(tmp_path)
    assert "`n_positions` of config.json asks for a table of" in problem
    assert "free" in problem


@pytest.mark.parametrize("name", base_files.INDEXES)
@pytest.mark.parametrize("file", ["../other/model.safetensors", "/etc/passwd", "a/../../b", "con", "..\\x"])
def test_an_index_that_leads_out_of_the_folder_is_refused(name, file, tmp_path):
    folder = make_base(tmp_path)
    change(folder, name, weight_map={"model.embed_tokens.weight": file})
    assert name in str(refused(folder, "must name files of its folder"))


def test_an_index_of_its_own_files_is_read(tmp_path):
    folder = make_base(tmp_path)
    os.replace(folder / "model.safetensors", folder / "model-00001-of-00001.safetensors")
    from retune.evaluation.decoding.adapters import tensor_shapes

    weights = tensor_shapes(folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors")}
    change(folder, "model.safetensors.index.json", **index)
    models.load_base(Model(base=str(folder), dtype="float32"))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_code_in_pickled_weights_is_not_run(tmp_path):
    import torch

    folder = make_base(tmp_path / "base")
    (folder / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Bomb(str(tmp_path / "ran"))}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be loaded"):
        models.load_base(Model(base=str(folder), dtype="float32"))
    assert not (tmp_path / "ran").exists()


PATTERNS = {"(a+)+$": True, "(?:x{2,})*": True, "((?:a|b*)c)+": True, "([a-z]+)+!": True}
USUAL = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?:\r?\n)+", r"\(a+\)+", r"[(a+)]+", r"(\p{N}{3})+",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("part", ["pre_tokenizer", "normalizer"])
def test_a_pattern_that_takes_for_ever_is_refused(part, pattern, tmp_path):
    folder = make_base(tmp_path)
    rule = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    if part == "normalizer":
        rule = {"type": "Replace", "pattern": {"Regex": pattern}, "content": ""}
    change(folder, "tokenizer.json", **{part: {"type": "Sequence", f"{part}s": [rule]}})
    assert repr(pattern) in str(refused(folder, "must not repeat what repeats"))


@pytest.mark.parametrize("pattern", USUAL)
def test_patterns_of_published_tokenizers_are_not(pattern, tmp_path):
    rule = {"type": "Split", "pattern": {"Regex": pattern}}
    change(tmp_path, "tokenizer.json", pre_tokenizer=rule)
    assert base_files.problems(tmp_path) == []


def test_a_rule_that_makes_a_page_of_each_letter_is_refused(tmp_path):
    folder = make_base(tmp_path)
    change(
        folder,
        "tokenizer.json",
        normalizer={"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 10_000},
    )
    refused(folder, "at most 1,000 letters or values, but `content` of `normalizer` has 10,000")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_files_too_large_and_too_deep(name, tmp_path):
    folder = make_base(tmp_path)
    (folder / name).write_text("[" * 200_000)
    if "index" not in name:  # transformers does not read one beside a whole file
        with pytest.raises(InputError):
            models.load_base(Model(base=str(folder), dtype="float32"))
    with (folder / name).open("wb") as file:
        file.truncate(1 << 30)  # takes no room on a disk
    refused(folder, f"{name} must have at most .* MiB, but has 1024")
