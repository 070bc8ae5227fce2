"""A tuned adapter as files for others: with a model card, merged into its base, as GGUF, or as an OCI image."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from retune import models, store
from retune.errors import InputError, RetuneError, first_line
from retune.markdown import block, plain, row
from retune.steps.tuned import PROMPT, Tuned, require_fit

CONVERTER = "convert_hf_to_gguf.py"


def card(what: Tuned, licence: str | None) -> str:
    """Return the model card: front matter for Hugging Face hubs, and the facts as a table."""
    base = what.model.base
    local = base.startswith(("/", ".")) or "://" in base
    named = ({} if local else {"base_model": base}) | ({"license": licence} if licence else {})
    head = ["---", "library_name: peft"]
    named = {key: " ".join(text.split()) for key, text in named.items()}  # on one line each
    head += yaml.safe_dump(named, sort_keys=False, width=10_000).splitlines() if named else []
    head += ["pipeline_tag: text-generation", "tags: [lora, retune]", "---"]
    rows = [row(fact) for fact in what.facts.items()]
    terms = licence or "not given; the terms of the base and of the data apply"
    usage = {
        "chat": "Prompt it with the chat template of its tokenizer.",
        "alpaca": "Prompt it with Alpaca's template: the instruction under `### Instruction:`, the answer after `### Response:`.",
        "none": "Prompt it with plain text, without a template.",
        "fields": f"Prompt it with this template:\n\n{block(what.template.text or '')}",
    }[what.template.kind]
    table = ["| | |", "|---|---|", *rows, row(["Licence", terms])]
    lines = [
        *head,
        "",
        f"# {plain(what.name)}",
        "",
        "A LoRA adapter, tuned by retune.",
        "",
        *table,
        "",
        usage,
        "",
    ]
    return "\n".join(lines)


def write(what: Tuned, out: Path, licence: str | None = None, merge: bool = False) -> Path:
    """Write the adapter, or the merged model, and its card into a folder; return it.

    Raises:
        InputError: if the folder is not empty or cannot be written, or the adapter does not fit the base.
    """
    store.require_writable(out, "--out")
    if out.exists() and any(out.iterdir()):
        raise InputError("a folder to export to must be empty or new", str(out))
    temporary = Path(tempfile.mkdtemp(prefix=".retune-export-", dir=_existing(out.resolve().parent)))
    try:
        if merge:
            _merge(what, temporary)
        else:
            for path in what.adapter.iterdir():
                _require_own(path, what.adapter)
                shutil.copy(path, temporary / path.name)
            _tokenizer(what).save_pretrained(temporary)
        if what.prompt is not None:
            (temporary / PROMPT).write_text(what.prompt.model_dump_json() + "\n", encoding="utf-8")
        (temporary / "README.md").write_text(card(what, licence), encoding="utf-8")
        temporary.chmod(0o755)
        if out.exists():
            out.rmdir()
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if what.temporary:
            shutil.rmtree(what.temporary, ignore_errors=True)
    return out


def _require_own(path: Path, adapter: Path) -> None:
    """Raise InputError if a file is a link out of its adapter; in the hub's cache, files are links to its folder `blobs`."""
    source, folder = path.resolve(), adapter.resolve()
    cached = source.parent.name == "blobs" and source.parent.parent in folder.parents
    if path.is_symlink() and not cached and not source.is_relative_to(folder):
        raise InputError(
            f"an adapter's folder must hold its files, but {path.name!r} is a link to {source}", str(adapter)
        )


def converter() -> Path:
    """Return llama.cpp's own converter to GGUF.

    Raises:
        InputError: if it is not installed.
    """
    configured = os.environ.get("LLAMA_CPP")
    path = Path(configured, CONVERTER) if configured else Path(shutil.which(CONVERTER) or CONVERTER)
    if not path.is_file():
        raise InputError(
            f"--gguf needs llama.cpp's {CONVERTER}: put it on the PATH, or set LLAMA_CPP to the folder of llama.cpp"
        )
    return path


def to_gguf(merged: Path, kind: str) -> Path:
    """Convert a merged model with llama.cpp's converter; return the GGUF file.

    Raises:
        InputError: if the converter is not installed.
        RetuneError: if it fails.
    """
    program = converter()
    out = merged / f"{merged.name}-{kind}.gguf"
    done = subprocess.run(
        [sys.executable, str(program), str(merged), "--outfile", str(out), "--outtype", kind],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode or not out.is_file():
        raise RetuneError(
            f"{program} failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"
        )
    return out


def _existing(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _tokenizer(what: Tuned) -> Any:
    tokenizer = models.load_tokenizer(what.model)
    if what.template.kind == "chat" and what.template.text:
        tokenizer.chat_template = what.template.text
    return tokenizer


def _merge(what: Tuned, out: Path) -> None:
    models.skip_bitsandbytes(what.model)
    require_fit(what)
    from peft import PeftModel

    base = models.load_base(what.model)
    if getattr(base.model, "is_quantized", False):
        base.model = _dequantized(base.model, what.model.base)
    tuned = PeftModel.from_pretrained(base.model, what.adapter)
    _untie_adapted(base.model)
    tuned.merge_and_unload(safe_merge=True).save_pretrained(out)
    _tokenizer(what).save_pretrained(out)


def _dequantized(model: Any, name: str) -> Any:
    """Return a quantised base in its full precision: rounding the sum with an adapter to a few bits again would change it.

    Raises:
        InputError: if transformers cannot do that for this quantisation.
    """
    try:
        model = model.dequantize()
    except NotImplementedError as error:
        raise InputError(
            f"--merge needs weights in full precision, but those of {name} are quantised, and transformers cannot restore "
            f"them ({first_line(error)}): name the base that is not quantised by --base"
        ) from error
    model._weight_conversions = None  # how the quantised files were read, which saving would try to reverse
    return model


def _untie_adapted(model: Any) -> None:
    """Give embeddings and output layer weights of their own if they share them and one has an adapter.

    Otherwise merging the adapter of one would change the other too.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    inner = [layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer for layer in layers]
    if None in inner or inner[0].weight is not inner[1].weight or layers == inner:
        return
    inner[1].weight = torch.nn.Parameter(inner[1].weight.detach().clone(), requires_grad=False)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
