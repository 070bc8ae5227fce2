"""NOMAD in difficult cases: crashes, hangs, frames, meshes, warm starts, constraints and long histories."""

import contextlib
import logging
import math
import os
import random
from pathlib import Path

import pytest

from retune import search
from retune.search import Objective, Observation, explain, nomad_process, nomad_solver, suggest
from retune.search import validate as search_validate
from retune.space import Parameter, Space, tribes2024
from retune.study import Constraint

LOSS = Objective()


def smooth(assignment):
    return (
        (math.log10(assignment["learning_rate"]) + 4.23) ** 2
        + 0.05 * (math.log2(assignment["rank"]) - 5) ** 2
        + ((assignment["alpha"] - 40) / 100) ** 2
    )


def play(trials, batch=4, function=smooth, space=None, settings=None, history=(), objective=LOSS):
    space, history = space or tribes2024(), list(history)
    origins = []
    end = len(history) + trials
    while len(history) < end:
        for proposal in search.explain("nomad", space, objective, settings or {}, history, batch, 0):
            values = {
                "validation_loss": function(proposal.assignment),
                "rank": float(proposal.assignment.get("rank", 0)),
            }
            origins.append(proposal.origin)
            history.append(Observation(proposal.assignment, "completed", values, number=len(history)))
    return history, origins


def best(history):
    return min(history, key=lambda entry: entry.values["validation_loss"])


@pytest.mark.slow
def test_the_learning_rate_is_searched_between_the_decades():
    """With real variables NOMAD rounds its frame to whole decades; on levels it does not."""
    history, _ = play(60, batch=1)
    logs = [math.log10(entry.assignment["learning_rate"]) for entry in history]
    assert any(abs(value - round(value)) > 0.02 for value in logs[9:30])
    assert abs(math.log10(best(history).assignment["learning_rate"]) + 4.23) <= 0.05


@pytest.mark.slow
def test_proposals_say_where_they_come_from():
    _, origins = play(60)
    assert origins[:2] == ["start: default", "start: Latin hypercube"]
    assert {"poll", "model search"} <= set(origins)


@pytest.fixture
def broken(monkeypatch, tmp_path):
    """A solver that breaks in a chosen way, for the first calls."""

    def use(body, times=99):
        counter = tmp_path / "count"
        counter.write_text("0")
        script = tmp_path / "solver.py"
        script.write_text(
            "import os, signal, sys, time\n"
            f"path = {str(counter)!r}\n"
            "number = int(open(path).read()) + 1\n"
            "open(path, 'w').write(str(number))\n"
            f"if number > {times}:\n"
            f"    os.execv(sys.executable, [sys.executable, '-I', {nomad_solver.__file__!r}])\n"
            f"{body}\n"
        )
        monkeypatch.setattr(nomad_solver, "__file__", str(script))
        return lambda: int(counter.read_text())

    return use


FAULTS = {
    "abort": "os.abort()",
    "segmentation fault": "os.kill(os.getpid(), signal.SIGSEGV)",
    "garbage": "print('[[[1, 2')",
    "other garbage": "print('{\"a\": 1}')",
    "not text": "os.write(1, bytes(range(256)))",
    "no answer": "os._exit(0)",
    "nothing new": "print('[]')",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_solver_that_breaks_costs_the_call_nothing(broken, fault, caplog):
    history, _ = play(12)
    calls = broken(FAULTS[fault])
    with caplog.at_level(logging.WARNING):
        found = search.explain("nomad", tribes2024(), LOSS, {}, history, 6, 0)
    assert len({tuple(proposal.assignment.values()) for proposal in found}) == 6
    expected = "random fill" if fault == "nothing new" else "fallback: coordinate poll, NOMAD failed: "
    assert all(proposal.origin.startswith(expected) for proposal in found)
    # Killed: out of memory or time; it would be again
    attempts = {"nothing new": 1, "killed": 1}.get(fault, 4)
    assert calls() == attempts
    assert len(caplog.records) == (0 if fault == "nothing new" else attempts)
    assert search.explain("nomad", tribes2024(), LOSS, {}, history, 6, 0) == found


def test_a_solver_that_hangs_is_ended(broken, monkeypatch):
    history, _ = play(12)
    monkeypatch.setattr(nomad_process, "_WALL_SECONDS", 1)
    calls = broken("time.sleep(600)")
    found = search.explain("nomad", tribes2024(), LOSS, {}, history, 3, 0)
    assert [p.origin for p in found] == ["fallback: coordinate poll, NOMAD failed: no answer within 1 s"] * 3
    assert calls() == 1


@pytest.mark.slow
def test_a_solver_that_spins_is_ended_by_its_cpu_seconds_not_by_the_clock(broken, monkeypatch):
    history, _ = play(12)
    monkeypatch.setattr(nomad_process, "_CPU_SECONDS", 1)
    calls = broken(
        "import json, resource\n"
        "seconds = json.load(sys.stdin)['cpu_seconds']\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))\n"
        "while True: pass"
    )
    found = search.explain("nomad", tribes2024(), LOSS, {}, history, 3, 0)
    assert {p.origin for p in found} == {
        "fallback: coordinate poll, NOMAD failed: no answer within 1 s of CPU"
    }
    assert calls() == 1


def test_no_answer_needs_a_tenth_of_the_cpu_limit():
    """The CPU limit must never decide: a slow machine must give the same answer as a fast one."""
    import resource

    history, space = (
        [],
        Space(parameters=tuple(Parameter(name=n, kind="integer", low=0, high=19, default=9) for n in "ab")),
    )
    for number in range(300):  # most of a small space is known: the most that NOMAD is ever asked in turn
        levels = (number % 20, number // 20)
        values = {"validation_loss": float((levels[0] - 4) ** 2 + (levels[1] - 7) ** 2)}
        history.append(Observation(space.decode(levels), "completed", values, number=number))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    search.suggest("nomad", space, LOSS, {}, history, 90, 0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert 0 < used < nomad_process._CPU_SECONDS / 5


def test_after_a_crash_a_simpler_search_is_tried(broken):
    history, _ = play(12)
    calls = broken("os.abort()", times=1)
    found = search.explain("nomad", tribes2024(), LOSS, {}, history, 3, 0)
    assert calls() == 2, "one crash, one answer"
    assert {proposal.origin for proposal in found} <= {"poll", "model search"}


def test_crashes_leave_no_process_file_or_descriptor_behind(broken, monkeypatch, tmp_path):
    history, _ = play(12)
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    broken("os.abort()")
    search.suggest("nomad", tribes2024(), LOSS, {}, history, 3, 0)
    before, children = len(os.listdir("/proc/self/fd")), _children()
    for _ in range(5):
        search.suggest("nomad", tribes2024(), LOSS, {}, history, 3, 0)
    assert len(os.listdir("/proc/self/fd")) == before
    assert list(folder.iterdir()) == []
    assert _children() == children


def _children():
    """Return the process ids of this process's children, ended ones that nobody waited for among them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(path.parent.name))
    return sorted(found)


@pytest.mark.slow
def test_a_converged_mesh_goes_on_and_leaves_the_basin():
    space = Space(
        parameters=tuple(Parameter(name=n, kind="integer", low=0, high=40, default=30) for n in ("x", "y"))
    )

    def two(a):
        return min((a["x"] - 30) ** 2 + (a["y"] - 28) ** 2 + 5, 2 * (a["x"] - 6) ** 2 + 2 * (a["y"] - 5) ** 2)

    history, origins = play(150, 2, two, space, {"LH_SEARCH": 2})
    assert best(history).values["validation_loss"] < 5, "the deeper basin is found"
    assert any("restart 1" in origin and "away" in origin for origin in origins)
    assert len({tuple(entry.assignment.values()) for entry in history}) == 150


def test_a_thousand_points_of_an_earlier_study_are_used_at_once():
    space, rng = tribes2024(), random.Random(0)
    warm = []
    for number in range(1000):
        assignment = space.decode(space.from_unit([rng.random() for _ in space.names]))
        if number % 10 == 0:
            # Off the grid, perhaps out of bounds
            assignment = {**assignment, "learning_rate": assignment["learning_rate"] * 1.004}
        status = "failed" if number % 7 == 0 else "completed"
        warm.append(
            Observation(
                assignment, status, {"validation_loss": smooth(assignment)}, f"warm-{number}", warm=True
            )
        )
    found = search.explain("nomad", space, LOSS, {"LH_SEARCH": 0}, warm, 5, 0)
    seen = {space.encode(entry.assignment) for entry in warm if space.contains(entry.assignment)}
    assert not {space.encode(proposal.assignment) for proposal in found} & seen
    top = best([entry for entry in warm if entry.status == "completed"]).assignment
    near = [p for p in found if abs(math.log10(p.assignment["learning_rate"] / top["learning_rate"])) < 0.6]
    assert found[0].origin == "start: default"
    assert len(near) >= 3, "NOMAD starts from the best known point"
    assert search.explain("nomad", space, LOSS, {"LH_SEARCH": 0}, warm, 5, 0) == found


@pytest.mark.slow
@pytest.mark.parametrize("barrier", ["PB", "EB"])
def test_constraints_are_kept_and_nomad_takes_them(barrier, caplog):
    limit = Objective(constraints=(Constraint(metric="rank", max=16),))
    with caplog.at_level(logging.WARNING):
        history, _ = play(48, settings={"BB_OUTPUT_TYPE": barrier}, objective=limit)
    assert not caplog.records, "no call of NOMAD failed"
    feasible = [entry for entry in history if entry.values["rank"] <= 16]
    assert len(feasible) > 15
    assert best(feasible).values["validation_loss"] < 0.1, "the best with rank 16 is 0.05"


@pytest.mark.parametrize("direction", ["ORTHO N+1 QUAD", "ORTHO N+1 NEG", "ORTHO 2N", "DOUBLE", "SINGLE"])
def test_each_direction_type_works(direction, caplog):
    with caplog.at_level(logging.WARNING):
        play(14, settings={"DIRECTION_TYPE": direction})
    assert not caplog.records


def test_settings_are_refused_with_the_valid_ones():
    problems = search.validate(
        "nomad", tribes2024(), {"SPECULATIVE_SEARCH": "yes", "DIRECTION_TYPE": "ORTHO 3N"}
    )
    assert len(problems) == 2
    assert any("'SPECULATIVE_SEARCH'" in p and "'NM_SEARCH'" in p for p in problems)
    assert any("'ORTHO 2N'" in p for p in problems)


BAD = {
    "LH_SEARCH": ["-1", "1.5", "many"],
    "INITIAL_FRAME_SIZE": ["0", "1.1", "nan"],
    "INITIAL_MESH_SIZE": ["0", "2"],
    "MIN_FRAME_SIZE": ["-0.1", "inf"],
    "QUAD_MODEL_SEARCH": ["perhaps"],
    "NM_SEARCH": ["2"],
    "VNS_MADS_SEARCH": ["often"],
    "ANISOTROPIC_MESH": [""],
    "EVAL_QUEUE_SORT": ["LEXICOGRAPHICAL"],
    "BB_OUTPUT_TYPE": ["CSTR"],
    "SEED": ["-1", "2147483648", "x"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name in BAD for text in BAD[name]])
def test_a_setting_out_of_range_is_refused_with_its_name_and_value(name, text):
    (problem,) = search.validate("nomad", tribes2024(), {name: text})
    assert repr(name) in problem
    assert repr(text) in problem


def test_settings_that_contradict_each_other_are_refused():
    both = {"INITIAL_FRAME_SIZE": 0.1, "INITIAL_MESH_SIZE": 0.01}
    assert (
        "either 'INITIAL_FRAME_SIZE' or 'INITIAL_MESH_SIZE'"
        in search.validate("nomad", tribes2024(), both)[0]
    )
    assert "either 'seed' or 'SEED'" in search.validate("nomad", tribes2024(), {"seed": 1, "SEED": "2"})[0]


@pytest.mark.slow
def test_every_setting_changes_what_is_proposed():
    """No setting is accepted and then ignored."""
    history, _ = play(24, batch=8)
    plain = {"EVAL_QUEUE_SORT": "RANDOM"}
    usual = search.suggest("nomad", tribes2024(), LOSS, plain, history, 8, 0)
    for changed in (
        {"INITIAL_FRAME_SIZE": "0.5"},
        {"INITIAL_MESH_SIZE": "0.2"},
        {"DIRECTION_TYPE": "ORTHO 2N"},
        {"QUAD_MODEL_SEARCH": "no"},
        {"NM_SEARCH": "no"},
        {"SEED": "5"},
        {"EVAL_QUEUE_SORT": "SURROGATE"},
        {"LH_SEARCH": "20"},
    ):
        assert search.suggest("nomad", tribes2024(), LOSS, {**plain, **changed}, history, 8, 0) != usual, (
            changed
        )
    assert search.suggest("nomad", tribes2024(), LOSS, {"SEED": 7}, [], 4, 0) == search.suggest(
        "nomad", tribes2024(), LOSS, {}, [], 4, 7
    )


@pytest.mark.slow
def test_variable_neighbourhood_search_leaves_the_incumbent_while_the_polls_fail():
    def basins(a):  # a wide one that the start lies in, and a deep one on the other side
        rate = math.log10(a["learning_rate"])
        return min((rate + 5.5) ** 2 + 0.3, 3 * (rate + 3.4) ** 2) + ((a["alpha"] - 30) / 60) ** 2

    found = []
    for seed in (1, 2, 3):
        settings = {"VNS_MADS_SEARCH": "true", "LH_SEARCH": 0, "SEED": seed}
        history, origins = play(60, 4, basins, settings=settings)
        shaken = [k for k, origin in enumerate(origins) if origin.startswith("VNS: shaken by ")]
        assert shaken
        assert len(shaken) <= 60 / 4
        found.append(best(history).values["validation_loss"])
    assert sorted(found)[1] < 0.3, "the wide basin has nothing better; chance may keep one search there"


def test_one_poll_completes_over_several_calls():
    """The directions do not change from call to call: 2n of them, one trial at a time, are one positive basis."""
    space = Space(
        parameters=tuple(
            Parameter(name=n, kind="integer", low=0, high=200, default=100) for n in ("x", "y", "z")
        )
    )
    given = {"DIRECTION_TYPE": "ORTHO 2N", "QUAD_MODEL_SEARCH": "no", "NM_SEARCH": "no", "LH_SEARCH": "0"}
    history = [Observation(space.default(), "completed", {"validation_loss": 0.0}, number=0)]
    at_once = search.suggest("nomad", space, LOSS, given, history, 6, 0)
    moves = []
    for number in range(1, 4):  # fewer than make an iteration fail
        (found,) = search.suggest("nomad", space, LOSS, given, history, 1, 0)
        assert found in at_once
        moves.append(found)
        history.append(Observation(found, "completed", {"validation_loss": 1.0}, number=number))
    rest = search.suggest("nomad", space, LOSS, given, history, 3, 0)
    assert sorted(map(str, moves + rest)) == sorted(map(str, at_once))
    steps = [[a[n] - 100 for n in ("x", "y", "z")] for a in at_once]
    opposite = [[-step for step in move] for move in steps]
    assert sorted(steps) == sorted(opposite), "a maximal basis: with each direction its negative"


def test_categories_are_tried_around_the_best_point():
    space = Space(
        parameters=(
            Parameter(name="schedule", kind="categorical", values=("a", "b", "c"), default="a"),
            Parameter(name="x", kind="integer", low=0, high=100, default=10),
        )
    )

    def function(a):
        return (a["x"] - 50) ** 2 / 100 + {"a": 3, "b": 1, "c": 0}[a["schedule"]]

    history, origins = play(40, 4, function, space)
    assert best(history).assignment == {"schedule": "c", "x": 50}
    assert "poll of categories" in origins


def test_repeated_measurements_of_a_point_count_as_their_mean():
    history, _ = play(20)
    top = best(history)
    lucky = Observation(top.assignment, "completed", {"validation_loss": 9.0}, number=99)
    changed = search.suggest("nomad", tribes2024(), LOSS, {}, [*history, lucky], 2, 0, issued=20)
    assert changed != search.suggest("nomad", tribes2024(), LOSS, {}, history, 2, 0, issued=20)


def test_another_kind_of_processor_proposes_the_same(monkeypatch):
    history, _ = play(30, batch=3)
    here = search.suggest("nomad", tribes2024(), LOSS, {"EVAL_QUEUE_SORT": "RANDOM"}, history, 4, 0)
    run = nomad_process.subprocess.run

    def without_fma(command, **more):
        tunables = {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-FMA,-AVX2,-AVX,-AVX512F"}
        return run(command, **{**more, "env": {**more["env"], **tunables}})

    monkeypatch.setattr(nomad_process.subprocess, "run", without_fma)
    assert search.suggest("nomad", tribes2024(), LOSS, {"EVAL_QUEUE_SORT": "RANDOM"}, history, 4, 0) == here


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_asynchronous_trials_that_end_in_any_order(seed):
    """One new point whenever one of P trials ends; a fifth of them fail. No point is ever asked for twice."""
    rng, space = random.Random(seed), tribes2024()
    places = rng.choice([2, 4, 8])
    done, running, issued = [], [], 0
    while issued < 28:
        history = done + [Observation(a, "running", number=n) for n, a in running]
        rng.shuffle(history)
        for assignment in search.suggest("nomad", space, LOSS, {}, history, places - len(running), seed):
            assert assignment not in [entry.assignment for entry in history]
            running.append((issued, assignment))
            issued += 1
        number, assignment = running.pop(rng.randrange(len(running)))
        failed = rng.random() < 0.2
        values = {} if failed else {"validation_loss": smooth(assignment)}
        done.append(Observation(assignment, "failed" if failed else "completed", values, number=number))


PAPER = {"paper": True}


def test_the_papers_nomad_starts_from_the_default_alone_and_looks_further_after_a_success():
    space = tribes2024()
    start = space.default()
    [first] = suggest("nomad", space, Objective(), PAPER, [], 1, 0)
    assert first == start
    history = [Observation(start, "completed", {"validation_loss": 1.0}, number=1)]
    second = explain("nomad", space, Objective(), PAPER, history, 1, 0)[0]
    assert second.origin in ("poll", "model search")
    better = {**start, "learning_rate": space["learning_rate"].value(space["learning_rate"].level(1e-5) + 20)}
    history.append(Observation(better, "completed", {"validation_loss": 0.5}, number=2))
    further = explain("nomad", space, Objective(), PAPER, history, 1, 0)[0]
    assert further.origin == "speculative search"
    assert further.assignment["learning_rate"] > better["learning_rate"]
    assert {k: v for k, v in further.assignment.items() if k != "learning_rate"} == {
        k: v for k, v in start.items() if k != "learning_rate"
    }
    history.append(Observation(further.assignment, "completed", {"validation_loss": 2.0}, number=3))
    assert explain("nomad", space, Objective(), PAPER, history, 1, 0)[0].origin != "speculative search"
    assert explain("nomad", space, Objective(), {}, history[:2], 1, 0)[0].origin != "speculative search"


def test_the_papers_cache_holds_earlier_results_as_they_were_measured():
    """The poll is around a point of the first round that is better than all of the second."""
    space = tribes2024()
    best = {"rank": 128, "dropout": 0.0, "alpha": 60, "learning_rate": 1e-3}
    cache = [Observation(best, "completed", {"validation_loss": 0.1}, "w", warm=True, source="round1")]
    own = [Observation(space.default(), "completed", {"validation_loss": 1.0}, number=1)]
    for proposal in explain("nomad", space, Objective(), PAPER, cache + own, 4, 0):
        if proposal.origin == "poll":
            assert abs(proposal.assignment["alpha"] - 60) <= 10
    raw = suggest("nomad", space, Objective(), PAPER, cache + own, 4, 0)
    assert raw != suggest("nomad", space, Objective(), {}, cache + own, 4, 0)


def test_the_papers_settings_cannot_be_mixed():
    [problem] = search_validate("nomad", tribes2024(), {"paper": True, "LH_SEARCH": 4})
    assert "'paper' sets all but the seed, but got ['LH_SEARCH'] too" in problem
