"""`retune suggest`: the settings that would be tried next, and their origin."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from retune.cli._say import say, say_data

if TYPE_CHECKING:
    from retune.search import Observation


@click.command("suggest")
@click.option("--study", "study_file", required=True, metavar="FILE", help="The study file.")
@click.option(
    "--history",
    metavar="DIR",
    help="Folder or URI of a search, with `trials` in it. Default: a new study.",
)
@click.option("--count", default=1, show_default=True, type=click.IntRange(1), help="How many settings.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per setting.")
def command(study_file: str, history: str | None, count: int, as_json: bool) -> None:
    """Show which settings a study would try next, and where each comes from.

    Trials that were issued but have no record yet count as running. Nothing is run or written; the same input gives
    the same answer.

    \b
    Examples:
      retune suggest --study study.yaml --count 9
      retune suggest --study study.yaml --history artifacts/my-study/search --count 4 --json
    """
    from retune import search, study

    loaded = study.load(study_file)
    algorithm, objective = loaded.search.algorithm, search.Objective.of(loaded.search)
    known = _history(history) if history else []
    proposals = search.explain(
        algorithm, loaded.search.space, objective, loaded.search_settings, known, count, loaded.seed
    )
    if as_json:
        for proposal in proposals:
            say_data(json.dumps({"assignment": proposal.assignment, "origin": proposal.origin}))
        return
    done = sum(entry.status == "completed" for entry in known)
    stopped = sum(entry.status == "early_stopped" for entry in known)
    failed = sum(entry.status == "failed" for entry in known)
    running = len(known) - done - stopped - failed
    early = f"{stopped} stopped early, " if stopped else ""
    say(f"{algorithm}, knowing {done} completed, {early}{failed} failed, {running} running")
    width = max(len(proposal.origin) for proposal in proposals)
    for proposal in proposals:
        setting = "  ".join(f"{name}={value}" for name, value in proposal.assignment.items())
        say(f"{proposal.origin:{width}}  {setting}")


def _history(folder: str) -> list[Observation]:
    """Return the observations of the search in `folder`."""
    from retune.errors import InputError
    from retune.workspace.ledger import Ledger

    observations = Ledger(folder).observations()
    if not observations:
        raise InputError(
            f"a search's folder holds `trials/trial-001` and so on, but {folder} has none", "--history"
        )
    return observations
