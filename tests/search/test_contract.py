"""What every algorithm must hold, whatever the space and the history."""

import itertools
import json
import math
import os
import random
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from search_spaces import spaces

from retune import search
from retune.errors import InputError
from retune.search import Objective, Observation
from retune.space import Parameter, Space, davouse2024, tribes2024
from retune.study import ALGORITHMS as NAMES
from retune.study import Constraint
from retune.study.names import KATIB_ONLY

ALGORITHMS = sorted(search.ALGORITHMS)
LOSS = Objective()
each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


def measured(space, assignment):
    """A smooth function with a region that fails and a constrained metric."""
    unit = space.to_unit(space.encode(assignment))
    return {
        "validation_loss": sum((u - 0.3) ** 2 * (i + 1) for i, u in enumerate(unit)),
        "peak_gpu_gib": 100 * unit[0],
    }


@st.composite
def histories(draw, space):
    rng = random.Random(draw(st.integers(0, 10**6)))
    found = []
    for number in range(draw(st.sampled_from([0, 1, 2, 5, 12, 25]))):
        assignment = space.decode(space.from_unit([rng.random() for _ in space.names]))
        status = rng.choices(["completed", "failed", "running", "early_stopped"], [6, 2, 2, 1])[0]
        values = measured(space, assignment) if status in ("completed", "early_stopped") else {}
        if values and rng.random() < 0.15:
            values["validation_loss"] = rng.choice([math.nan, math.inf])
        found.append(
            Observation(assignment, status, values, f"trial-{number}", number, warm=rng.random() < 0.2)
        )
    return found


def distinct_points(space):
    """All assignments of a small space."""
    ladders = [[p.value(k) for k in range(p.levels)] for p in space.parameters]
    return {tuple(zip(space.names, point, strict=True)) for point in itertools.product(*ladders)}


def key(assignment):
    return tuple(assignment.items())


def check(space, history, asked, proposals):
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


@each_algorithm
@quick
@given(data=st.data())
def test_exactly_the_asked_points_new_and_on_the_grid_whatever_the_order(algorithm, data):
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


CONSTRAINED = Objective("validation_loss", "minimize", (Constraint(metric="peak_gpu_gib", max=60),))


def played(algorithm, space, trials, batch, seed=0, objective=LOSS, fail=lambda assignment: False, start=()):
    """Run a study: ask for `batch` points, let them end, ask again."""
    history = list(start)
    while len(history) - len(start) < trials:
        proposals = search.suggest(algorithm, space, objective, {}, history, batch, seed)
        check(space, history, batch, proposals)
        for assignment in proposals:
            status = "failed" if fail(assignment) else "completed"
            values = measured(space, assignment) if status == "completed" else {}
            history.append(Observation(assignment, status, values, number=len(history)))
    return history


@each_algorithm
def test_the_default_setting_is_the_first_point(algorithm):
    if algorithm == "random":
        pytest.skip("random uses nothing but chance")
    first = search.suggest(algorithm, tribes2024(), LOSS, {}, [], 1, 7)
    assert first == [tribes2024().default()]


@each_algorithm
@pytest.mark.parametrize("batch", [1, 4])
def test_the_search_finds_the_valley(algorithm, batch):
    space = tribes2024()
    best = min(entry.values["validation_loss"] for entry in played(algorithm, space, 24, batch))
    limit = 1.0 if algorithm in ("random", "lhs") else 0.25
    assert best < limit, "the start design alone gives about 0.3"


@each_algorithm
def test_failures_from_the_first_trial_on(algorithm):
    def fail(assignment):
        return assignment["learning_rate"] < 1e-4

    assert fail(tribes2024().default())
    history = played(algorithm, tribes2024(), 24, 3, fail=fail)
    assert any(entry.status == "completed" for entry in history)


@each_algorithm
def test_no_result_at_all(algorithm):
    assert len(played(algorithm, tribes2024(), 20, 5, fail=lambda a: True)) == 20
    running = [Observation(tribes2024().default(), "running", number=0)]
    check(tribes2024(), running, 8, search.suggest(algorithm, tribes2024(), LOSS, {}, running, 8, 0))


@each_algorithm
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
def test_a_small_space_is_visited_whole_and_then_again(algorithm, parameter):
    space = Space(parameters=(parameter,))
    size = len(distinct_points(space))
    history = played(algorithm, space, size + 4, 1)
    assert len({key(entry.assignment) for entry in history[:size]}) == size
    check(space, history, 20, search.suggest(algorithm, space, LOSS, {}, history, 20, 0))


@each_algorithm
def test_a_grid_of_nine_is_visited_whole_in_batches(algorithm):
    space = Space(
        parameters=tuple(Parameter(name=name, kind="integer", low=0, high=2, default=1) for name in "xy")
    )
    history = played(algorithm, space, 9, 3)
    assert len({key(entry.assignment) for entry in history}) == 9
    check(space, history, 4, search.suggest(algorithm, space, LOSS, {}, history, 4, 0))


@each_algorithm
def test_all_but_one_trial_failed(algorithm):
    space = tribes2024()
    history = played(algorithm, space, 12, 4, fail=lambda a: True)
    history[6] = Observation(
        history[6].assignment, "completed", measured(space, history[6].assignment), number=6
    )
    check(space, history, 8, search.suggest(algorithm, space, LOSS, {}, history, 8, 0))


@each_algorithm
def test_a_hundred_points_at_once_in_a_huge_space(algorithm):
    space = Space(
        parameters=tuple(Parameter(name=f"p{i}", kind="real", low=0, high=1, step=1e-5) for i in range(12))
    )
    history = played(algorithm, space, 10, 10)
    check(space, history, 100, search.suggest(algorithm, space, LOSS, {}, history, 100, 0))


@each_algorithm
def test_points_of_an_earlier_study_are_known_and_used(algorithm):
    space = tribes2024()
    best = {"rank": 16, "dropout": 0.0001, "alpha": 20, "learning_rate": 7.94328e-06}
    earlier = [
        Observation(best, "completed", measured(space, best), name="a", warm=True),
        Observation({**best, "rank": 4}, "failed", name="b", warm=True),
        Observation(
            {**best, "alpha": 500}, "completed", {"validation_loss": -9.0}, name="out of bounds", warm=True
        ),
        Observation({"other": 1}, "completed", {"validation_loss": -9.0}, name="foreign"),
    ]
    proposals = search.suggest(algorithm, space, LOSS, {}, earlier, 12, 0)
    check(space, earlier[:2], 12, proposals)


@each_algorithm
def test_constraints_steer_the_search(algorithm):
    history = played(algorithm, tribes2024(), 24, 4, objective=CONSTRAINED)
    assert any(entry.values["peak_gpu_gib"] <= 60 for entry in history)


@each_algorithm
@pytest.mark.parametrize("scale", [1e-320, 1e-12, 1e154, 1e200, 1.7e308])
def test_numbers_of_any_size(algorithm, scale):
    """Losses of diverged trials, and constraints in bytes with a limit near nothing: nothing may overflow."""
    space = tribes2024()
    limit = Objective("validation_loss", "minimize", (Constraint(metric="peak_gpu_gib", max=1e-300),))
    rng, history = random.Random(3), []
    for number in range(24):
        assignment = space.decode(space.from_unit([rng.random() for _ in space.names]))
        assignment = space.default() if number == 0 else assignment
        values = measured(space, assignment)
        if number % 3 == 1:
            values = {metric: rng.choice([-1, 1]) * scale * value for metric, value in values.items()}
        if number % 8 == 7:
            values[rng.choice(sorted(values))] = rng.choice([math.nan, math.inf, -math.inf])
        history.append(Observation(assignment, "completed", values, number=number))
    settings_ = {"LH_SEARCH": 0} if "LH_SEARCH" in search.ALGORITHMS[algorithm].settings.model_fields else {}
    for objective in (LOSS, CONSTRAINED, limit):
        check(space, history, 4, search.suggest(algorithm, space, objective, settings_, history, 4, 0))


@pytest.mark.parametrize("values", [lambda unit: 1.0, lambda unit: sum(unit)], ids=["flat", "tilted"])
@pytest.mark.parametrize("algorithm", ["soo", "bamsoo"])
def test_an_exhausted_tree_ends(algorithm, values):
    """All of a lattice of 4,096 is known but a corner that no cell's centre comes to before the tree is used up."""
    space = Space(parameters=tuple(Parameter(name=name, kind="integer", low=0, high=63) for name in "xy"))
    points = [dict(zip("xy", place, strict=True)) for place in itertools.product(range(64), repeat=2)][:-3]
    history = [
        Observation(
            point,
            "completed",
            {"validation_loss": values(space.to_unit(space.encode(point)))},
            number=number,
        )
        for number, point in enumerate(points)
    ]
    started = time.process_time()
    check(space, history, 8, search.suggest(algorithm, space, LOSS, {}, history, 8, 0))
    assert time.process_time() - started < 40, "it took minutes"


@pytest.mark.parametrize("dimension", [21, 40, 60])
def test_nomad_with_many_parameters_polls_in_time(dimension):
    """NOMAD's models, and its sorting by them, took more than 12 seconds of CPU from 40 parameters on."""
    names = [f"p{i}" for i in range(dimension)]
    space = Space(parameters=tuple(Parameter(name=n, kind="real", low=0, high=1, default=0.5) for n in names))
    rng, history = random.Random(0), []
    for number in range(80):
        unit = [0.5] * dimension if number == 0 else [rng.random() for _ in names]
        given = space.decode(space.from_unit(unit))
        values = {"validation_loss": sum((value - 0.3) ** 2 for value in given.values())}
        history.append(Observation(given, "completed", values, number=number))
    found = search.explain("nomad", space, LOSS, {"LH_SEARCH": 0}, history, 8, 0)
    assert all(proposal.origin.startswith(("poll", "model search")) for proposal in found), found


@each_algorithm
def test_another_process_with_another_hash_seed_answers_the_same(algorithm):
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


@each_algorithm
def test_the_seed_of_the_settings_goes_before_the_studys(algorithm):
    one = search.suggest(algorithm, tribes2024(), LOSS, {"seed": 5}, [], 4, 0)
    assert one == search.suggest(algorithm, tribes2024(), LOSS, {"seed": "5"}, [], 4, 1)
    assert one == search.suggest(algorithm, tribes2024(), LOSS, {}, [], 4, 5)
    if algorithm not in ("soo", "bamsoo"):  # they use no chance
        assert one != search.suggest(algorithm, tribes2024(), LOSS, {}, [], 4, 6)


@each_algorithm
def test_bad_settings_are_all_refused_at_once(algorithm):
    problems = search.validate(algorithm, tribes2024(), {"seed": -1, "sead": 3})
    assert len(problems) == 2
    assert any("'sead'" in p and "did you mean 'seed'" in p for p in problems)
    assert any("'seed'" in p and "-1" in p for p in problems)
    with pytest.raises(InputError, match="2 problems"):
        search.suggest(algorithm, tribes2024(), LOSS, {"seed": -1, "sead": 3}, [], 1, 0)


def test_a_study_file_can_name_each_algorithm_that_there_is_and_no_other():
    assert set(NAMES) == {*search.ALGORITHMS, *search.ALIASES, *KATIB_ONLY}


def test_an_unknown_algorithm_is_refused_with_those_there_are():
    assert search.validate("nomat", tribes2024(), {}) == [
        f"unknown algorithm 'nomat'; there are {sorted(search.ALGORITHMS)}"
    ]


def told(space, loss, source="before", trials=40):
    """Trials of an earlier study that searched well."""
    rng, found = random.Random(4), []
    for number in range(trials):
        given = space.decode(space.from_unit([rng.random() for _ in space.names]))
        values = {"validation_loss": loss(space.to_unit(space.encode(given)))}
        found.append(Observation(given, "completed", values, f"w{number}", warm=True, source=source))
    return found


def bowl(unit):
    return sum((u - 0.3) ** 2 * (i + 1) for i, u in enumerate(unit))


@pytest.mark.parametrize("algorithm", ["mads-global", "gp"])
def test_an_earlier_study_leads_whatever_the_level_and_scale_of_its_losses(algorithm):
    """Its losses are all below this study's: as they are, they would be the best for ever, and nothing would be near."""
    space, warm = tribes2024(), told(tribes2024(), lambda unit: 0.25 * bowl(unit) - 7)
    history = played(algorithm, space, 9, 3, start=warm)
    mine = [e.values["validation_loss"] for e in history if not e.warm]
    cold = [e.values["validation_loss"] for e in played(algorithm, space, 9, 3)]
    assert min(mine) < 0.05
    assert min(mine) < min(cold) / 3


@pytest.mark.parametrize("algorithm", ["mads-global", "gp"])
def test_an_earlier_study_that_is_wrong_is_given_up(algorithm):
    """What was good there is bad here; the search finds the valley all the same."""
    space, warm = tribes2024(), told(tribes2024(), lambda unit: bowl([1 - u for u in unit]))
    history = played(algorithm, space, 24, 4, start=warm)
    assert min(e.values["validation_loss"] for e in history if not e.warm) < 0.1


@each_algorithm
def test_levels_of_several_earlier_studies_do_not_matter(algorithm):
    """Shifting one study's losses changes no proposal: only its own order and scale count."""
    space = tribes2024()
    first = told(space, bowl, "first", 12)
    for shift in (0.0, 64.0):
        second = told(space, lambda unit: bowl(unit) + shift, "second", 20)[12:]
        history = [*first, *second]
        own = [
            Observation(e.assignment, "completed", dict(e.values), number=k)
            for k, e in enumerate(told(space, bowl, trials=50)[40:])
        ]
        found = search.suggest(algorithm, space, LOSS, {}, [*history, *own], 6, 0)
        if shift == 0.0:
            expected = found
    assert found == expected


def test_an_earlier_part_of_the_same_search_counts_as_it_is():
    """Katib begins a new Experiment to carry on: the answer is that of one that was never interrupted."""
    space, history = tribes2024(), played("mads-global", tribes2024(), 16, 4)
    again = [
        Observation(e.assignment, e.status, e.values, f"w{e.number:02d}", warm=True, source=search.SAME)
        for e in history
    ]
    found = search.explain("gp", space, LOSS, {}, again, 4, 0, 16)
    assert [p.assignment for p in found] == [
        p.assignment for p in search.explain("gp", space, LOSS, {}, history, 4, 0, 16)
    ]
