"""The two models that people compare: how they are named, and the prompt of each."""

from __future__ import annotations

from dataclasses import dataclass

from retune import store
from retune.data.encode import resolve
from retune.data.prompts import Prompt
from retune.errors import InputError
from retune.evaluation.bench import Candidate
from retune.evaluation.judge.answers import Prompts
from retune.steps import tuned

UNTUNED = "base"


@dataclass(frozen=True)
class Contestant:
    """One of the two models; `prompt` is None for the untuned base, and if an adapter has no recorded prompt."""

    candidate: Candidate
    prompt: Prompt | None = None


def find(text: str, tracking: str = "sqlite:///mlflow.db") -> Contestant:
    """Return the model that a person names: `base`, an adapter's folder, a study's, or a registered `model@alias`.

    Args:
        text: ``[NAME=]WHAT``; the default name is the last telling part of WHAT.
        tracking: MLflow's URI.

    Raises:
        InputError: if there is no such study or registered version.
    """
    if text == UNTUNED:
        return Contestant(Candidate(UNTUNED))
    name, equals, what = text.partition("=")
    if not equals or "/" in name:
        name, what = "", text
    if what == UNTUNED:
        return Contestant(Candidate(name or UNTUNED))
    if tuned.is_registered(what):
        adapter = tuned.find(what, tracking=tracking)
        return Contestant(Candidate(name or what, str(adapter.adapter)), adapter.prompt)
    parts = [part for part in what.rstrip("/").split("/") if part not in ("", "adapter", ".", "..")]
    name = name or (parts[-1] if parts else "adapter")
    if _is_study(what):
        adapter = tuned.from_run(what)
        return Contestant(Candidate(name, str(adapter.adapter)), adapter.prompt)
    return Contestant(Candidate(name, what), tuned.prompt_of(what))


def prompts(a: Contestant, b: Contestant, option: str | None = None) -> tuple[Prompts, str]:
    """Return the prompt of each model, and a note if one had to be assumed.

    Args:
        a, b: the two models. option: of the command line, `--prompt`: ``chat``, ``alpaca``, ``none`` or a file with a template.

    Raises:
        InputError: if it is none of these.
    """
    if option is not None:
        if option == "auto":
            raise InputError(
                "a prompt must be chat, alpaca, none or a file with a template, but got 'auto'", "--prompt"
            )
        how = resolve(option, False)
        return {"a": how, "b": how}, ""
    unknown = [c.candidate.name for c in (a, b) if c.candidate.adapter_uri and c.prompt is None]
    known = [c.prompt for c in (a, b) if c.prompt is not None]
    other = known[0] if known and not unknown else Prompt()
    note = ""
    if unknown:
        note = (
            f"there is no record of the prompt that {' and '.join(unknown)} was tuned with, so Alpaca's is used; "
            "name another with --prompt"
        )
    return {"a": a.prompt or other, "b": b.prompt or other}, note


def _is_study(what: str) -> bool:
    if store.exists(store.join(what, "adapter_config.json")):
        return False
    return any(f"/{name}".endswith("/study.json") and name.count("/") <= 1 for name in store.listing(what))
