"""Stamps, locks, progress: what lets a step be skipped, done alone, and watched."""

import subprocess
import sys
import time

import pytest

from retune.errors import RetuneError
from retune.events import Finished, Issued
from retune.records import TrialRecord
from retune.study import Objective
from retune.workspace import progress
from retune.workspace.locks import only_writer
from retune.workspace.stamps import Stamps


def test_a_step_is_current_for_the_inputs_it_was_done_from_and_no_others(tmp_path):
    stamps = Stamps(str(tmp_path))
    assert stamps.outputs("select", {"a": 1}) is None
    with stamps.step("select", {"a": 1}) as outputs:
        outputs["chosen"] = "trial-003"
    assert stamps.outputs("select", {"a": 1}) == {"chosen": "trial-003"}
    assert stamps.outputs("select", {"a": 2}) is None
    assert stamps.outputs("register", {"a": 1}) is None
    assert stamps.last("select") == {"chosen": "trial-003"}


def test_a_step_that_fails_leaves_no_stamp(tmp_path):
    stamps = Stamps(str(tmp_path))
    with pytest.raises(ZeroDivisionError), stamps.step("select", {}):
        _ = 1 / 0
    assert stamps.outputs("select", {}) is None


def test_the_lock_names_its_owner_and_is_free_after_a_kill(tmp_path):
    code = f"import time\nfrom retune.workspace.locks import only_writer\nfrom pathlib import Path\nwith only_writer(Path({str(tmp_path / 'lock')!r})):\n print('held', flush=True)\n time.sleep(60)"
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "held\n"
    with pytest.raises(RetuneError, match=f"process {owner.pid} holds"), only_writer(tmp_path / "lock"):
        pass
    owner.kill()
    owner.wait()
    owner.stdout.close()
    with only_writer(tmp_path / "lock", wait_seconds=5):
        pass


def test_progress_counts_what_earlier_runs_did_and_estimates_what_is_left(tmp_path):
    def record(number, loss, role="search", status="completed"):
        values = {} if loss is None else {"validation_loss": loss}
        return TrialRecord(trial=f"trial-{number:03d}", number=number, role=role, assignment={}, seed=0, status=status, values=values, seconds=10)  # fmt: skip

    path = tmp_path / "progress.json"
    shown = progress.SearchProgress(
        path, Objective(), 10, 2, [record(0, 3.0, role="base"), record(1, 2.0, role="default")], 5.0
    )
    assert progress.read(path).left is None
    shown(Issued("trial-002", 2, "search", {}, 0))
    assert progress.read(path).left is None
    shown(Finished("trial-002", record(2, 1.5)))
    shown(Finished("trial-003", record(3, None, status="failed")))
    read = progress.read(path)
    assert (read.done, read.total, read.failed) == (4, 10, 1)
    assert (read.base, read.best, read.best_trial) == (3.0, 1.5, "trial-002")
    assert read.left == pytest.approx(10 * 6 / 2)
    assert read.search_seconds >= 5.0


def test_a_stopped_trial_counts_as_done_until_it_goes_on(tmp_path):
    def record(number, status, loss, role="search"):
        return TrialRecord(trial=f"trial-{number:03d}", number=number, role=role, assignment={}, seed=0, status=status,
                           values={"validation_loss": loss}, rungs=[{"share": 0.5, "step": 1, "loss": loss}])  # fmt: skip

    path = tmp_path / "progress.json"
    shown = progress.SearchProgress(path, Objective(), 10, 2, [record(2, "early_stopped", 0.5)], 0.0, 9)
    shown(Finished("trial-003", record(3, "early_stopped", 0.7)))
    read = progress.read(path)
    assert (read.done, read.settings_done, read.stopped, read.best) == (2, 2, 2, None)
    shown(Issued("trial-002", 2, "search", {}, 0))
    shown(Finished("trial-002", record(2, "completed", 0.4)))
    read = progress.read(path)
    assert (read.done, read.settings_done, read.stopped, read.best) == (2, 2, 1, 0.4)


def test_the_best_on_a_part_of_the_data_is_forgotten_once_there_is_one_on_all_of_it(tmp_path):
    def record(number, role, loss):
        return TrialRecord(trial=f"trial-{number:03d}", number=number, role=role, assignment={}, seed=0,
                           status="completed", values={"validation_loss": loss})  # fmt: skip

    path = tmp_path / "progress.json"
    shown = progress.SearchProgress(path, Objective(), 10, 2, [record(2, "proxy", 0.1)], 0.0, 5, proxy=True)
    assert progress.read(path).best == 0.1
    shown(Finished("trial-002", record(2, "search", 0.6)))
    shown(Finished("trial-003", record(3, "proxy", 0.2)))
    read = progress.read(path)
    assert (read.best, read.done, read.settings_done) == (0.6, 3, 2)


def test_a_step_that_begins_keeps_what_the_search_found(tmp_path):
    path = tmp_path / "progress.json"
    found = progress.Progress(
        step="search", done=9, total=9, best=1.5, base=3.0, left=2.0, running={"trial-002": 0.5}
    )
    progress.write(path, found)
    progress.begin(path, "benchmark")
    read = progress.read(path)
    assert (read.step, read.best, read.base) == ("benchmark", 1.5, 3.0)
    assert (read.done, read.total, read.left, read.running) == (0, 0, None, {})


def test_a_full_disk_costs_only_the_display(tmp_path):
    gone = tmp_path / "not a folder" / "progress.json"
    progress.write(gone, progress.Progress(step="search"))
    assert progress.read(gone) is None


def test_waiting_for_a_lock_ends_when_it_is_free(tmp_path):
    code = f"import time\nfrom retune.workspace.locks import only_writer\nfrom pathlib import Path\nwith only_writer(Path({str(tmp_path / 'lock')!r})):\n print('held', flush=True)\n time.sleep(1)"
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    owner.stdout.readline()
    start = time.monotonic()
    with only_writer(tmp_path / "lock", wait_seconds=20):
        assert time.monotonic() - start < 15
    owner.wait()
    owner.stdout.close()
