"""How many processes and how many trials in each, on machines of several kinds."""

import pytest

from retune.engines import SearchJob, spread, start
from retune.errors import InputError


@pytest.fixture
def machine(monkeypatch):
    def made(cores, gpus=0):
        monkeypatch.setattr("retune.cores.available", lambda: cores)
        monkeypatch.setattr(spread.gpus, "visible", lambda: [str(number) for number in range(gpus)])

    return made


@pytest.mark.parametrize(
    ("cores", "gpus", "overrides", "expected"),
    [
        (2, 0, ["search.parallel=2"], (2, 1)),
        (2, 0, ["search.parallel=8"], (2, 4)),
        (8, 0, ["search.parallel=8", "engine.threads=4"], (2, 4)),
        (8, 1, ["search.parallel=8"], (1, 8)),
        (8, 4, ["search.parallel=8"], (4, 2)),
        (8, 1, ["search.parallel=8", "engine.pack=1"], (8, 1)),
        (8, 1, ["search.parallel=8", "engine.pack=3"], (3, 3)),
        (8, 1, ["search.parallel=4", "search.constraints=[{metric: seconds, max: 100}]"], (4, 1)),
    ],
)
def test_one_process_a_gpu_or_core_and_the_rest_side_by_side(
    small, machine, cores, gpus, overrides, expected
):
    machine(cores, gpus)
    found = spread.spread(small(*overrides))
    assert (found.workers, found.pack) == expected


@pytest.mark.parametrize(
    ("gpus", "trials", "before", "expected"),
    [(0, 100, None, 8), (1, 100, None, 8), (2, 100, None, 12), (1, 16, None, 2), (2, 100, 5, 5)],
)
def test_auto_fills_the_machine_and_leaves_the_search_eight_rounds(
    small, machine, gpus, trials, before, expected
):
    machine(2, gpus)
    study = small("search.parallel=auto", f"search.trials={trials}")
    assert spread.settled(study, before).search.parallel == expected
    assert spread.settled(small("search.parallel=3"), before).search.parallel == 3


def test_auto_is_refused_where_no_machine_is_known(small):
    with pytest.raises(InputError, match=r"search\.parallel: auto.*engine\.kind.*katib"):
        small("search.parallel=auto", "engine.kind=katib", "cluster.images.train=x")


@pytest.mark.parametrize("wrong", ["0", "-1", "many"])
def test_what_is_neither_a_number_nor_auto_is_refused(small, wrong):
    with pytest.raises(InputError, match="parallel"):
        small(f"search.parallel={wrong}")


@pytest.mark.parametrize(
    ("variable", "overrides", "expected"),
    [
        (None, ["search.parallel=2"], 4),
        ("1", ["search.parallel=2"], 1),
        ("3,2", ["search.parallel=2"], 4),  # for nested regions: not for us
        ("1", ["search.parallel=2", "engine.threads=3"], 3),
    ],
)
def test_threads_are_what_the_study_or_the_variable_says_or_a_share(
    small, machine, monkeypatch, tmp_path, variable, overrides, expected
):
    machine(8)
    if variable is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    study = small("engine.threads=null", *overrides)
    job = SearchJob(study, "data", str(tmp_path), tmp_path, print, lambda: False)
    assert start(job).threads == expected
