"""The frame's rules, one by one, and against NOMAD's own `observe`."""

import math
import random
import subprocess
import sys

import pytest

from retune.search import frame as frames
from retune.search.frame import Steps, ladder
from retune.search.problem import Point


def fold(points, ranges, share, free, **more):
    return frames.fold(points, Steps(tuple(ranges), share, **more), free)


def ok(value, *levels):
    return Point(levels, "ok", value)


def test_sizes_are_one_two_five_ten():
    assert ladder(0) == [1]
    assert ladder(1) == [1]
    assert ladder(64) == [1, 2, 5, 10, 20, 50]
    assert ladder(100)[-1] == 100


def test_the_first_frame_is_a_share_of_each_range():
    frame = fold([], [300, 63, 4, 0], 0.1, ())
    assert frame.sizes == (20, 5, 1, 1)
    assert frame.incumbent is None


def test_a_success_grows_the_frame_where_it_moved():
    frame = fold([ok(3, 10, 10), ok(2, 60, 10)], [300, 300], 0.1, ())
    assert frame.sizes == (50, 20)
    assert fold([ok(3, 10, 10), ok(2, 60, 10)], [300, 300], 0.1, (), anisotropic=False).sizes == (50, 50)
    assert fold([ok(3, 10, 10), ok(2, 12, 10)], [300, 300], 0.1, ()).sizes == (20, 20), "less than a tenth"


def test_a_frame_never_outgrows_its_range():
    points = [ok(-k, 10 * (k % 2), 0) for k in range(20)]
    assert fold(points, [12, 300], 0.1, ()).sizes == (10, 20)


def test_as_many_failures_as_parameters_and_one_shrink_it():
    points = [ok(1, 0, 0)] + [ok(2, k, 0) for k in range(1, 4)]
    assert fold(points[:3], [300, 300], 0.1, ()).sizes == (20, 20)
    assert fold(points, [300, 300], 0.1, ()).sizes == (10, 10)
    failed = [ok(1, 0, 0)] + [Point((k, 0), "failed") for k in range(1, 4)]
    assert fold(failed, [300, 300], 0.1, ()).sizes == (10, 10)


def test_running_trials_and_the_start_design_leave_the_frame_alone():
    running = [ok(1, 0, 0)] + [Point((k, 0), "running") for k in range(1, 9)]
    assert fold(running, [300, 300], 0.1, ()).sizes == (20, 20)
    start = [ok(9 - k, 30 * k, 0) for k in range(9)]
    frame = fold(start, [300, 300], 0.1, {p.levels for p in start})
    assert frame.sizes == (20, 20)
    assert frame.incumbent == start[-1]


def test_a_converged_mesh_is_opened_again():
    points = [ok(1, 0, 0)] + [ok(2, k, 1) for k in range(1, 200)]
    shrinking = [fold(points[:k], [300, 300], 0.1, ()) for k in range(1, 40)]
    assert min(frame.sizes for frame in shrinking) == (1, 1)
    assert shrinking[-1].restarts >= 1
    assert any(frame.restarts == 1 and frame.sizes == (20, 20) for frame in shrinking)


def test_a_smallest_frame_ends_the_refining_before_the_grid():
    points = [ok(1, 0, 0)] + [ok(2, k, 1) for k in range(1, 200)]
    found = [fold(points[:k], [300, 300], 0.1, (), least=0.02) for k in range(1, 40)]
    assert min(frame.sizes for frame in found) == (5, 5)
    assert found[-1].restarts >= 1


def test_failed_iterations_are_counted_until_the_next_success():
    points = [ok(1, 0, 0)] + [ok(2, k, 1) for k in range(1, 8)]
    assert fold(points, [300, 300], 0.1, ()).failures == 2
    assert fold([*points, ok(0, 9, 9)], [300, 300], 0.1, ()).failures == 0


def test_a_feasible_point_beats_any_infeasible_one():
    points = [Point((0,), "ok", 1.0, (0.5,)), Point((5,), "ok", 9.0, (-0.1,)), Point((7,), "ok", 0.0, (0.2,))]
    assert fold(points, [100], 0.1, ()).incumbent == points[1]


OBSERVE = """
import json, sys, PyNomad
sizes, incumbent, best, rounds = json.loads(sys.argv[1])
n = len(sizes)
open("c.txt", "w").write("CACHE_HITS 0\\nBB_OUTPUT_TYPE OBJ\\n( %s ) BB_EVAL_OK ( %r ) SURROGATE_EVAL_NOT_STARTED ( )\\n"
    % (" ".join("%d.0" % x for x in incumbent), best))
base = ["DISPLAY_DEGREE 0", "DIMENSION %d" % n, "BB_INPUT_TYPE ( %s )" % " ".join("I" * n), "LOWER_BOUND ( %s )" % " ".join("0" * n),
        "UPPER_BOUND ( %s )" % " ".join(["300"] * n), "BB_OUTPUT_TYPE OBJ", "MEGA_SEARCH_POLL yes", "CACHE_FILE c.txt"]
for points, values in rounds:
    frame = "INITIAL_FRAME_SIZE ( %s )" % " ".join(map(str, sizes))
    state = PyNomad.observe([*base, frame], [[float(x) for x in p] for p in points], [[v] for v in values], "c.txt")
    sizes = [float(x) for x in state[0].decode().split("(")[1].split(")")[0].split()]
sys.stderr.write(json.dumps(sizes)); sys.stderr.flush()
"""


@pytest.mark.parametrize("seed", range(8))
def test_the_rules_are_those_of_nomads_own_observe(seed, tmp_path):
    """Whole rounds of n + 1 points: with them, NOMAD's iteration and ours are the same."""
    pytest.importorskip("PyNomad")
    import json

    rng = random.Random(seed)
    incumbent, best, first = (150, 150), 0.0, (20, 20)
    points, rounds, center, seen = [ok(best, *incumbent)], [], incumbent, {incumbent}
    for _ in range(4):
        tried = []
        while len(tried) < 3:
            levels = tuple(min(max(c + rng.choice([-30, -7, 0, 3, 25]), 0), 300) for c in center)
            if levels not in seen:
                seen.add(levels)
                tried.append(levels)
        success = rng.random() < 0.5
        values = [1.0, 2.0, best - 1.0 if success else 3.0]
        points += [ok(value, *levels) for value, levels in zip(values, tried, strict=True)]
        if success:
            best, center = best - 1.0, tried[-1]
        else:
            assert not math.isnan(best)
        rounds.append((tried, values))
    given = json.dumps([first, incumbent, 0.0, rounds])
    answer = subprocess.run(
        [sys.executable, "-c", OBSERVE, given], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    # a success ends our count of failures, so that the failures before it in its round do not shrink the frame
    assert [float(s) for s in fold(points, [300, 300], 0.1, ()).sizes] == json.loads(
        answer.stderr.splitlines()[-1]
    )
