"""A tiny random Llama with a byte tokenizer, a hundred records to learn, and a study of both; all made on the spot.

Tests run where the base is loaded, on the GPU if there is one, in float32, which both have; two runs of one training agree bit
for bit on a CPU and to rounding on a GPU (`alike`).
"""

import json
import random
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from retune import study as studies
from retune.data import mixing
from retune.study import Data
from retune.training.model_attention import by_segments
from retune.training.resident import ResidentBase
from retune.trials.task import TrialTask

SIZE = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip

WORDS = ["red", "green", "blue", "one", "two", "three", "cat", "dog", "sun", "moon"]


def make_base(folder: Path, hidden: int = 32, layers: int = 2) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate(["<s>", "</s>", *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_data(folder: Path, train: int = 22, validation: int = 9, seed: int = 0) -> Path:
    """Records of 60 to 180 tokens, mixed by `retune.data.mixing` as in a study."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    lines = []
    for row in range(train + validation):
        words = [draw.choice(WORDS) for _ in range(draw.randint(1, 9))]
        lines.append(
            json.dumps(
                {
                    "instruction": f"Say {row} backwards: " + " ".join(words),
                    "output": " ".join(reversed(words)),
                }
            )
        )
    (folder / "made.jsonl").write_text("\n".join(lines) + "\n")
    source = {"format": "jsonl", "uri": str(folder / "made.jsonl"), "share": 1}
    mixing.mix(
        Data(sources=[source], train=train, validation=validation, max_length=256), 0, None, str(folder)
    )
    return folder


def make_study(base: Path, **training):
    settings = {"epochs": 2, "batch_size": 4, "rank": 4, "learning_rate": 1e-2, "dropout": 0.1} | training
    return studies.parse(
        {
            "name": "tiny",
            "model": {"base": str(base), "dtype": "float32"},
            "data": {
                "sources": [{"format": "jsonl", "uri": "made", "share": 1}],
                "train": 22,
                "validation": 9,
                "max_length": 256,
            },
            "training": settings,
            "promote": {"model": "tiny"},
        }
    )


@contextmanager
def flat(base):
    """The bare base, reading flattened batches."""
    model = base.load().model
    with by_segments(model):
        yield model


ON_GPU = torch.cuda.is_available()


def alike(value):
    """Return what a number of an equal training is compared with."""
    return pytest.approx(value, rel=1e-3) if ON_GPU else value


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return str(make_data(tmp_path_factory.mktemp("data")))


@pytest.fixture
def study(base_folder):
    return make_study(base_folder)


@pytest.fixture(scope="session")
def base(base_folder):
    return ResidentBase(studies.Model(base=str(base_folder), dtype="float32"))


@pytest.fixture
def task(tmp_path):
    return TrialTask(
        trial="trial-002", number=2, role="search", assignment={}, seed=3, folder=str(tmp_path / "trial-002")
    )


@pytest.fixture
def limited(base):
    """Return a function that lets the memory suffice for so many tokens in a pass, with and without computing again."""
    most, hooks = {}, []
    layer = base.load().model.model.layers[1]

    def hook(layer, arguments):
        if layer.training and arguments[0].shape[1] > most["forward" in vars(layer)]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def limit(tokens, again=None):
        most.update({False: tokens, True: again or tokens})
        hooks.append(layer.register_forward_pre_hook(hook))

    yield limit
    for handle in hooks:
        handle.remove()
