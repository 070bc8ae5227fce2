"""A tuned adapter that a person names: by the folder of its study, as a registered version, or by its own folder."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from retune import adapter as adapter_files
from retune import models, store
from retune.data.encode import resolve
from retune.data.mix_record import MixRecord
from retune.data.prompts import Prompt
from retune.errors import InputError, RetuneError
from retune.evaluation.decoding import adapters
from retune.records import TrialRecord
from retune.registry import versions
from retune.report.folder import newest_search, study_in
from retune.study import Model, Study
from retune.workspace.search_folder import GATE, SEARCH, SELECTION, SearchFolder

PROMPT = versions.PROMPT
"""The file in an exported folder with the prompt template of the model."""


@dataclass
class Tuned:
    """An adapter with what its study recorded of it.

    Attributes:
        name: of the study or the registered model. adapter: the local folder with PEFT's files.
        model: the base. prompt: the template it was tuned with; None if that was not recorded.
        facts: the rows of the model card. temporary: a folder to delete afterwards.
    """

    name: str
    adapter: Path
    model: Model
    prompt: Prompt | None = None
    facts: dict[str, str] = field(default_factory=dict)
    temporary: Path | None = None

    def __post_init__(self) -> None:
        """Add the prompt to the model card."""
        self.facts["Prompt"] = self.prompt.kind if self.prompt else "not recorded; Alpaca's is assumed"

    @property
    def template(self) -> Prompt:
        """The prompt to use: the recorded one, else Alpaca's, the only one before prompts were recorded."""
        return self.prompt or Prompt()


def find(
    what: str, trial: str | None = None, tracking: str = "sqlite:///mlflow.db", base: str | None = None
) -> Tuned:
    """Return the adapter that a person names: by the folder of a study, or as `model@alias` of the registry.

    Args:
        what: a path or URI, or a registered model with an alias (`champion`) or number after the @.
        trial: another trial of the study than the chosen one. tracking: MLflow's URI.
        base: the base on this machine; by default the one that the study names.

    Raises:
        InputError: as `from_run` and `from_registry`.
    """
    if not is_registered(what):
        adapter = from_run(what, trial)
    elif trial:
        raise InputError(
            f"--trial needs the folder of a study, but {what} is a registered version: leave --trial out"
        )
    else:
        model, _, alias = what.partition("@")
        adapter = from_registry(model, alias, tracking)
    if base:
        adapter.model = adapter.model.model_copy(update={"base": base, "revision": None})
    return adapter


def require_fit(what: Tuned) -> None:
    """Refuse an adapter that does not fit its base, before the base is loaded.

    Raises:
        InputError: with the reason.
    """
    if problems := adapters.problems(what.name, what.adapter, models.locate(what.model)):
        raise InputError(problems)


def is_registered(what: str) -> bool:
    """Return whether a text is a registered version, `model@alias`, and not a path or URI."""
    return "@" in what and "://" not in what and not Path(what).exists()


def from_run(folder: str, trial: str | None = None) -> Tuned:
    """Return the chosen trial of a study's folder, or another one by name.

    Raises:
        InputError: if there is no such study or trial, or its adapter was not kept, was deleted or changed.
    """
    search = SearchFolder(newest_search(folder))
    study = study_in(search.uri)
    chosen = trial or _chosen(search, study)
    record = search.trials.get(chosen)
    if record is None or not record.adapter_uri:
        kept = [name for name, one in search.trials.items() if one.adapter_uri]
        raise InputError(f"a trial with an adapter must be one of {kept}, but got {chosen!r}", search.uri)
    files = adapter_files.fetch(record.adapter_uri, record.adapter_digest)
    wanted = record.data_digest or (search.search.data_digest if search.has(SEARCH) else "")
    mix = search.mix(wanted)
    setting = [f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.assignment.items()]
    facts = {
        "Study": f"{study.name}, {record.trial} of {search.name}",
        "Base": _base(study.model),
        "Setting": ", ".join(setting),
        "Target modules": str(record.assignment.get("target_modules", study.training.target_modules)),
        "Data": _data(mix, record),
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
    prompt = mix.prompt if mix else _named(study)
    return Tuned(study.name, files, study.model, prompt, facts)


def from_registry(model: str, alias: str, uri: str) -> Tuned:
    """Return a version of a registered model, by alias (`champion`) or number.

    Raises:
        InputError: if there is none.
    """
    version, tags = versions.version(uri, model, alias)
    folder = Path(tempfile.mkdtemp(prefix="retune-export-"))
    adapter = versions.download_adapter(uri, model, version, folder)
    base = Model(base=tags["base"], revision=tags.get("base_revision") or None)
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
    return Tuned(model, adapter, base, versions.prompt(uri, model, version), facts, folder)


def prompt_of(adapter_uri: str) -> Prompt | None:
    """Return the prompt that the adapter in a folder was tuned with; None if it is not recorded.

    An exported folder has it in a file; for an adapter in a study's folder it is in the record of the mixed data.
    """
    try:
        return Prompt.model_validate_json(store.read(store.join(adapter_uri, PROMPT)))
    except FileNotFoundError:
        pass
    except (ValueError, RetuneError) as error:
        raise InputError(f"{PROMPT} cannot be read: {error}", adapter_uri) from error
    trial = adapter_uri.rstrip("/").rpartition("/")[0]
    search = trial.rpartition("/")[0].rpartition("/")[0]
    try:
        record = TrialRecord.model_validate_json(store.read(store.join(trial, "trial.json")))
        mix = SearchFolder(search).mix(record.data_digest)
        return mix.prompt if mix else _named(study_in(search))
    except (FileNotFoundError, ValueError, RetuneError):
        return None


def _named(study: Study) -> Prompt | None:
    """Return the prompt that a study names, without its mixed data; None for `auto`, which depends on that data."""
    try:
        return None if study.data.prompt == "auto" else resolve(study.data.prompt, False)
    except InputError:
        return None  # the file with the template no longer exists


def _chosen(search: SearchFolder, study: Study) -> str:
    if search.has(SELECTION) and search.selection.chosen:
        return search.selection.chosen
    ranked = search.ledger.ranking(study.search)
    if not ranked:
        raise InputError("no trial has completed yet", search.uri)
    return ranked[0].trial


def _base(model: Model) -> str:
    return model.base if model.revision is None else f"{model.base} at revision {model.revision}"


def _data(mix: MixRecord | None, record: TrialRecord) -> str:
    if mix is None:
        return f"digest {record.data_digest}"
    sources = ", ".join(f"{s.name} ({s.share:.0%}, SHA-256 {s.sha256[:12]}…)" for s in mix.sources)
    return f"{mix.splits['train'].records:,} records of {sources}; digest {mix.digest}"
