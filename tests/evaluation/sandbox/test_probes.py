"""Nothing outside the sandbox can be reached, neither as root nor as the user who owns the files and processes outside."""

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from retune.evaluation.sandbox import privileges

SOURCE = Path(__file__).parents[3] / "src"
HERE = Path(__file__).parent

# Run by the user under test: makes the victims, lets the probes at them, tells what has become of them.
SCENE = """
import ctypes, json, os, sys
source, here, folder, isolation, user = sys.argv[1:]
if user != "root":
    os.setgid(int(user)); os.setuid(int(user))
os.umask(0o077)
os.makedirs(folder, exist_ok=True)
sys.path[:0] = [source, here]
import probes
from retune.evaluation.sandbox import runner
libc = ctypes.CDLL(None, use_errno=True)
mine = folder + "/mine"
with open(mine, "w") as file:
    file.write("kept")
try: os.setxattr(mine, "user.kept", b"x")
except OSError: pass
os.symlink(mine, folder + "/link")
shared = libc.shmget(0, 4096, 0o1600); queue = libc.msgget(0, 0o1600); semaphore = libc.semget(0, 1, 0o1600)
def now():
    found = os.stat(mine)
    return found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns, found.st_nlink, sorted(os.listdir(folder)), os.stat(folder).st_mode
before = now()
try:
    outcome = runner.run(probes.program(folder, os.getpid(), shared, queue, semaphore), runner.Limits(seconds=20), isolation)
    class Info(ctypes.Structure): _fields_ = [("room", ctypes.c_char * 256)]
    statuses = [libc.shmctl(shared, 2, ctypes.byref(Info())), libc.msgctl(queue, 2, ctypes.byref(Info())), libc.semctl(semaphore, 0, 2, ctypes.byref(Info()))]
    kept = open(mine).read() == "kept" and now() == before
    print(json.dumps([outcome.passed, outcome.reason, statuses, kept, os.path.exists("/tmp/retune-was-here")]))
finally:
    libc.shmctl(shared, 0, None); libc.msgctl(queue, 0, None); libc.semctl(semaphore, 0, 0, 0)
"""


@pytest.fixture
def shown():
    """A folder that other users can read, unlike `tmp_path`, whose parent pytest makes private."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.mark.parametrize("isolation", ["namespaces", "filters"])
@pytest.mark.parametrize("user", ["root", "65534"])
def test_no_probe_gets_out(user, isolation, shown):
    if os.getuid() != 0 and user != "root":
        pytest.skip("needs root, to become another user")
    place = shown / "open"
    place.mkdir()
    place.chmod(0o777)
    (shown / "probes.py").write_bytes((HERE / "probes.py").read_bytes())
    done = as_user(SCENE, user, isolation, shown, place / user)
    passed, reason, statuses, kept, left = json.loads(done.stdout)
    assert passed, reason
    assert statuses == [0, 0, 0]
    assert kept
    assert not left


def test_where_landlock_lets_files_be_emptied_the_filter_does_not(tmp_path):
    """Before Linux 6.2 Landlock has no rule for truncation, so the system-call filter forbids O_TRUNC in both open calls."""
    (tmp_path / "kept").write_text("kept")
    child = os.fork()
    if child == 0:
        held = 1
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            path = bytes(tmp_path / "kept")
            number = (2, None) if os.uname().machine == "x86_64" else (None, None)
            os.close(os.open(path, os.O_RDWR))
            privileges._call("prctl", 38, 1, 0, 0, 0)
            privileges.forbid(truncates=False)
            os.close(os.open(path, os.O_RDONLY))
            tries = [lambda: os.open(path, os.O_RDONLY | os.O_TRUNC), lambda: os.truncate(path, 0)]
            if number[0] is not None:
                tries += [
                    lambda: _raw(libc, 2, path, os.O_RDWR | os.O_TRUNC),
                    lambda: _raw(libc, 85, path, 0o600),
                ]
            for attempt in tries:
                try:
                    attempt()
                except PermissionError:
                    continue
                os._exit(2)
            held = 0
        finally:
            os._exit(held)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (tmp_path / "kept").read_text() == "kept"


def _raw(libc, *words):
    if libc.syscall(*words) == -1:
        raise OSError(ctypes.get_errno(), "refused")


CRASH = """
import os, sys, threading, time
source, here, folder, isolation, user = sys.argv[1:]
if user != "root":
    os.setgid(int(user)); os.setuid(int(user))
sys.path[:0] = [source]
from retune.evaluation.sandbox import runner
running = threading.Thread(target=runner.run, args=["import time; time.sleep(9)", runner.Limits(seconds=2.5), isolation])
running.start()
time.sleep(1.5)
found = []
for entry in os.listdir("/proc"):
    try:
        line = open(f"/proc/{entry}/status").read()
        if entry.isdigit() and b"retune.evaluation.sandbox.child" in open(f"/proc/{entry}/cmdline", "rb").read() and "Seccomp:\t2" in line:
            found.append(os.stat(f"/proc/{entry}/status").st_uid)
    except OSError: continue
running.join()
print(found)
"""


@pytest.mark.parametrize("isolation", ["namespaces", "filters"])
def test_a_crash_leaves_no_core(isolation, shown):
    """RLIMIT_CORE does not apply to a core pattern that is a pipe, so the process is not dumpable: root owns its files in /proc."""
    user = "65534" if os.getuid() == 0 else "root"
    done = as_user(CRASH, user, isolation, shown, shown)
    assert done.stdout.strip() == "[0]", done


def as_user(scene, user, isolation, folder, place, seconds=100):
    """Run a script with the arguments in `SCENE`, with the first Python that this user may execute."""
    pythons = [sys._base_executable] if user == "root" else [sys._base_executable, "/usr/bin/python3"]
    for python in pythons:  # the first may lie in a folder of root's
        command = [python, "-c", scene, str(SOURCE), str(folder), str(place), isolation, user]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, cwd="/")
        if done.returncode == 0:
            return done
    if any(word in done.stderr for word in ("could not be set up", "No module named")):
        pytest.skip(f"no {isolation} for this user, or no Python: {done.stderr[-200:]}")
    raise AssertionError(done.stderr)
