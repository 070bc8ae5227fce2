"""The contract of a search algorithm, as tests: subclass `AlgorithmContract` and give its name."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retune import search
from retune.errors import InputError
from retune.search import Objective, Observation
from retune.space import Assignment, Parameter, Space, Value, davouse2024, tribes2024
from retune.study import Constraint
from retune.testing.spaces import odd_spaces, spaces

Status = Literal["completed", "failed", "running", "early_stopped"]
Point = tuple[tuple[str, Value], ...]

LOSS = Objective()


def measured(space: Space, assignment: Mapping[str, Value]) -> dict[str, float]:
    """A smooth function with a region that fails and a constrained metric."""
    unit = space.to_unit(space.encode(assignment))
    return {
        "validation_loss": sum((u - 0.3) ** 2 * (i + 1) for i, u in enumerate(unit)),
        "peak_gpu_gib": 100 * unit[0],
    }


@st.composite
def histories(draw: st.DrawFn, space: Space) -> list[Observation]:
    """Draw a history with every status, with numbers that are none, and with trials of an earlier study."""
    rng = random.Random(draw(st.integers(0, 10**6)))
    observations = []
    for number in range(draw(st.sampled_from([0, 1, 2, 5, 12, 25]))):
        assignment = space.decode(space.from_unit([rng.random() for _ in space.names]))
        status = rng.choices(get_args(Status), [6, 2, 2, 1])[0]
        values = measured(space, assignment) if status in ("completed", "early_stopped") else {}
        if values and rng.random() < 0.15:
            values["validation_loss"] = rng.choice([math.nan, math.inf])
        observations.append(
            Observation(assignment, status, values, f"trial-{number}", number, warm=rng.random() < 0.2)
        )
    return observations


VALUES: dict[str, Callable[[random.Random], float]] = {
    "all failed": lambda rng: math.nan,
    "all equal": lambda rng: 1.5,
    "not all numbers": lambda rng: rng.choice([math.nan, math.inf, -math.inf, rng.random()]),
    "of any size": lambda rng: rng.choice([-1, 1]) * 10.0 ** rng.randint(-320, 308),
    "usual": lambda rng: rng.random(),
}
"""Ways in which the losses of a history can be odd."""


@st.composite
def odd_histories(draw: st.DrawFn, space: Space) -> list[Observation]:
    """Draw a history of failed, equal, infinite or huge losses, with repeated points or with all points of a small space."""
    rng, loss = random.Random(draw(st.integers(0, 10**6))), VALUES[draw(st.sampled_from(sorted(VALUES)))]
    size = draw(st.sampled_from([0, 1, 3, 20, 60]))
    points = [space.decode(space.from_unit([rng.random() for _ in space.names])) for _ in range(size)]
    if draw(st.booleans()):
        points += rng.choices(points, k=size)
    if space.size <= 300 and draw(st.booleans()):
        points += [dict(point) for point in sorted(distinct_points(space), key=str)]
    odd = []
    for number, assignment in enumerate(points):
        status = rng.choices(get_args(Status), [8, 1, 1, 1])[0]
        values = {} if status in ("failed", "running") else {"validation_loss": loss(rng)}
        odd.append(Observation(assignment, status, values, f"trial-{number}", number))
    return odd


def distinct_points(space: Space) -> set[Point]:
    """All assignments of a small space."""
    ladders = [range(p.levels) for p in space.parameters]
    return {key(space.decode(levels)) for levels in itertools.product(*ladders)}


def key(assignment: Mapping[str, Value]) -> Point:
    """Return an assignment as something to compare and to keep in sets."""
    return tuple(assignment.items())


def check(space: Space, history: Sequence[Observation], asked: int, proposals: Sequence[Assignment]) -> None:
    """Check what holds of every answer: as many points as asked, on the grid, new while there are new ones."""
    assert len(proposals) == asked
    seen = {key(space.snap(entry.assignment)) for entry in history}
    for assignment in proposals:
        assert list(assignment) == space.names
        assert space.contains(assignment)
        assert space.decode(space.encode(assignment)) == assignment, "off the grid"
        for parameter in space.parameters:
            if parameter.kind == "integer":
                assert type(assignment[parameter.name]) is int
    new = [key(assignment) for assignment in proposals]
    if space.size > 20_000:
        assert len(set(new)) == asked
        assert not set(new) & seen
    else:
        unseen = distinct_points(space) - seen
        first = new[: len(unseen)]
        assert len(set(first)) == len(first), "a repeat although there were unseen points"
        assert not set(first) & seen, "a known point although there were unseen ones"


quick = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


CONSTRAINED = Objective("validation_loss", "minimize", (Constraint(metric="peak_gpu_gib", max=60),))


def played(
    algorithm: str,
    space: Space,
    trials: int,
    batch: int,
    seed: int = 0,
    objective: Objective = LOSS,
    fail: Callable[[Assignment], bool] = lambda assignment: False,
    start: Sequence[Observation] = (),
) -> list[Observation]:
    """Run a study: ask for `batch` points, let them end, ask again."""
    history = list(start)
    while len(history) - len(start) < trials:
        proposals = search.suggest(algorithm, space, objective, {}, history, batch, seed)
        check(space, history, batch, proposals)
        for assignment in proposals:
            status: Status = "failed" if fail(assignment) else "completed"
            values = measured(space, assignment) if status == "completed" else {}
            history.append(Observation(assignment, status, values, number=len(history)))
    return history


class AlgorithmContract:
    """What `retune.search` promises of every algorithm, for any space and history.

    ::

        class TestHillClimbing(AlgorithmContract):
            name = "hill-climbing"

    Attributes:
        name: of the algorithm, as a study file has it.
        starts_with_default: whether the first point is the default setting.
        valley: what it must reach in 24 trials on a smooth valley; the start design alone gives about 0.3.
        uses_chance: whether another seed gives other points.

    """

    name: ClassVar[str]
    starts_with_default: ClassVar[bool] = True
    valley: ClassVar[float] = 0.25
    uses_chance: ClassVar[bool] = True

    @pytest.fixture
    def algorithm(self) -> str:
        """The name of the algorithm under test."""
        return self.name

    @quick
    @given(data=st.data())
    def test_exactly_the_asked_points_new_and_on_the_grid_whatever_the_order(
        self, algorithm: str, data: st.DataObject
    ) -> None:
        space = data.draw(spaces())
        history = data.draw(histories(space))
        asked = data.draw(st.sampled_from([1, 2, 4, 9]))
        seed = data.draw(st.sampled_from([0, 1, 2**31 - 1]))
        objective = data.draw(st.sampled_from([LOSS, Objective("validation_loss", "maximize"), CONSTRAINED]))
        proposals = search.suggest(algorithm, space, objective, {}, history, asked, seed)
        check(space, history, asked, proposals)
        shuffled = list(history)
        random.Random(1).shuffle(shuffled)
        assert search.suggest(algorithm, space, objective, {}, shuffled, asked, seed) == proposals

    @quick
    @given(data=st.data())
    def test_odd_spaces_and_histories(self, algorithm: str, data: st.DataObject) -> None:
        """One value, huge and tiny ranges, categories alone, conditions; no result, one result for all, no numbers."""
        space = data.draw(odd_spaces(search.find(algorithm).conditions))
        history = data.draw(odd_histories(space))
        asked, seed = data.draw(st.sampled_from([1, 3, 8])), data.draw(st.sampled_from([0, 2**31 - 1]))
        proposals = search.suggest(algorithm, space, LOSS, {}, history, asked, seed)
        check(space, history, asked, proposals)
        backwards = search.suggest(algorithm, space, LOSS, {}, history[::-1], asked, seed)
        assert backwards == proposals, "the order of the history counts"
        assert search.suggest(algorithm, space, LOSS, {}, history, asked, seed) == proposals

    @pytest.mark.parametrize("losses", ["usual", "all equal", "not all numbers"])
    def test_thousands_of_trials(self, algorithm: str, losses: str) -> None:
        space, rng = tribes2024(), random.Random(1)
        history = []
        for number in range(3000):
            assignment = space.decode(space.from_unit([rng.random() for _ in space.names]))
            values = {"validation_loss": VALUES[losses](rng)}
            history.append(Observation(assignment, "completed", values, number=number))
        proposals = search.suggest(algorithm, space, LOSS, {}, history, 4, 0)
        check(space, history, 4, proposals)
        assert search.suggest(algorithm, space, LOSS, {}, history[::-1], 4, 0) == proposals

    def test_the_default_setting_is_the_first_point(self, algorithm: str) -> None:
        if not self.starts_with_default:
            pytest.skip("the algorithm starts anywhere")
        first = search.suggest(algorithm, tribes2024(), LOSS, {}, [], 1, 7)
        assert first == [tribes2024().default()]

    @pytest.mark.parametrize("batch", [1, 4])
    def test_the_search_finds_the_valley(self, algorithm: str, batch: int) -> None:
        space = tribes2024()
        best = min(entry.values["validation_loss"] for entry in played(algorithm, space, 24, batch))
        assert best < self.valley, "the start design alone gives about 0.3"

    def test_failures_from_the_first_trial_on(self, algorithm: str) -> None:
        def fail(assignment: Assignment) -> bool:
            return float(assignment["learning_rate"]) < 1e-4

        assert fail(tribes2024().default() or {})
        history = played(algorithm, tribes2024(), 24, 3, fail=fail)
        assert any(entry.status == "completed" for entry in history)

    def test_no_result_at_all(self, algorithm: str) -> None:
        assert len(played(algorithm, tribes2024(), 20, 5, fail=lambda a: True)) == 20
        running = [Observation(tribes2024().default() or {}, "running", number=0)]
        check(tribes2024(), running, 8, search.suggest(algorithm, tribes2024(), LOSS, {}, running, 8, 0))

    @pytest.mark.parametrize(
        "parameter",
        [
            Parameter(name="x", kind="integer", low=1, high=8, default=3),
            Parameter(name="x", kind="integer", low=5, high=5),
            Parameter(name="x", kind="integer", low=2, high=9, scale="log", step=0.2),
            Parameter(name="x", kind="categorical", values=("a", "b", "c")),
            Parameter(name="x", kind="discrete", values=(0.5,)),
        ],
        ids=["eight", "one", "log steps", "names", "single value"],
    )
    def test_a_small_space_is_visited_whole_and_then_again(
        self, algorithm: str, parameter: Parameter
    ) -> None:
        space = Space(parameters=(parameter,))
        size = len(distinct_points(space))
        history = played(algorithm, space, size + 4, 1)
        assert len({key(entry.assignment) for entry in history[:size]}) == size
        check(space, history, 20, search.suggest(algorithm, space, LOSS, {}, history, 20, 0))

    def test_a_grid_of_nine_is_visited_whole_in_batches(self, algorithm: str) -> None:
        space = Space(
            parameters=tuple(Parameter(name=name, kind="integer", low=0, high=2, default=1) for name in "xy")
        )
        history = played(algorithm, space, 9, 3)
        assert len({key(entry.assignment) for entry in history}) == 9
        check(space, history, 4, search.suggest(algorithm, space, LOSS, {}, history, 4, 0))

    def test_all_but_one_trial_failed(self, algorithm: str) -> None:
        space = tribes2024()
        history = played(algorithm, space, 12, 4, fail=lambda a: True)
        history[6] = Observation(
            history[6].assignment, "completed", measured(space, history[6].assignment), number=6
        )
        check(space, history, 8, search.suggest(algorithm, space, LOSS, {}, history, 8, 0))

    def test_a_hundred_points_at_once_in_a_huge_space(self, algorithm: str) -> None:
        space = Space(
            parameters=tuple(
                Parameter(name=f"p{i}", kind="real", low=0, high=1, step=1e-5) for i in range(12)
            )
        )
        history = played(algorithm, space, 10, 10)
        check(space, history, 100, search.suggest(algorithm, space, LOSS, {}, history, 100, 0))

    def test_points_of_an_earlier_study_are_known_and_used(self, algorithm: str) -> None:
        space = tribes2024()
        best = {"rank": 16, "dropout": 0.0001, "alpha": 20, "learning_rate": 7.94328e-06}
        earlier = [
            Observation(best, "completed", measured(space, best), name="a", warm=True),
            Observation({**best, "rank": 4}, "failed", name="b", warm=True),
            Observation(
                {**best, "alpha": 500},
                "completed",
                {"validation_loss": -9.0},
                name="out of bounds",
                warm=True,
            ),
            Observation({"other": 1}, "completed", {"validation_loss": -9.0}, name="foreign"),
        ]
        proposals = search.suggest(algorithm, space, LOSS, {}, earlier, 12, 0)
        check(space, earlier[:2], 12, proposals)

    def test_constraints_steer_the_search(self, algorithm: str) -> None:
        history = played(algorithm, tribes2024(), 24, 4, objective=CONSTRAINED)
        assert any(entry.values["peak_gpu_gib"] <= 60 for entry in history)

    @pytest.mark.parametrize("scale", [1e-320, 1e-12, 1e154, 1e200, 1.7e308])
    def test_numbers_of_any_size(self, algorithm: str, scale: float) -> None:
        """Losses of diverged trials, and constraints in bytes with a limit near nothing: nothing may overflow."""
        space = tribes2024()
        limit = Objective("validation_loss", "minimize", (Constraint(metric="peak_gpu_gib", max=1e-300),))
        rng, history = random.Random(3), []
        for number in range(24):
            assignment = space.decode(space.from_unit([rng.random() for _ in space.names]))
            assignment = space.default() or {} if number == 0 else assignment
            values = measured(space, assignment)
            if number % 3 == 1:
                values = {metric: rng.choice([-1, 1]) * scale * value for metric, value in values.items()}
            if number % 8 == 7:
                values[rng.choice(sorted(values))] = rng.choice([math.nan, math.inf, -math.inf])
            history.append(Observation(assignment, "completed", values, number=number))
        settings_ = {"LH_SEARCH": 0} if "LH_SEARCH" in search.find(algorithm).settings.model_fields else {}
        for objective in (LOSS, CONSTRAINED, limit):
            check(space, history, 4, search.suggest(algorithm, space, objective, settings_, history, 4, 0))

    def test_another_process_with_another_hash_seed_answers_the_same(self, algorithm: str) -> None:
        space = davouse2024()
        history = played(algorithm, space, 16, 4)
        here = search.suggest(algorithm, space, LOSS, {}, history, 5, 3)
        program = (
            "import json, sys; from retune import search; from retune.space import davouse2024\n"
            "given = json.load(sys.stdin)\n"
            "history = [search.Observation(**entry) for entry in given['history']]\n"
            "print(json.dumps(search.suggest(given['algorithm'], davouse2024(), search.Objective(), {}, history, 5, 3)))"
        )
        given_ = {"algorithm": algorithm, "history": [entry.__dict__ for entry in history]}
        answer = subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(given_),
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": "4242"},
        )
        assert json.loads(answer.stdout) == here

    def test_the_seed_of_the_settings_goes_before_the_studys(self, algorithm: str) -> None:
        one = search.suggest(algorithm, tribes2024(), LOSS, {"seed": 5}, [], 4, 0)
        assert one == search.suggest(algorithm, tribes2024(), LOSS, {"seed": "5"}, [], 4, 1)
        assert one == search.suggest(algorithm, tribes2024(), LOSS, {}, [], 4, 5)
        if self.uses_chance:
            assert one != search.suggest(algorithm, tribes2024(), LOSS, {}, [], 4, 6)

    def test_bad_settings_are_all_refused_at_once(self, algorithm: str) -> None:
        problems = search.validate(algorithm, tribes2024(), {"seed": -1, "sead": 3})
        assert len(problems) == 2
        assert any("'sead'" in p and "did you mean 'seed'" in p for p in problems)
        assert any("'seed'" in p and "-1" in p for p in problems)
        with pytest.raises(InputError, match="2 problems"):
            search.suggest(algorithm, tribes2024(), LOSS, {"seed": -1, "sead": 3}, [], 1, 0)
