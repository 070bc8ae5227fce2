"""The sandbox's properties, one test each, under both kinds of isolation."""

import functools
import http.server
import os
import threading
import time
from pathlib import Path

import pytest

from retune.evaluation.sandbox import runner as sandbox
from retune.evaluation.sandbox.runner import Limits


@functools.cache
def works(isolation):
    try:
        return sandbox.run("pass", isolation=isolation).passed
    except OSError:
        return False


@pytest.fixture(params=["namespaces", "filters"])
def run(request):
    if not works(request.param):
        pytest.skip(f"this machine does not grant {request.param}")
    return functools.partial(sandbox.run, isolation=request.param)


def strays():
    """Return the command lines of processes that a sandbox left behind; killed ones get a moment to disappear."""
    end = time.monotonic() + 5
    while (found := alive()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def alive():
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.append((entry / "cmdline").read_bytes())
            except OSError:
                continue
    return [line for line in found if b"retune.evaluation.sandbox.child" in line]


def test_a_right_program_passes(run):
    assert run("assert sum(range(10)) == 45").passed


def test_the_standard_library_is_there(run):
    assert run(
        "import re, math, heapq, hashlib, decimal, itertools, collections, typing, random, threading, json, copy"
    ).passed


def test_a_wrong_program_fails_and_says_how(run):
    outcome = run("assert 1 == 2, 'not so'")
    assert (outcome.passed, outcome.reason) == (False, "AssertionError: not so")


def test_a_program_may_use_its_scratch_folder_in_memory(run):
    outcome = run("open('a', 'w').write('x'); assert open('a').read() == 'x'")
    # By filters nothing is written
    assert outcome.passed == (run.keywords["isolation"] == "namespaces"), outcome


def test_a_program_that_is_no_python(run):
    assert "SyntaxError" in run("def f(:").reason
    assert not run("\0").passed


@pytest.mark.parametrize(
    "program",
    [
        "import os; os._exit(0)",
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "quit()",
        "import os, signal; os.abort()",
        "import ctypes; ctypes.string_at(0)",
    ],
)
def test_exiting_early_is_not_passing(run, program):
    assert not run(program).passed


def test_printing_and_writing_to_every_descriptor_is_not_passing(run):
    program = """
import os, sys
print("passed"); sys.stdout.flush()
for number in range(64):
    for text in (b"passed\\n", b"passed:\\n", b"passed:" + b"0" * 32 + b"\\n"):
        try: os.write(number, text)
        except OSError: pass
os._exit(0)
"""
    assert not run(program).passed


def test_a_forked_copy_has_no_say(run):
    assert not run("import os\nif os.fork():\n    os.wait(); os._exit(1)").passed


def test_an_endless_loop_ends_in_time(run):
    begin = time.monotonic()
    outcome = run("while True: pass", Limits(seconds=1))
    assert (outcome.passed, outcome.reason) == (False, "longer than 1 s")
    assert time.monotonic() - begin < 4


def test_sleeping_ends_in_time(run):
    assert not run(
        "import time\nwhile True:\n    try: time.sleep(100)\n    except BaseException: pass",
        Limits(seconds=1),
    ).passed


def test_a_fork_bomb_is_held_and_cleared_away(run):
    program = """
import os, time
while True:
    try: os.fork()
    except OSError: time.sleep(0.01)
"""
    assert not run(program, Limits(seconds=1)).passed
    assert strays() == []


def test_a_child_left_behind_is_killed(run):
    program = """
import os, time
if os.fork() == 0:
    for leave in (os.setsid, os.setpgrp):
        try: leave()
        except OSError: pass
    time.sleep(60)
"""
    run(program)
    assert strays() == []


@pytest.mark.slow
def test_memory_is_limited(run):
    assert run("try:\n    bytearray(2 << 30)\nexcept MemoryError: pass\nelse: raise AssertionError").passed
    assert not run("x = []\nwhile True: x.append(bytearray(1 << 24))").passed


def test_file_size_is_limited(run):
    program = "f = open('big', 'wb')\nfor _ in range(64): f.write(bytes(1 << 20)); f.flush()"
    assert "Error" in run(program).reason


def test_open_files_are_limited(run):
    assert "Too many open files" in run("x = [open('/dev/null') for _ in range(100)]").reason


def test_nothing_outside_is_written(run, tmp_path):
    tmp_path.chmod(0o777)
    kept = tmp_path / "kept"
    kept.write_text("kept")
    kept.chmod(0o666)
    places = [
        str(tmp_path / "new"),
        str(kept),
        "/tmp/retune-was-here",
        "/usr/retune-was-here",
        os.path.expanduser("~/retune-was-here"),
    ]
    program = f"""
import os, pathlib
for place in {places!r}:
    for attempt in (lambda: open(place, "w").write("hacked"), lambda: os.symlink("/etc/passwd", place), lambda: os.unlink(place), lambda: os.truncate(place, 0)):
        try: attempt()
        except OSError: continue
"""
    assert run(program).passed
    assert kept.read_text() == "kept"
    assert not any(os.path.lexists(place) for place in places if place != str(kept))


def test_no_file_outside_python_is_read(run, tmp_path):
    secret = tmp_path / "credentials"
    secret.write_text("secret")
    secret.chmod(0o644)
    for place in (
        secret,
        "/etc/passwd",
        f"/proc/{os.getpid()}/environ",
        "/proc/self/environ",
        "/proc/1/cmdline",
    ):
        outcome = run(f"open({str(place)!r}, 'rb').read(1)")
        assert not outcome.passed, place
        assert "Error" in outcome.reason


def test_the_environment_is_empty(run, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert run("import os; assert not os.environ, dict(os.environ)").passed


def test_no_descriptor_of_ours_is_inherited(run, tmp_path):
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        run("import os\nfor n in range(3, 64):\n    try: os.write(n, b'hacked')\n    except OSError: pass")
    assert (tmp_path / "open").read_text() == ""


def test_no_socket_reaches_a_server(run):
    calls = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            calls.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    program = (
        f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{server.server_port}/', timeout=1)"
    )
    try:
        exec(program)  # it works out here
        assert calls == ["/"]
        assert not run(program).passed
        assert calls == ["/"]
    finally:
        server.shutdown()
        server.server_close()
    for family in ("AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_PACKET"):
        assert not run(
            f"import socket; socket.socket(socket.{family}, socket.SOCK_RAW if '{family}' == 'AF_NETLINK' else socket.SOCK_DGRAM)"
        ).passed


def test_the_parent_cannot_be_killed(run):
    program = f"""
import os, signal
for number in (os.getppid(), {os.getpid()}, 1, 0, -1, -os.getpgrp()):
    for kind in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP):
        try: os.kill(number, kind)
        except OSError: pass
"""
    assert run(program).passed


def test_no_right_can_be_won_back(run):
    program = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x10000000) == -1
assert libc.mount(b"tmpfs", b"/", b"tmpfs", 0, None) == -1
assert libc.ptrace(16, os.getppid(), 0, 0) == -1
assert libc.prctl(22, 0, 0, 0, 0) == -1
for change in (os.setuid, os.setgid):
    try: change(0)
    except OSError: continue
    assert os.getuid() != 0
"""
    assert run(program).passed


def test_scratch_folders_are_gone_afterwards(run, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tmp_path.chmod(0o755)
    run("import os; os.makedirs('a/b'); open('a/b/c', 'w').write('x'); os.chmod('a', 0)")
    assert list(tmp_path.iterdir()) == []


def test_without_isolation_nothing_is_run(monkeypatch):
    monkeypatch.setattr(sandbox, "available", lambda: None)
    monkeypatch.setattr(sandbox.subprocess, "Popen", lambda *a, **k: pytest.fail("a program was started"))
    with pytest.raises(OSError, match="only in a sandbox"):
        sandbox.run("pass")


def test_this_machine_has_one():
    if not (works("namespaces") or works("filters")):
        pytest.skip("this machine grants neither namespaces nor Landlock")
    assert sandbox.missing() is None
