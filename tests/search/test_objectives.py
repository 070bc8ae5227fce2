"""Two and three objectives: DMulti-MADS's rules, and fronts better than chance finds."""

import itertools
import math
import random
import statistics

import pytest

from retune import search
from retune.errors import InputError
from retune.search import Objective, Observation, front
from retune.search.frame import Steps
from retune.search.nomad import NomadSettings
from retune.search.problem import pose
from retune.space import Parameter, Space, tribes2024
from retune.study import Constraint
from retune.study import Objective as Goal

TWO = Objective("f0", further=(Goal(metric="f1"),))
THREE = Objective("f0", further=(Goal(metric="f1"), Goal(metric="f2", goal="maximize")))


def cube(size, default=50):
    return Space(
        parameters=tuple(
            Parameter(name=f"x{k}", kind="integer", low=0, high=100, default=default) for k in range(size)
        )
    )


def zdt1(x):
    """Zitzler, Deb and Thiele (2000): the front is f1 = 1 - sqrt(f0), at x1 = x2 = 0."""
    g = 1 + 9 * sum(x[1:]) / (len(x) - 1)
    return x[0], g * (1 - math.sqrt(x[0] / g))


def sphere(x):
    """DTLZ2 (Deb et al. 2002), the third one negated: the front is the unit sphere's first octant."""
    g = sum((v - 0.5) ** 2 for v in x[2:])
    a, b = x[0] * math.pi / 2, x[1] * math.pi / 2
    return (
        (1 + g) * math.cos(a) * math.cos(b),
        (1 + g) * math.cos(a) * math.sin(b),
        -(1 + g) * math.sin(a),
    )


def hypervolume(points, reference):
    """The volume between the points (lower is better) and the reference, by slices along the last objective."""
    points = [p for p in points if all(v < r for v, r in zip(p, reference, strict=True))]
    if len(reference) == 1:
        return max((reference[0] - p[0] for p in points), default=0.0)
    heights = [*sorted({p[-1] for p in points}), reference[-1]]
    return sum(
        (high - low) * hypervolume([p[:-1] for p in points if p[-1] <= low], reference[:-1])
        for low, high in itertools.pairwise(heights)
    )


def play(algorithm, function, space, objective, trials, batch, seed, settings=None):
    history = []
    while len(history) < trials:
        for assignment in search.suggest(algorithm, space, objective, settings or {}, history, batch, seed):
            values = function([assignment[name] / 100 for name in space.names])
            named = {f"f{k}": v for k, v in enumerate(values)}
            history.append(Observation(assignment, "completed", named, number=len(history)))
    return history


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "space", "objective", "reference"),
    [(zdt1, cube(3), TWO, (1.1, 6.0)), (sphere, cube(4), THREE, (1.5, 1.5, 1.5))],
    ids=["zdt1", "dtlz2"],
)
def test_the_front_is_better_than_that_of_random_points(function, space, objective, reference):
    def volume(algorithm, seed):
        history = play(algorithm, function, space, objective, 60, 6, seed)
        signs = [1 if goal.goal == "minimize" else -1 for goal in objective.goals]
        rows = [[sign * v for sign, v in zip(signs, e.values.values(), strict=True)] for e in history]
        return hypervolume(rows, reference)

    seeds = range(4)
    ours = [volume("nomad", seed) for seed in seeds]
    chance = [volume("random", seed) for seed in seeds]
    assert statistics.median(ours) > statistics.median(chance)
    assert sum(a > b for a, b in zip(ours, chance, strict=True)) >= 3
    if function is zdt1:  # the whole front gives 6.6 - 1/3 = 6.2 and a bit
        assert statistics.median(ours) > 6.0


def test_the_answer_depends_on_the_request_alone():
    history = play("nomad", zdt1, cube(3), TWO, 24, 4, 0)
    history[-1] = Observation(history[-1].assignment, "running", {}, number=23)
    history[-5] = Observation(history[-5].assignment, "failed", {}, number=19)
    found = search.suggest("nomad", cube(3), TWO, {}, history, 9, 0)
    random.Random(1).shuffle(history)
    assert search.suggest("nomad", cube(3), TWO, {}, history, 9, 0) == found
    assert len({tuple(a.values()) for a in found} | {tuple(e.assignment.values()) for e in history}) == 33


def test_a_trial_without_one_of_the_objectives_has_failed():
    space = cube(2)
    history = [
        Observation({"x0": k, "x1": 0}, "completed", {"f0": k, **({} if k == 3 else {"f1": -k})}, number=k)
        for k in range(5)
    ]
    problem = pose(space, TWO, NomadSettings(), history, 0, None)
    assert [point.outcome for point in problem.points] == ["ok", "ok", "ok", "failed", "ok"]
    assert problem.points[2].values == (2, -2)
    up = Objective("f0", "maximize", further=(Goal(metric="f1", goal="maximize"),))
    assert pose(space, up, NomadSettings(), history, 0, None).points[2].values == (-2, 2)


def test_an_early_stopped_trial_is_no_better_than_the_median_in_any_objective():
    history = [
        Observation({"x0": k, "x1": 0}, "completed", {"f0": float(k), "f1": float(10 - k)}, number=k)
        for k in range(5)
    ]
    history.append(Observation({"x0": 9, "x1": 9}, "early_stopped", {"f0": -50.0, "f1": -50.0}, number=9))
    problem = pose(cube(2), TWO, NomadSettings(), history, 0, None)
    assert problem.points[-1].values == (2.0, 8.0)


def focused(rows, steps=None):
    """The problem and frame after trials at (x, 0) with two objective values each."""
    history = [
        Observation({"x0": x, "x1": 0}, "completed", {"f0": a, "f1": b}, number=k)
        for k, (x, a, b) in enumerate(rows)
    ]
    problem = pose(cube(2), TWO, NomadSettings(), history, 0, None)
    return front.focus(problem, steps or Steps((100, 100), 0.1), {(rows[0][0], 0)})[0]


def test_the_widest_gap_of_the_front_is_polled_first():
    _, frame = focused([(0, 0.0, 10.0), (10, 1.0, 9.0), (20, 2.0, 8.0), (30, 8.0, 0.0)])
    assert frame.incumbent.levels in ((20, 0), (30, 0))
    single, frame = focused([(0, 0.0, 1.0), (50, 0.9, 0.1), (60, 0.95, 0.05), (100, 1.0, 0.0)])
    assert frame.incumbent.levels in ((0, 0), (50, 0))
    assert single.best.levels == frame.incumbent.levels, (
        "NOMAD polls around the best of the one number it sees"
    )


def test_a_batch_is_shared_among_the_widest_gaps():
    rows = [(0, 0.0, 1.0), (30, 0.3, 0.5), (60, 0.4, 0.4), (100, 1.0, 0.0)]
    history = [
        Observation({"x0": x, "x1": 0}, "completed", {"f0": a, "f1": b}, number=k)
        for k, (x, a, b) in enumerate(rows)
    ]
    problem = pose(cube(2), TWO, NomadSettings(), history, 0, None)
    views = front.focus(problem, Steps((100, 100), 0.1), set(), most=3)
    assert len({frame.incumbent.levels for _, frame in views}) == 3
    for single, frame in views:
        assert single.best.levels == frame.incumbent.levels
    assert views[0][1] == front.focus(problem, Steps((100, 100), 0.1), set())[0][1]


def test_the_number_to_improve_is_the_volume_that_a_point_adds_beside_its_neighbours():
    single, frame = focused([(0, 0.0, 1.0), (50, 0.5, 0.5), (100, 1.0, 0.0)])
    values = {point.levels[0]: point.value for point in single.points}
    center = frame.incumbent.levels[0]
    assert values.pop(center) == -1.0
    assert all(value >= 0 for value in values.values())


def test_a_frame_shrinks_for_its_own_point_only():
    steps = Steps((100, 100), 0.1)
    rows = [(0, 0.0, 1.0), (100, 1.0, 0.0)]
    rows += [(k, 2.0 + k, 2.0) for k in range(1, 7)]  # two failed iterations at the first
    _, frame = focused(rows, steps)
    assert frame.incumbent.levels == (100, 0)
    assert frame.sizes == (10, 10)
    _, frame = focused([*rows, *[(90 + k, 3.0 + k, 3.0) for k in range(6)]], steps)
    assert frame.sizes == (2, 2), "both are two steps down now"


def test_a_point_that_dominates_its_center_enlarges_the_frame():
    _, frame = focused([(50, 1.0, 1.0), (40, 0.5, 0.5)])
    assert frame.incumbent.levels == (40, 0)
    assert frame.sizes == (20, 10), "in the coordinate that moved"


def test_constraints_come_before_objectives():
    limit = Objective("f0", "minimize", (Constraint(metric="c", max=1.0),), (Goal(metric="f1"),))
    history = [
        Observation(
            {"x0": k, "x1": 0}, "completed", {"f0": float(-k), "f1": float(-k), "c": 5.0 - k}, number=k
        )
        for k in range(3)
    ]
    problem = pose(cube(2), limit, NomadSettings(), history, 0, None)
    ((_, frame),) = front.focus(problem, Steps((100, 100), 0.1), set(), most=3)
    assert frame.incumbent.levels == (2, 0), "nothing feasible: the least violation leads"
    found = search.suggest("nomad", cube(2), limit, {}, history, 12, 0)
    assert len(found) == 12


@pytest.mark.parametrize("algorithm", sorted(search.ALGORITHMS))
def test_algorithms_that_cannot_say_which_can(algorithm):
    if search.ALGORITHMS[algorithm].several:
        assert search.validate(algorithm, tribes2024(), {}, TWO) == []
        assert len(search.suggest(algorithm, tribes2024(), TWO, {}, [], 3, 0)) == 3
        return
    with pytest.raises(InputError, match="'lhs', 'nomad', 'random'"):
        search.suggest(algorithm, tribes2024(), TWO, {}, [], 3, 0)


def test_too_many_or_equal_objectives_are_refused():
    four = Objective("f0", further=tuple(Goal(metric=name) for name in ("f1", "f2", "f3")))
    assert "at most 3" in search.validate("nomad", tribes2024(), {}, four)[0]
    assert (
        "different"
        in search.validate("nomad", tribes2024(), {}, Objective("f0", further=(Goal(metric="f0"),)))[0]
    )
