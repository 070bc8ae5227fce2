"""A process started by tests/forked.py behaves like any other: output, exit code, signals and end."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from retune.engines.service import COMMAND
from tests import forked
from tests.conftest import wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("RETUNE_TESTS_FRESH" in os.environ, reason="nothing is forked"),
]
WORKER = [sys.executable, "-m", "retune.engines.worker"]


@pytest.fixture
def worker():
    """A worker that waits for its first line, with the settings that this session began with."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(forked.STARTED_WITH)}
    env = {**others, **forked.Popen.settings, **forked.ONE_THREAD}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(WORKER, env=env, **pipes) as process:
        assert process._answers is not None, "it is forked"
        yield process
        process.kill()


def test_what_it_says_and_its_exit_code_arrive(worker):
    out, err = worker.communicate(b"no study\n", timeout=60)
    assert (out, worker.returncode) == (b"", 1)
    assert err.strip().splitlines()[-1].startswith(b"json.decoder.JSONDecodeError")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_signal_ends_it(worker, number):
    assert worker.poll() is None
    os.kill(worker.pid, number)
    assert worker.wait(timeout=60) == -number


def test_its_pid_is_there_until_somebody_asked_how_it_ended(worker):
    os.kill(worker.pid, signal.SIGKILL)
    wait_for(lambda: Path(f"/proc/{worker.pid}/stat").read_text().split()[2] == "Z")
    os.kill(worker.pid, signal.SIGKILL)  # in vain, and no error
    assert worker.wait(timeout=60) == -signal.SIGKILL
    wait_for(lambda: not Path(f"/proc/{worker.pid}").exists(), seconds=30, message="nobody waited for it")


def test_a_session_of_its_own_is_killed_whole():
    process = subprocess.Popen(WORKER, stdin=subprocess.PIPE, start_new_session=True)
    wait_for(lambda: os.getsid(process.pid) == process.pid)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    process.stdin.close()


def test_it_knows_who_started_it_and_ends_with_that_one():
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); from tests.forked import Popen\n"
        f"print(Popen({COMMAND!r}).pid, flush=True); sys.stdin.read()"
    )
    env = {**os.environ, forked.ADDRESS: forked.Popen._address()}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes, env=env) as parent:
        pid = int(parent.stdout.readline())
        assert parent.stdout.readline().startswith(b"serving on")
        parent.kill()
        wait_for(lambda: not Path(f"/proc/{pid}").exists(), seconds=30, message="it lived on")


def test_the_program_for_shells_ends_as_the_command_and_takes_it_along(tmp_path):
    env = {**os.environ, **forked.Popen.program(tmp_path / "bin")}
    done = subprocess.run(
        [tmp_path / "bin/retune", "nonsense"], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "nonsense" in done.stderr
    with subprocess.Popen(
        [tmp_path / "bin/retune", "serve", "--port", "0"], stdout=subprocess.PIPE, env=env
    ) as program:
        assert program.stdout.readline().startswith(b"serving on")
        program.kill()
        assert program.stdout.read() == b"", "the service has its end of the pipe no more"


def test_who_is_killed_while_it_asks_takes_nobody_along(tmp_path):
    """A test kills runs at random moments: one of them may be about to start a worker."""
    address = forked.Popen._address()
    for said in (b"", (1000).to_bytes(8, "big"), (1000).to_bytes(8, "big") + b"{"):
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking,
            (tmp_path / "file").open("w") as file,
        ):
            asking.connect(address)
            if said:
                socket.send_fds(asking, [said[:8]], [file.fileno()] * 3)
                asking.sendall(said[8:])
    done = subprocess.run(
        [sys.executable, "-m", "retune", "--version"], env={**os.environ, forked.ADDRESS: address},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
