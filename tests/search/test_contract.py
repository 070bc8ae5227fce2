"""What every algorithm must hold, whatever the space and the history."""

import dataclasses
import itertools
import random
import time

import pytest
import scipy.linalg
from threadpoolctl import threadpool_info, threadpool_limits

from retune import search
from retune.search import Observation
from retune.space import Parameter, Space, tribes2024
from retune.study import ALGORITHMS as NAMES
from retune.study.names import KATIB_ONLY
from retune.testing.algorithms import LOSS, AlgorithmContract, check, played

ALGORITHMS = sorted(search.ALGORITHMS)
each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


@pytest.mark.slow
class TestModelBased(AlgorithmContract):
    @pytest.fixture(params=sorted({*ALGORITHMS} - {"random", "lhs", "soo", "bamsoo"}))
    def algorithm(self, request):
        return request.param


class TestRandom(AlgorithmContract):
    name, starts_with_default, valley = "random", False, 1.0


class TestLhs(AlgorithmContract):
    name, valley = "lhs", 1.0


class TestTrees(AlgorithmContract):
    uses_chance = False

    @pytest.fixture(params=["soo", "bamsoo"])
    def algorithm(self, request):
        return request.param


@pytest.mark.slow
@pytest.mark.parametrize("values", [lambda unit: 1.0, lambda unit: sum(unit)], ids=["flat", "tilted"])
@pytest.mark.parametrize("algorithm", ["soo", "bamsoo"])
def test_an_exhausted_tree_ends(algorithm, values):
    """All points of a lattice of 4,096 are known except a corner that no cell's centre reaches before the tree is exhausted."""
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
        assignment = space.decode(space.from_unit(unit))
        values = {"validation_loss": sum((value - 0.3) ** 2 for value in assignment.values())}
        history.append(Observation(assignment, "completed", values, number=number))
    found = search.explain("nomad", space, LOSS, {"LH_SEARCH": 0}, history, 8, 0)
    assert all(proposal.origin.startswith(("poll", "model search")) for proposal in found), found


def test_a_study_file_can_name_each_algorithm_that_there_is_and_no_other():
    assert set(NAMES) == {*search.ALGORITHMS, *search.SEPARATE_PACKAGES, *search.ALIASES, *KATIB_ONLY}


def test_an_unknown_algorithm_is_refused_with_those_there_are():
    assert search.validate("nomat", tribes2024(), {}) == [
        f"unknown algorithm 'nomat'; there are {search.algorithm_names()}"
    ]


def told(space, loss, source="before", trials=40):
    """Trials of an earlier study that searched well."""
    rng, found = random.Random(4), []
    for number in range(trials):
        assignment = space.decode(space.from_unit([rng.random() for _ in space.names]))
        values = {"validation_loss": loss(space.to_unit(space.encode(assignment)))}
        found.append(Observation(assignment, "completed", values, f"w{number}", warm=True, source=source))
    return found


def bowl(unit):
    return sum((u - 0.3) ** 2 * (i + 1) for i, u in enumerate(unit))


@pytest.mark.parametrize("algorithm", ["mads-global", "gp"])
def test_an_earlier_study_leads_whatever_the_level_and_scale_of_its_losses(algorithm):
    """Its losses are all below this study's: taken as they are, no result of this study would ever be the best."""
    space, warm = tribes2024(), told(tribes2024(), lambda unit: 0.25 * bowl(unit) - 7)
    history = played(algorithm, space, 9, 3, start=warm)
    mine = [e.values["validation_loss"] for e in history if not e.warm]
    cold = [e.values["validation_loss"] for e in played(algorithm, space, 9, 3)]
    assert min(mine) < 0.05
    assert min(mine) < min(cold) / 3


@pytest.mark.parametrize("algorithm", ["mads-global", "gp"])
def test_an_earlier_study_that_is_wrong_is_given_up(algorithm):
    """What was good there is bad here; the search still finds the valley."""
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
    """Katib creates a new Experiment to resume: the proposals are those of an uninterrupted one."""
    space, history = tribes2024(), played("mads-global", tribes2024(), 16, 4)
    again = [
        Observation(e.assignment, e.status, e.values, f"w{e.number:02d}", warm=True, source=search.SAME)
        for e in history
    ]
    found = search.explain("gp", space, LOSS, {}, again, 4, 0, 16)
    assert [p.assignment for p in found] == [
        p.assignment for p in search.explain("gp", space, LOSS, {}, history, 4, 0, 16)
    ]


def test_an_answer_is_computed_in_one_thread_whatever_the_machine_has(monkeypatch):
    asked = search.ALGORITHMS["random"]
    seen = []

    def threads():
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    def propose(problem, count):
        seen.append(threads())
        return asked.propose(problem, count)

    monkeypatch.setitem(search.ALGORITHMS, "random", dataclasses.replace(asked, propose=propose))
    scipy.linalg.norm([1.0])  # loads the libraries
    with threadpool_limits(2, user_api="blas"):
        search.suggest("random", tribes2024(), LOSS, {}, [], 1, 0)
        assert seen == [{1}]
        assert threads() == {2}, "what the caller has set is set again"
