"""Processes forked before a search: what they inherit, how they end, and that none is left behind."""

import json
import os
import queue
import signal
import subprocess
import sys

import pytest

from retune.engines import spares
from retune.engines.workers import Worker
from retune.processes import alive
from tests.conftest import wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are new interpreters")

WHOLE = """
import json, os, sys
from pathlib import Path
from retune.engines import spares
from retune.engines.workers import Worker
secret = os.open(os.devnull, os.O_RDONLY)
if spares.fork(4):
    import torch
    reported = {"threads": torch.get_num_threads(), "OMP": os.environ["OMP_NUM_THREADS"], "files": os.listdir("/proc/self/fd"),
            "parent": os.getppid()}
    print(json.dumps(reported), flush=True)
    print("for the log", file=sys.stderr)
    sys.exit(75 if sys.stdin.readline() else 3)
first, second, third, fourth = [process.pid for process in spares._waiting]
os.kill(first, 9)
os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
log = Path(sys.argv[1])
one = spares.take(log, 3)
reported = json.loads(one.stdout.readline())
assert one.poll() is None and one.pid == second, "the one that was killed while it waited is passed over"
one.stdin.write("end\\n"); one.stdin.flush()
two = spares.take(log, 1)
two.kill()
spares.end()
codes = [one.wait(60), two.wait(60)]
left = [pid for pid in (first, second, third, fourth) if os.path.exists(f"/proc/{pid}")]
print(json.dumps({**reported, "me": os.getpid(), "codes": codes, "left": left, "more": spares.take(log, 1) is None}))
"""


@pytest.mark.slow
def test_a_spare_process_becomes_a_worker_and_no_process_is_left(tmp_path):
    log = tmp_path / "worker.log"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WHOLE, str(log)], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)
    assert (output["threads"], output["OMP"]) == (3, "3"), (
        "its threads are those it is told, not those it began with"
    )
    assert output["parent"] == output["me"]
    assert len(output["files"]) == 4, "standard input, output and error, and the listing itself"
    assert output["codes"] == [75, -signal.SIGKILL]
    assert output["left"] == []
    assert output["more"], "none is left to take"
    assert log.read_text() == "for the log\n"


def test_a_spare_process_ends_with_the_one_that_forked_it():
    code = (
        "import sys\nfrom retune.engines import spares\n"
        "if not spares.fork(2):\n  print(*[p.pid for p in spares._waiting], flush=True)\n  sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert all(map(alive, pids))
        process.kill()
    wait_for(lambda: not any(map(alive, pids)), seconds=10)


def test_none_is_forked_where_it_is_not_safe_or_of_no_use(small, monkeypatch):
    monkeypatch.setattr("retune.gpus.visible", list)
    assert spares.wanted(small()) == 2
    assert spares.wanted(small("engine.kind=katib", "cluster.images.train=x")) == 0
    monkeypatch.setattr("retune.gpus.visible", lambda: ["0"])
    assert spares.wanted(small()) == 0
    monkeypatch.setattr("retune.gpus.visible", list)
    monkeypatch.setattr("sys.platform", "darwin")
    assert spares.wanted(small()) == 0


def test_a_log_that_cannot_be_written_is_told_before_a_process_is_taken(small, tmp_path, monkeypatch):
    monkeypatch.setattr(
        spares, "take", lambda *_: pytest.fail("a worker was taken, whose death would blame its trial")
    )
    with pytest.raises(IsADirectoryError):
        Worker(0, small(), "data", 1, 1, tmp_path, queue.Queue())
