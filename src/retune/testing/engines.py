"""The contract of an engine, as tests: subclass `EngineContract` and give its name. The trials are real, and tiny."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from retune import engines
from retune.errors import Interrupted
from retune.events import Event
from retune.records import TrialRecord
from retune.steps import mix
from retune.testing.studies import make_study
from retune.workspace.ledger import BASE, DEFAULT, Ledger


class EngineContract:
    """What retune relies on in an engine.

    Attributes:
        name: of the engine, as `engine.kind` in a study file has it.

    """

    name: ClassVar[str]

    @classmethod
    def run(
        cls, place: Path, trials: int, events: list[Event], should_stop: Callable[[], bool] = lambda: False
    ) -> dict[str, TrialRecord]:
        """Run a study of so many trials below `place` on the engine and return all records by name."""
        study = make_study(place, cls.name, trials)
        recipe = mix.recipe(study)
        mix.mix(recipe)
        folder = str(place / "search")
        job = engines.SearchJob(study, recipe.folder, folder, place / "work", events.append, should_stop)
        outcome = engines.start(job).run()
        assert outcome.stopped_by == "trials"
        return {record.trial: record for record in outcome.records}

    @pytest.fixture(scope="class")
    @classmethod
    def finished(
        cls, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[Path, dict[str, TrialRecord], list[Event]]:
        """A search of three trials: its folder, its records, and the engine's events."""
        place = tmp_path_factory.mktemp("engine")
        events: list[Event] = []
        return place, cls.run(place, 3, events), events

    def test_base_default_and_search_trials_all_have_a_record(
        self, finished: tuple[Path, dict[str, TrialRecord], list[Event]]
    ) -> None:
        place, records, _ = finished
        assert list(records) == [BASE, DEFAULT, "trial-002", "trial-003"]
        assert [record.role for record in records.values()] == ["base", "default", "search", "search"]
        assert [record.number for record in records.values()] == [0, 1, 2, 3]
        assert all(
            record.status == "completed" and record.values["validation_loss"] > 0
            for record in records.values()
        )
        assert Ledger(str(place / "search")).records == records

    def test_settings_are_all_different(
        self, finished: tuple[Path, dict[str, TrialRecord], list[Event]]
    ) -> None:
        _, records, _ = finished
        tried = [record.assignment for record in records.values() if record.role != "base"]
        assert all(tried.count(setting) == 1 for setting in tried)

    def test_every_trial_is_told_when_it_begins_and_when_it_ends(
        self, finished: tuple[Path, dict[str, TrialRecord], list[Event]]
    ) -> None:
        _, records, events = finished
        issued = [event.trial for event in events if event.kind == "issued"]
        ended = [event.trial for event in events if event.kind == "finished"]
        assert sorted(issued) == sorted(ended) == sorted(records)
        for event in events:
            if event.kind == "finished":
                assert event.trial in issued
                assert event.record.values == records[event.trial].values

    def test_what_is_done_is_not_done_again_and_more_trials_carry_on(
        self, finished: tuple[Path, dict[str, TrialRecord], list[Event]]
    ) -> None:
        place, records, _ = finished
        events: list[Event] = []
        assert self.run(place, 3, events) == records
        assert [event for event in events if event.kind in ("issued", "finished")] == []
        longer = self.run(place, 4, events)
        assert [event.trial for event in events if event.kind == "issued"] == ["trial-004"]
        assert {name: longer[name].values for name in records} == {n: r.values for n, r in records.items()}

    def test_a_stop_ends_it_and_the_next_run_carries_on(self, tmp_path: Path) -> None:
        events: list[Event] = []
        with pytest.raises(Interrupted):
            self.run(tmp_path, 3, events, lambda: any(event.kind == "finished" for event in events))
        kept = Ledger(str(tmp_path / "search")).records
        assert 1 <= len(kept) < 4
        after: list[Event] = []
        records = self.run(tmp_path, 3, after)
        assert len(records) == 4
        assert {name: records[name] for name in kept} == kept
        assert not {event.trial for event in after if event.kind == "issued"} & set(kept)
