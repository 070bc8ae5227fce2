"""The log of a local run: how failures are reported, and that earlier logs are kept."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from retune.errors import InputError, RetuneError
from retune.launch import local, run
from retune.launch.compiled import compiled
from retune.launch.local import KEPT_LOGS, Log
from retune.launch.run import ERROR_FILE, error_kept
from tests.conftest import wait_for


def test_the_error_of_the_failed_step_is_shown(tmp_path, monkeypatch):
    log = Log(tmp_path / "logs/pipeline.log")
    log.rotate()
    monkeypatch.setenv(ERROR_FILE, str(log.error))
    log.path.write_text("step mix\nTraceback\n    raise RuntimeError(msg)\n")
    assert log.failure().startswith("the step 'mix' ended without an error message")
    with pytest.raises(InputError), error_kept("mix"):
        raise InputError(["`rank` must be a number", "`alpha` too"], "study")
    assert log.failure().startswith("the step 'mix' failed: ")
    assert "`rank` must be a number" in log.failure()
    assert "`alpha` too" in log.failure()
    with pytest.raises(ZeroDivisionError), error_kept("report"):  # what follows from it
        1 / 0
    assert "the step 'mix' failed: " in log.failure()
    log.rotate()
    with pytest.raises(ZeroDivisionError), error_kept("select"):
        1 / 0
    assert log.failure() == "the step 'select' failed: ZeroDivisionError: division by zero"
    log.rotate()
    assert (
        log.failure()
        == "the run ended without an error message, so it was probably killed (is there memory enough?)"
    )


def test_a_disk_that_has_no_room_for_the_error_is_told_too(small, tmp_path):
    """A limit on the size of files stands for the full disk."""
    log = Log(tmp_path / "logs/pipeline.log")
    log.rotate()
    arguments = tmp_path / "study.json"
    arguments.write_text(small().model_dump_json())
    done = subprocess.run(
        [sys.executable, "-m", "retune.launch.run", str(arguments)], env={**os.environ, ERROR_FILE: str(log.error)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5, 5)), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 75, done.stderr
    assert log.error.read_text() == "the s"
    assert "DiskFull" in done.stderr
    log.path.write_text("step mix\n")
    assert log.failure(done.returncode).startswith("the step 'mix' failed: No space left on device, not even")


def test_the_order_of_the_steps_is_that_of_the_compiled_pipeline(small):
    spec = yaml.safe_load(compiled("search").read_text())
    tasks = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    order = []
    while len(order) < len(tasks):
        ready = [
            name
            for name in tasks
            if name not in order and set(tasks[name].get("dependentTasks", [])) <= set(order)
        ]
        assert ready
        order += sorted(ready)
    iterator = run.steps(small())
    names = []
    for name, step in iterator:
        names.append(name)
        if name == "search":  # the next ones ask for its folder, and do nothing yet
            iterator.gi_frame.f_locals["searched"].append(None)
    assert ["validate", *names] == order
    assert set(spec["root"]["dag"]["tasks"]) == {"exit-handler-1", "report"}


def test_earlier_logs_are_kept_but_not_for_ever(tmp_path):
    log = Log(tmp_path / "pipeline.log")
    for number in range(KEPT_LOGS + 4):
        log.rotate()
        log.path.write_text(str(number))
        os.utime(log.path, ns=(0, (1_800_000_000 + number) * 10**9))
    kept = [path.read_text() for path in sorted(tmp_path.glob("pipeline-*.log"))]
    assert kept == [str(number) for number in range(3, KEPT_LOGS + 3)]
    assert log.path.read_text() == str(KEPT_LOGS + 3)


@pytest.mark.slow
def test_a_run_names_the_step_and_its_reason(small, monkeypatch):
    """The real pipeline; the data is deleted after the check and before the run."""
    study = small("data.sources.0.uri=gone.json")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    begun = time.monotonic()
    for _ in range(2):
        with pytest.raises(RetuneError, match=r"the step 'mix' failed: .*gone.json") as caught:
            local.run(study, lambda _: time.monotonic() - begun)
    assert "raise RuntimeError" not in str(caught.value)
    logs = sorted(path.name for path in (local.folders.work_folder(study) / "logs").glob("pipeline*.log"))
    assert len(logs) == 2


@pytest.mark.slow
@pytest.mark.fresh
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are new interpreters")
def test_the_workers_of_a_run_are_forked_from_it(small, tmp_path):
    """A new interpreter would import torch, transformers and PEFT once more: most of what a small run costs beside its trials."""
    study = small()
    path = tmp_path / "study.json"
    path.write_text(study.model_dump_json())
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-m", "retune.launch.run", str(path)]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        try:
            trials = f"{study.name}/search-*/trials/*/trial.json"
            wait_for(
                lambda: any(tmp_path.glob(f"artifacts/{trials}")) or process.poll() is not None, seconds=600
            )
            assert process.poll() is None, (tmp_path / "log").read_text()
            commands = [
                Path(f"/proc/{pid}/cmdline").read_text().split("\0")[1:-1] for pid in children(process.pid)
            ]
        finally:
            process.kill()
            process.wait()
    assert commands.count(command[1:]) == 2, f"search.parallel is 2, but it started {commands}"
    assert not any("retune.engines.worker" in words for words in commands)


def children(pid):
    """Return the processes that a process started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
