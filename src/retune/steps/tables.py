"""The tables of a finished search, for a person to choose from."""

from __future__ import annotations

from retune.errors import RetuneError
from retune.selection.scoreboard import Method, Scoreboard, scoreboard
from retune.study import Study
from retune.workspace.search_folder import SEARCH, SELECTION, SearchFolder


def tables(study: Study, best: int = 10, worst: int = 10) -> Scoreboard:
    """Return the tables of a finished search, and the selection by the study's current rule; write nothing.

    Raises:
        RetuneError: if the search is not finished.
        InputError: if the rule is unusable, or scores were made from different questions.
    """
    folder = SearchFolder.of(study)
    if folder is None or not folder.has(SEARCH):
        raise RetuneError(f"the search of study {study.name!r} is not finished; run it to the end first")
    search = study.search
    method = Method(search.algorithm, list(folder.trials.values()), folder.benches(study))
    board = scoreboard(
        study.name, [method], search.objective, study.select, study.benchmark.tasks, search.constraints,
        search.further_objectives, best, worst,
    )  # fmt: skip
    if folder.has(SELECTION):
        before = folder.selection.chosen
        if before != board.selection.chosen:
            board.notes.append(
                f"The study itself chose {before}: by another rule, or before these scores existed. `retune run` with "
                "the same overrides applies the choice above."
            )
    return board
