"""Cores are those that the process may use, not those of the machine."""

import os
import subprocess
import sys

import pytest

from retune import cores
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, [1.5]),
        ({"cpu.max": "max 100000\n"}, []),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, [4.0]),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, []),
        ({"cpu.max": ""}, []),
        ({}, []),
    ],
)
def test_quotas_of_both_versions_of_cgroups_are_read(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert list(cores.quotas(tmp_path)) == expected


def test_a_part_of_a_core_is_one_and_the_least_bound_holds(monkeypatch):
    monkeypatch.delenv(cores.VARIABLE, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    for quotas, variable, expected in [
        ([], "", 8), ([0.25], "", 1), ([2.5], "", 3), ([64.0], "", 8), ([], "4", 4), ([2.0], "4", 2), ([], "0", 1), ([], "two", 8),
    ]:  # fmt: skip
        monkeypatch.setattr(cores, "quotas", lambda root, found=quotas: iter(found))
        monkeypatch.setenv(cores.VARIABLE, variable)
        assert cores.available() == expected, (quotas, variable)


def test_the_affinity_counts():
    code = "from retune import cores; print(cores.available())"
    command = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0))), sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "expected"),
    [({cores.VARIABLE: "1"}, 1), ({cores.VARIABLE: "1", "OMP_NUM_THREADS": "2"}, 2)],
)
def test_torch_starts_no_more_threads_than_there_are_cores(variables, expected):
    """As in a pod on a node of many cores: torch itself counts the node's. What a user sets goes before."""
    code = (
        "import torch; from retune import models; from retune.study import Model\n"
        f"models.load_base(Model(base={str(ROOT / 'examples/base/tiny')!r}))\n"
        "print(torch.get_num_threads())"
    )
    env = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")} | variables
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout == f"{expected}\n", done.stderr
