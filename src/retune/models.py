"""Loading the frozen base model and its tokenizer: one place, so that training and benchmarks see the same weights."""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retune.errors import InputError
from retune.study import Model

if TYPE_CHECKING:
    import torch

_SAMPLE = 1 << 20


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
    """Silence the libraries' chatter: progress bars, advice and deprecation notes are not for our users."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", module=r"(transformers|peft|torch|huggingface_hub|accelerate)\b")
    for name in ("transformers", "peft", "accelerate", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)


def locate(model: Model) -> Path:
    """Return the local folder of the base model; a hub name is fetched at its pinned revision.

    Raises:
        InputError: if there is no such folder, it holds no model, or the hub has no such revision.
    """
    if "://" in model.base:
        from retune import store

        return store.download(model.base)
    folder = Path(model.base)
    if folder.is_absolute() or folder.exists():
        if not (folder / "config.json").is_file():
            raise InputError(f"a base model folder holds config.json, but {folder} does not", "model.base")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                model.base, revision=model.revision, ignore_patterns=["*.bin", "*.pth", "*.gguf"]
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"no folder {model.base!r} here, and the hub did not give it: {error}", "model.base"
        ) from error


def base_digest(folder: Path) -> str:
    """Return the digest of a model folder, over its JSON files whole and over samples of its weights.

    Weights are sampled (size, first, middle and last MiB of each file): reading 13 GB to name them would cost more
    than a small trial.
    """
    sha = hashlib.sha256()
    for path in sorted(folder.glob("*.json")) + sorted(folder.glob("*.model")):
        sha.update(path.name.encode() + path.read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        sha.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            for start in (0, max(0, size // 2 - _SAMPLE // 2), max(0, size - _SAMPLE)):
                file.seek(start)
                sha.update(file.read(_SAMPLE))
    return sha.hexdigest()[:16]


def load_tokenizer(model: Model) -> Any:
    """Return the tokenizer of the base model; the padding token falls back to the end-of-text token."""
    quiet()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(locate(model))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def pick_device() -> torch.device:
    """Return this process's accelerator (by LOCAL_RANK), else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def load_base(model: Model, attention: str = "sdpa") -> LoadedBase:
    """Load the frozen base model onto this process's device, in evaluation mode and without gradients.

    Args:
        model: the study's `model` section.
        attention: transformers' name of the attention implementation.

    Raises:
        InputError: if the model cannot be found or read.
    """
    quiet()
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # the variable of `quiet` comes too late where huggingface_hub was imported before
    folder = locate(model)
    device = pick_device()
    bfloat16 = model.dtype == "bfloat16" or (
        model.dtype == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    try:
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention)
    except (OSError, ValueError) as error:
        raise InputError(f"the base model in {folder} cannot be loaded: {error}", "model.base") from error
    loaded.to(device).eval().requires_grad_(False)
    return LoadedBase(loaded, load_tokenizer(model), device, dtype, base_digest(folder), model.revision)
