"""A tuned adapter as files for others: with a model card, merged into its base, as GGUF, or as an OCI image."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retune import models, store
from retune.data import mixing
from retune.data.prompts import Prompt
from retune.errors import InputError, RetuneError
from retune.records import TrialRecord
from retune.registry import promotion
from retune.report.folder import newest_search, study_in
from retune.study import Model, Study
from retune.workspace.search_folder import GATE, SEARCH, SELECTION, SearchFolder

CONVERTER = "convert_hf_to_gguf.py"


@dataclass
class Exported:
    """What is exported.

    Attributes:
        name: of the study or the registered model. adapter: the local folder with PEFT's files.
        model: the base. prompt: how it is asked. facts: what the card tells, a line each.
        temporary: a folder to delete afterwards.
    """

    name: str
    adapter: Path
    model: Model
    prompt: Prompt = field(default_factory=Prompt)
    facts: dict[str, str] = field(default_factory=dict)
    temporary: Path | None = None


def from_run(folder: str, trial: str | None = None) -> Exported:
    """Return the chosen trial of a study's folder, or another one by name.

    Raises:
        InputError: if there is no such study or trial, or its adapter was not kept.
    """
    search = SearchFolder(newest_search(folder))
    study = study_in(search.uri)
    chosen = trial or _chosen(search, study)
    record = search.trials.get(chosen)
    if record is None or not record.adapter_uri:
        kept = [name for name, one in search.trials.items() if one.adapter_uri]
        raise InputError(f"a trial with an adapter is one of {kept}, but got {chosen!r}", search.uri)
    mix = _mixed(search, record)
    setting = [f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.assignment.items()]
    facts = {
        "Study": f"{study.name}, {record.trial} of {search.name}",
        "Base": _base(study.model),
        "Setting": ", ".join(setting),
        "Target modules": str(study.training.target_modules),
        "Data": _data(mix, record),
        "Prompt": mix.prompt.kind if mix else "alpaca",
    }
    for name, value in record.values.items():
        if "loss" in name:
            facts[name.replace("_", " ").capitalize()] = f"{value:.5g}"
    for bench in search.benches(study):
        if bench.model == chosen:
            facts[f"{bench.task} ({bench.n} questions)"] = (
                f"{100 * bench.score:.1f} % ± {100 * bench.stderr:.1f}"
            )
    if search.has(GATE):
        facts["Gate"] = f"{search.gate.decision}: " + "; ".join(
            f"{rule['rule']} {rule['outcome']}" for rule in search.gate.rules
        )
    facts["Adapter digest"] = record.adapter_digest or "unknown"
    return Exported(
        study.name, store.download(record.adapter_uri), study.model, mix.prompt if mix else Prompt(), facts
    )


def from_registry(model: str, alias: str, uri: str) -> Exported:
    """Return a version of a registered model, by alias (`champion`) or number.

    Raises:
        InputError: if there is none.
    """
    known = promotion.describe(uri, model)
    tags: Mapping[str, str] = known.get(alias) or {}
    version = tags.get("version") or (alias if alias.isdigit() else None)
    if version is None:
        there = [name for name, facts in known.items() if facts]
        raise InputError(f"an alias with a version is one of {there}, but got {alias!r}", model)
    folder = Path(tempfile.mkdtemp(prefix="retune-export-"))
    adapter = promotion.download_adapter(uri, model, version, folder)
    base = Model(base=tags.get("base", ""), revision=tags.get("base_revision") or None)
    named = (
        "study",
        "trial",
        "assignment",
        "objective",
        "objective_value",
        "data_digest",
        "gate",
        "adapter_digest",
    )
    facts = {"Version": f"{version} of {model}", "Base": _base(base)}
    facts |= {name.replace("_", " ").capitalize(): tags[name] for name in named if tags.get(name)}
    facts |= {name.removeprefix("bench."): tags[name] for name in sorted(tags) if name.startswith("bench.")}
    return Exported(model, adapter, base, Prompt(), facts, folder)


def card(what: Exported, licence: str | None) -> str:
    """Return the model card: what Hugging Face hubs read at its top, and the facts as a table."""
    base = what.model.base
    local = base.startswith(("/", ".")) or "://" in base
    head = ["---", "library_name: peft"]
    head += [] if local else [f"base_model: {base}"]
    head += [f"license: {licence}"] if licence else []
    head += ["pipeline_tag: text-generation", "tags: [lora, retune]", "---"]
    rows = ["| {} | {} |".format(name, str(text).replace("|", "/")) for name, text in what.facts.items()]
    terms = licence or "not named; the terms of the base and of the data hold"
    asked = {
        "chat": "Ask it by the chat template of its tokenizer.",
        "alpaca": "Ask it by Alpaca's prompt: the instruction under `### Instruction:`, the answer behind `### Response:`.",
        "none": "Ask it with the bare text.",
        "fields": "Ask it with this template:\n\n```text\n" + (what.prompt.text or "") + "\n```",
    }[what.prompt.kind]
    table = ["| | |", "|---|---|", *rows, f"| Licence | {terms} |"]
    lines = [*head, "", f"# {what.name}", "", "A LoRA adapter, tuned by retune.", "", *table, "", asked, ""]
    return "\n".join(lines)


def write(what: Exported, out: Path, licence: str | None = None, merge: bool = False) -> Path:
    """Write the adapter, or the merged model, and its card into a folder; return it.

    Raises:
        InputError: if the folder holds something already.
    """
    if out.exists() and any(out.iterdir()):
        raise InputError("a folder to export to must be empty or new", str(out))
    made = Path(tempfile.mkdtemp(prefix=".retune-export-", dir=_existing(out.resolve().parent)))
    try:
        if merge:
            _merge(what, made)
        else:
            for path in what.adapter.iterdir():
                shutil.copy(path, made / path.name)
            _tokenizer(what).save_pretrained(made)
        (made / "README.md").write_text(card(what, licence), encoding="utf-8")
        made.chmod(0o755)
        if out.exists():
            out.rmdir()
        os.replace(made, out)
    finally:
        shutil.rmtree(made, ignore_errors=True)
        if what.temporary:
            shutil.rmtree(what.temporary, ignore_errors=True)
    return out


def to_gguf(merged: Path, kind: str) -> Path:
    """Convert a merged model by llama.cpp's own converter; return the file.

    Raises:
        InputError: if the converter is not installed.
        RetuneError: if it fails.
    """
    named = os.environ.get("LLAMA_CPP")
    converter = Path(named, CONVERTER) if named else Path(shutil.which(CONVERTER) or CONVERTER)
    if not converter.is_file():
        raise InputError(
            f"--gguf needs llama.cpp's {CONVERTER}: put it on the PATH, or set LLAMA_CPP to the folder of llama.cpp"
        )
    out = merged / f"{merged.name}-{kind}.gguf"
    done = subprocess.run(
        [sys.executable, str(converter), str(merged), "--outfile", str(out), "--outtype", kind],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode or not out.is_file():
        raise RetuneError(
            f"{converter} failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"
        )
    return out


def _existing(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _chosen(search: SearchFolder, study: Study) -> str:
    if search.has(SELECTION) and search.selection.chosen:
        return search.selection.chosen
    ranked = search.ledger.ranking(study.search)
    if not ranked:
        raise InputError("no trial has completed yet", search.uri)
    return ranked[0].trial


def _mixed(search: SearchFolder, record: TrialRecord) -> mixing.MixRecord | None:
    root = search.uri.rstrip("/").rpartition("/")[0]
    wanted = record.data_digest or (search.search.data_digest if search.has(SEARCH) else "")
    for name in store.listing(root):
        if name.count("/") == 1 and name.startswith("data-") and name.endswith("/mix.json"):
            found = mixing.read_mix_record(store.join(root, name.partition("/")[0]))
            if found.digest == wanted:
                return found
    return None


def _base(model: Model) -> str:
    return model.base if model.revision is None else f"{model.base} at revision {model.revision}"


def _data(mix: mixing.MixRecord | None, record: TrialRecord) -> str:
    if mix is None:
        return f"digest {record.data_digest}"
    sources = ", ".join(f"{s.name} ({s.share:.0%}, SHA-256 {s.sha256[:12]}…)" for s in mix.sources)
    return f"{mix.splits['train'].records:,} records of {sources}; digest {mix.digest}"


def _tokenizer(what: Exported) -> Any:
    tokenizer = models.load_tokenizer(what.model)
    if what.prompt.kind == "chat" and what.prompt.text:
        tokenizer.chat_template = what.prompt.text
    return tokenizer


def _merge(what: Exported, out: Path) -> None:
    from peft import PeftModel

    base = models.load_base(what.model)
    tuned = PeftModel.from_pretrained(base.model, what.adapter)
    tuned.merge_and_unload(safe_merge=True).save_pretrained(out)
    _tokenizer(what).save_pretrained(out)
