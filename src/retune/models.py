"""Loading the frozen base model and its tokenizer: one place, so that training and benchmarks see the same weights."""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retune import base_files, cores, gpus
from retune.errors import InputError, first_line, is_out_of_memory, nearest
from retune.processes import gc_paused
from retune.study import Model

if TYPE_CHECKING:
    import torch

_SAMPLE_BYTES = 1 << 20
DEFAULT_CONTEXT = 4096
"""The longest sequence, in tokens, of a model whose config names none."""


@dataclass
class LoadedBase:
    """A base model in memory. `digest` identifies weights, configuration and tokenizer together."""

    model: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    digest: str
    revision: str | None


def quiet() -> None:
    """Silence progress bars, advice and deprecation warnings of the libraries, which our users can do nothing about."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", module=r"(transformers|peft|torch|huggingface_hub|accelerate)\b")
    for name in ("transformers", "peft", "accelerate", "huggingface_hub", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)


def skip_bitsandbytes(model: Model) -> None:
    """Keep PEFT from importing bitsandbytes, which takes a second, in a process that loads this base alone.

    Only bases in 4 or 8 bits need it: those of `model.quantization`, which need a GPU, and those whose files are quantised.
    """
    if model.quantization is None and not gpus.visible() and not _may_be_quantized(model):
        # With None for a module Python raises ModuleNotFoundError, so PEFT takes it for not installed
        sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]


def _may_be_quantized(model: Model) -> bool:
    """Return whether a base's files are quantised, or are not here to tell."""
    folder = Path(model.base)
    return base_files.is_quantized(folder) or not folder.is_dir()


def cannot_load_quantized(folder: Path) -> str | None:
    """Return why transformers cannot load a base whose files are quantised on this machine; None if it can.

    Args:
        folder: of the base; its config.json has a `quantization_config`.
    """
    quiet()
    import torch
    from transformers.quantizers.auto import AutoHfQuantizer

    try:
        quantizer = AutoHfQuantizer.from_config(config_of(folder).quantization_config, pre_quantized=True)
        device = pick_device()
        quantizer.validate_environment(dtype=torch.float32, device_map={"": device})
    except InputError:
        raise
    except Exception as error:  # each quantisation has its own
        return first_line(error)
    return None


def import_libraries(model: Model) -> None:
    """Import torch, transformers with the base's own classes, and PEFT, in a process that will need them all.

    The imports create a million objects that are never freed. Scanning these for garbage, during the imports, in every
    later collection and at exit, takes half as long as the imports themselves, so they are frozen.
    """
    quiet()
    skip_bitsandbytes(model)
    with gc_paused():
        import peft  # noqa: F401
        from transformers import AutoModelForCausalLM

        # A base elsewhere is fetched when it is loaded, and loading reports what is wrong with any
        if Path(model.base).is_dir():
            with suppress(Exception):
                AutoModelForCausalLM._model_mapping[type(config_of(Path(model.base)))]
    gc.freeze()


def locate(model: Model) -> Path:
    """Return the local folder of the base model; a hub name is fetched at its pinned revision.

    Raises:
        InputError: if there is no such folder, it holds no model, or the hub has no such revision.
    """
    if "://" in model.base:
        from retune import store

        pinned = model.revision and model.base.startswith("hf://")
        try:
            folder = store.download(f"{model.base}@{model.revision}" if pinned else model.base)
        except FileNotFoundError as error:
            raise InputError(f"there is no model at {model.base} ({error.strerror})", "model.base") from error
        return _checked_base(folder, model.base)
    folder = Path(model.base)
    if folder.is_absolute() or folder.exists():
        return _checked_base(folder, model.base)
    return _snapshot(model)


def _snapshot(model: Model) -> Path:
    """Return the folder of a base on the hub, fetched at its revision; without weights that are not read.

    Raises:
        InputError: if the hub has no such model or revision, or refuses it.
    """
    from huggingface_hub import errors, snapshot_download

    def fetch(ignored: list[str]) -> Path:
        return Path(snapshot_download(model.base, revision=model.revision, ignore_patterns=ignored))

    try:
        fallback = fetch(["*.bin", "*.pth", "*.gguf"])
        fallback = fallback if any(fallback.glob("*.safetensors")) else fetch(["*.pth", "*.gguf"])
        return _checked_base(fallback, model.base)
    except errors.GatedRepoError as error:
        why = "its owner must grant you access: ask on its page, then set HF_TOKEN"
        cause: Exception = error
    except errors.RevisionNotFoundError as error:
        why, cause = "the hub has the model, but not this revision", error
    except errors.RepositoryNotFoundError as error:
        why, cause = "the hub has no such model, or it is private and needs HF_TOKEN", error
    except errors.HFValidationError as error:
        why, cause = "it is neither a folder here nor a name such as owner/model", error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        hub = os.environ.get("HF_ENDPOINT", "the hub")
        why, cause = (
            f"there is no such folder here, and {hub} cannot be reached; name a folder or set HF_ENDPOINT",
            error,
        )
    name = model.base if model.revision is None else f"{model.base} at revision {model.revision}"
    raise InputError(
        f"the base {name!r} cannot be fetched: {why}{_did_you_mean(Path(model.base))}", "model.base"
    ) from cause


def _did_you_mean(folder: Path) -> str:
    """Return the end of the message about a missing folder: a sibling with a similar name, if any."""
    if not folder.parent.is_dir():
        return ""
    near = nearest(folder.name, [path.name for path in folder.parent.iterdir() if path.is_dir()])
    return f"; did you mean the folder {str(folder.with_name(near))!r}?" if near else ""


def _checked_base(folder: Path, named: str) -> Path:
    """Return the folder of a base model that the study calls `named`.

    Raises:
        InputError: if it holds no model, or an adapter, which transformers would load with the base silently; or if
            its files are made to do harm (`retune.base_files`).
    """
    if (folder / "adapter_config.json").is_file():
        raise InputError(
            f"a base model folder must not hold an adapter, but {named} has adapter_config.json; name the model that the "
            "adapter was trained on, or save the two as one with PEFT's `merge_and_unload`",
            "model.base",
        )
    if not (folder / "config.json").is_file():
        lacks = "does not" if folder.exists() else f"does not: there is no such folder{_did_you_mean(folder)}"
        raise InputError(f"a base model folder holds config.json, but {named} {lacks}", "model.base")
    if problems := base_files.problems(folder):
        raise InputError(problems, "model.base")
    return folder


def base_digest(folder: Path) -> str:
    """Return the digest of a model folder, over all of its configuration and tokenizer and over samples of its weights.

    Of each file of weights that transformers reads (safetensors, else ``pytorch_model*.bin``) the size and the first,
    middle and last MiB count: reading all 13 GB of a 7B model would take longer than a small trial.
    """
    sha = hashlib.sha256()
    for path in sorted(folder.glob("*.json")) + sorted(folder.glob("*.model")) + _vocabulary(folder):
        sha.update(path.name.encode() + path.read_bytes())
    for path in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin")):
        size = path.stat().st_size
        sha.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            for start in (0, max(0, size // 2 - _SAMPLE_BYTES // 2), max(0, size - _SAMPLE_BYTES)):
                file.seek(start)
                sha.update(file.read(_SAMPLE_BYTES))
    return sha.hexdigest()[:16]


def _vocabulary(folder: Path) -> list[Path]:
    """Return the files that hold the vocabulary where tokenizer.json does not."""
    if (folder / "tokenizer.json").is_file():
        return []
    files = [folder / "vocab.txt", folder / "merges.txt", *sorted(folder.glob("*.tiktoken"))]
    return [path for path in files if path.is_file()]


def load_tokenizer(model: Model) -> Any:
    """Return the tokenizer of the base model; the padding token falls back to the end-of-text token.

    Raises:
        InputError: if the model or its tokenizer cannot be found or read.
    """
    quiet()
    folder = locate(model)
    try:
        tokenizer = _tokenizer_class(folder).from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"no tokenizer can be read in {folder}: {reason}", "model.base") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _tokenizer_class(folder: Path) -> Any:
    """Return the class that loads a tokenizer: ``AutoTokenizer``, or where its choice is certain, that class itself.

    ``AutoTokenizer`` imports torch, which takes seconds. For a Llama with an ordinary fast tokenizer it chooses
    ``TokenizersBackend``, which needs no torch.
    """
    try:
        kind = json.loads((folder / "config.json").read_text())["model_type"]
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        name = settings["tokenizer_class"]
        plain = kind == "llama" and "auto_map" not in settings and (folder / "tokenizer.json").is_file()
    except (OSError, ValueError, KeyError, TypeError):
        plain, name = False, ""
    if plain and name in ("TokenizersBackend", "PreTrainedTokenizerFast"):
        from transformers import TokenizersBackend

        return TokenizersBackend
    from transformers import AutoTokenizer

    return AutoTokenizer


def tokenizer_problems(tokenizer: Any, rows: int) -> list[str]:
    """Return the problems of this tokenizer with a model of `rows` embeddings; empty if the model can be tuned."""
    problems = []
    if tokenizer.eos_token_id is None:
        problems.append(
            "the tokenizer must have an end-of-text token, by which a model learns to stop, but its `eos_token` is not set; "
            "name one in its tokenizer_config.json"
        )
    ids = tokenizer.get_vocab()
    beyond = sorted(token for token, number in ids.items() if number >= rows)
    if beyond:
        more = f" and {len(beyond) - 5} more" if len(beyond) > 5 else ""
        problems.append(
            f"every token must have its row among the base's {rows} embeddings, but {', '.join(map(repr, beyond[:5]))}{more} "
            f"have numbers up to {max(ids.values())}; save the base after `resize_token_embeddings`, with its tokenizer"
        )
    return problems


def context(config: Any) -> int | None:
    """Return the longest sequence of a model, in tokens, by its transformers config; None if that names none."""
    text = config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    return next((int(value) for name in names if (value := getattr(text, name, None))), None)


def pick_device() -> torch.device:
    """Return this process's accelerator (by LOCAL_RANK), else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def pick_dtype(model: Model, device: torch.device) -> torch.dtype:
    """Return the dtype of the base's weights: the study's, for ``auto`` the fastest one of the device.

    ``auto`` is bfloat16 on GPUs that compute in it (compute capability 8.0 and above), float16 on those with tensor
    cores for float16 only (V100 and T4: 7.0 and 7.5), and float32 on a CPU and on older GPUs.

    Raises:
        InputError: if the study asks for bfloat16 and the GPU does not compute in it.
    """
    import torch

    lacks = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    if model.dtype == "bfloat16" and lacks:
        card = torch.cuda.get_device_name(device)
        raise InputError(
            f"bfloat16 needs a GPU of compute capability 8.0 or above, but {card} has "
            f"{'.'.join(map(str, torch.cuda.get_device_capability(device)))}; use auto, float16 or float32",
            "model.dtype",
        )
    if model.dtype != "auto":
        dtype: torch.dtype = getattr(torch, model.dtype)
        return dtype
    if device.type != "cuda":
        return torch.float32
    if not lacks:
        return torch.bfloat16
    return torch.float16 if torch.cuda.get_device_capability(device) >= (7, 0) else torch.float32


def precision(model: Model) -> str:
    """Return the name of the precision that a base computes in on this machine; it is part of the digests of its answers."""
    import torch

    device = pick_device()
    words = f"auto on {device.type}" if model.dtype == "auto" else model.dtype
    if model.dtype == "auto" and pick_dtype(model, device) == torch.float16:
        words += ", float16"  # elsewhere `auto on cuda` means bfloat16
    return f"{words}, {model.quantization}" if model.quantization else words


def quantization_problems(model: Model, cuda: bool) -> list[str]:
    """Return why the base cannot be loaded in 4 bits.

    Args:
        model: the study's `model` section.
        cuda: whether the process that loads it has a GPU.
    """
    if model.quantization is None:
        return []
    problems = []
    if not cuda:
        problems.append(
            f"`model.quantization: {model.quantization}` needs a CUDA GPU, but there is none here"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        problems.append(
            f"`model.quantization: {model.quantization}` needs the package bitsandbytes: pip install 'retune[nf4]'"
        )
    return problems


def load_base(
    model: Model,
    attention: str | None = None,
    load: Callable[[Path, torch.dtype, str | None], Any] | None = None,
) -> LoadedBase:
    """Load the frozen base model onto this process's device, in evaluation mode and without gradients.

    Args:
        model: the study's `model` section.
        attention: transformers' name of the attention implementation; None for torch's own where the architecture takes it.
        load: returns the model of a folder, given dtype and attention implementation; by default `read_model`, whose model
            is moved to the device whole.

    Raises:
        InputError: if the model cannot be found or read.
    """
    quiet()
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # where huggingface_hub is imported already, the variable that `quiet` sets comes too late
    folder = locate(model)
    device = pick_device()
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), cores.available()))
    dtype = pick_dtype(model, device)
    if problems := quantization_problems(model, device.type == "cuda"):
        raise InputError(problems, "model")
    with gc_paused():  # imports the model's classes
        config_of(folder)
    try:
        if load is not None:
            loaded = load(folder, dtype, attention)
        elif model.quantization == "nf4":
            loaded = _in_four_bits(folder, dtype, attention, device)
        else:
            loaded = read_model(folder, dtype, attention).to(device)
    except Exception as error:  # damaged files raise errors of safetensors, pickle, zipfile and torch
        if isinstance(error, InputError) or is_out_of_memory(error):
            raise
        raise InputError(
            f"the base model in {folder} cannot be loaded: {_first_line(error)}", "model.base"
        ) from error
    loaded.eval().requires_grad_(False)
    # RWKV divides the weights of its blocks by powers of 2 in evaluation mode, in place, and multiplies them in training
    # mode (transformers, `RwkvModel._rescale_layers`): the base must stay the same in both.
    if getattr(loaded.config, "rescale_every", 0):
        loaded.config.rescale_every = 0
    return LoadedBase(loaded, load_tokenizer(model), device, dtype, base_digest(folder), model.revision)


def _first_line(error: Exception) -> str:
    """Return an error in one line; where shapes differ, transformers' own message refers to a table in its log."""
    if "ignore_mismatched_sizes" in str(error):
        return "the shapes of its weights are not those that config.json asks for"
    return first_line(error)


def read_model(folder: Path, dtype: torch.dtype, attention: str | None, **options: Any) -> Any:
    """Return transformers' model of a folder, on the CPU unless `options` name a device.

    Raises:
        OSError, ValueError: if it cannot be read, or weights are missing.
    """
    from transformers import AutoModelForCausalLM

    model, loading = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation=attention,
        trust_remote_code=False,
        output_loading_info=True,
        **options,
    )
    # transformers initialises missing weights at random, with a warning: every loss would be that of another model
    lacking = sorted(loading["missing_keys"])
    if lacking and "quantization_config" not in options:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise ValueError(f"its files must have every weight, but lack {', '.join(lacking[:3])}{more}")
    return model


def config_of(folder: Path) -> Any:
    """Return transformers' config of a model folder that holds a causal language model.

    Raises:
        InputError: if it cannot be read, or is of another kind of model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = first_line(error)
        raise InputError(
            f"transformers cannot read {folder / 'config.json'}: {reason}", "model.base"
        ) from error
    if type(config) not in AutoModelForCausalLM._model_mapping:
        try:
            text = config.get_text_config(decoder=True)
        except ValueError:  # it holds several
            text = config
        if config.is_encoder_decoder:
            what, hint = "an encoder-decoder", ""
        elif text is not config:
            what = "more than a language model"
            hint = f"; save the language model in it ({text.model_type}) by itself, with its tokenizer"
        else:
            what, hint = "none", ""
        raise InputError(
            f"a base must be a causal language model (of transformers' AutoModelForCausalLM), but {config.model_type} is "
            f"{what}{hint}",
            "model.base",
        )
    return config


def _in_four_bits(folder: Path, dtype: torch.dtype, attention: str | None, device: torch.device) -> Any:
    """Return the model with its linear layers in 4-bit NormalFloat, as in QLoRA (Dettmers et al. 2023, arXiv 2305.14314).

    The quantisation constants are quantised too (double quantisation). Products are computed in `dtype`, in which
    embeddings, norms and head stay.
    """
    from transformers import BitsAndBytesConfig

    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return read_model(folder, dtype, attention, quantization_config=four_bits, device_map={"": device})
