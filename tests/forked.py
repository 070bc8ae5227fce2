"""`python -m retune ...` for tests, forked from an interpreter that has imported the large libraries already.

Most tests that start the program are about what it does, and wait seconds each time until torch, transformers, PEFT and
MLflow are imported, in the run's process and again in each of its workers. `Popen` stands in for `subprocess.Popen`: a command
that starts a module of retune (``python -m retune ...``) is forked by one server, which has imported them once; so are the
processes that this one starts. The result is a real process: its pid, signals, pipes, session and exit code are
like those of any other. It differs in two things: its parent is the server (``os.getppid`` tells it the one that asked), and
modules are there that it did not import itself. Tests where that matters carry the mark ``fresh`` and get new interpreters, as does
every command with ``RETUNE_TESTS_FRESH`` in its environment.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

ADDRESS = "RETUNE_TESTS_FORKED"
"""Environment variable with the server's socket, for the processes that a forked one starts."""
PRELOADED = [
    "torch", "transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto", "peft", "mlflow",
    "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store", "matplotlib.figure", "pandas",
    "scipy.optimize", "grpc", "retune.study", "retune.records", "retune.trials.side_by_side", "retune.suggestion.service",
]  # fmt: skip
WORTH = {"retune.engines.worker", "retune.launch.run", "run", "trial", "bench", "ci", "rollout"}
"""What the server is started for, which takes it as long as two of them; lesser commands use it where it runs."""
STARTED_WITH = ("PYTHON", "LANG", "LC_", "HF_", "TRANSFORMERS_", "CUDA_", "TORCH_", "MPL", "TZ")
"""Variables that an interpreter or a library reads when it starts: where they differ, a new one is needed."""
# As retune.models.quiet sets them
QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
# lm_eval sets the HF one
HANDLED = {"PYTHONPATH", "PYTHONWARNINGS", "PYTHONUNBUFFERED", "HF_XET_HIGH_PERFORMANCE", *QUIET}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
LIMITS = [resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_DATA]

_real = subprocess.Popen
_limits = [resource.getrlimit(limit) for limit in LIMITS]


def _start_settings(env: dict[str, str]) -> dict[str, str]:
    return {name: env[name] for name in env if name.startswith(STARTED_WITH) and name not in HANDLED}


class Popen(_real):
    """`subprocess.Popen`, except that the server forks commands that start a module of retune."""

    on = True
    tied = False
    settings = _start_settings(dict(os.environ))
    _server: _real | None = None
    _answers: socket.socket | None = None
    _folder: tempfile.TemporaryDirectory | None = None

    def _execute_child(
        self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, restore_signals, gid, gids, uid, umask,
        start_new_session, process_group,
    ):  # fmt: skip
        plain = (
            not (executable or preexec_fn or pass_fds or shell or gid or gids or uid)
            and umask == process_group == -1
        )
        variables = dict(os.environ if env is None else env)
        if not (plain and close_fds and self._can_be_forked(args, cwd, variables)):
            return super()._execute_child(
                args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
                p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, restore_signals, gid, gids, uid, umask,
                start_new_session, process_group,
            )  # fmt: skip
        variables[ADDRESS] = self._address()
        asked = {
            "args": [os.fspath(arg) for arg in args[1:]], "env": variables, "cwd": os.fspath(cwd or os.getcwd()),
            "session": start_new_session, "parent": os.getpid(), "tied": self.tied,
        }  # fmt: skip
        self._answers = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._answers.connect(variables[ADDRESS])
        content = json.dumps(asked).encode()
        files = [own if given == -1 else given for own, given in enumerate((p2cread, c2pwrite, errwrite))]
        socket.send_fds(self._answers, [len(content).to_bytes(8, "big")], files)
        self._answers.sendall(content)
        self.pid = int(_line(self._answers))
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)
        return None

    def _can_be_forked(self, args, cwd, env: dict[str, str]) -> bool:
        if not type(self).on or isinstance(args, str | bytes | os.PathLike):
            return False
        words = [os.fspath(arg) for arg in args]
        return (
            words[:2] == [sys.executable, "-m"]
            and words[2].startswith("retune")
            and (type(self)._server is not None or ADDRESS in os.environ or not WORTH.isdisjoint(words[2:4]))
            and "RETUNE_TESTS_FRESH" not in env
            and _start_settings(env) == self.settings
            and all(env.get(name, value) == value for name, value in ONE_THREAD.items())
            and env.get("PYTHONWARNINGS", "ignore") == "ignore"
            and [resource.getrlimit(limit) for limit in LIMITS] == _limits
            and (cwd is None or os.path.isdir(cwd))
        )

    @classmethod
    def _address(cls) -> str:
        if ADDRESS in os.environ:
            return os.environ[ADDRESS]
        if cls._folder is None:
            cls._folder = tempfile.TemporaryDirectory(prefix="forked-")
        address = f"{cls._folder.name}/socket"
        if cls._server is None:
            env = (
                {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
                | ONE_THREAD
                | QUIET
            )
            cls._server = _real(
                [sys.executable, __file__, address], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
            )
            cls._server.stdout.readline()
        return address

    @classmethod
    def program(cls, folder: Path) -> dict[str, str]:
        """Write an executable `retune` for shells, which has its command forked; return the environment that it needs."""
        path = folder / "retune"
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/bin/sh\nexec {sys.executable} -S {__file__} retune "$@"\n')
        path.chmod(0o755)
        return {ADDRESS: cls._address()} if cls.on else {}

    @classmethod
    def end(cls) -> None:
        """End the server, if one was started."""
        if cls._server is not None:
            cls._server.terminate()
            cls._server.wait()
            cls._server.stdout.close()
            cls._server = None
        if cls._folder is not None:
            cls._folder.cleanup()
            cls._folder = None

    def _internal_poll(self, _deadstate=None):
        if self._answers is None:
            return super()._internal_poll(_deadstate)
        return super()._internal_poll(_deadstate, _waitpid=lambda pid, flags: self._try_wait(flags))

    def _try_wait(self, wait_flags):
        if self._answers is None:
            return super()._try_wait(wait_flags)
        self._answers.settimeout(0 if wait_flags & os.WNOHANG else None)
        try:
            status = _line(self._answers)
        except BlockingIOError:
            return 0, 0
        self._answers.close()
        return self.pid, int(status or signal.SIGKILL)


def _line(connection: socket.socket) -> str:
    """Return the server's next line; empty if it has ended."""
    said = b""
    while not said.endswith(b"\n"):
        if not (byte := connection.recv(1)):
            break
        said += byte
    return said.decode().strip()


def install() -> None:
    """Replace `subprocess.Popen` by `Popen` in this process."""
    subprocess.Popen = Popen


def _stand_in() -> None:
    """Act as the program `retune`: have it forked, pass signals on to it, and end with its exit code."""
    command = [sys.executable, "-m", *sys.argv[1:]]
    if ADDRESS not in os.environ:
        os.execv(sys.executable, command)
    Popen.tied = True
    process = Popen(command)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: process.send_signal(number))
    code = process.wait()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def _request(connection: socket.socket) -> tuple[bytes | None, list[int]]:
    """Return the content of a request and its three files; no content if the other end closes before it is whole."""
    files: list[int] = []
    with contextlib.suppress(OSError):
        size, files, _, _ = socket.recv_fds(connection, 8, 3)
        length, content = int.from_bytes(size, "big"), b""
        while len(content) < length and (part := connection.recv(length - len(content))):
            content += part
        if content and len(content) == length:
            return content, files
    for file in files:
        os.close(file)
    return None, []


def _status(pid: int) -> int:
    """Return the status of a child that has ended, as `os.waitpid` does, and leave the child to be waited for."""
    end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return end.si_status << 8 if end.si_code == os.CLD_EXITED else end.si_status


def _serve(address: str) -> dict:
    """Fork at each request, and return in the child, with the request."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(address)
    listening.listen(64)
    parent = os.getppid()
    ready = selectors.DefaultSelector()
    ready.register(listening, selectors.EVENT_READ)
    running: dict[int, tuple[int, socket.socket]] = {}  # by the descriptor that tells of the end of a process
    ended: dict[int, int] = {}  # by the descriptor on which whoever started it hears of that
    print("ready", flush=True)
    while os.getppid() == parent:
        for key, _ in sorted(ready.select(timeout=1), key=lambda one: one[0].data is None):
            if key.data is not None:  # the program `retune` that it stands for is gone
                ready.unregister(key.fileobj)
                signal.pidfd_send_signal(key.data, signal.SIGKILL)
                continue
            if key.fd in ended:
                ready.unregister(key.fileobj)
                os.waitpid(ended.pop(key.fd), 0)
                key.fileobj.close()
                continue
            if key.fileobj is not listening:
                ready.unregister(key.fd)
                pid, connection = running.pop(key.fd)
                if connection in ready.get_map():
                    ready.unregister(connection)
                os.close(key.fd)
                with contextlib.suppress(OSError):  # nobody waits for it any more
                    connection.sendall(f"{_status(pid)}\n".encode())
                # As of any child, its pid is there until whoever started it has asked for the status (and closes this)
                ended[connection.fileno()] = pid
                ready.register(connection, selectors.EVENT_READ)
                continue
            connection, _ = listening.accept()
            content, files = _request(connection)
            if content is None:  # whoever asked was killed before it had said what for
                connection.close()
                continue
            pid = os.fork()
            if pid == 0:
                ready.close()
                listening.close()
                connection.close()
                for other, (_, theirs) in running.items():
                    os.close(other)
                    theirs.close()
                for theirs in ended:
                    os.close(theirs)
                for number, file in enumerate(files):
                    os.dup2(file, number)
                    os.close(file)
                return json.loads(content)
            for file in files:
                os.close(file)
            with contextlib.suppress(OSError):  # killed since
                connection.sendall(f"{pid}\n".encode())
            end = os.pidfd_open(pid)
            running[end] = pid, connection
            ready.register(end, selectors.EVENT_READ)
            if json.loads(content)["tied"]:
                ready.register(connection, selectors.EVENT_READ, end)
    sys.exit()


def _become(asked: dict, path: list[str]) -> None:
    """Make this process equal to a new interpreter started in this way."""
    if asked["session"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(asked["env"])
    Popen.settings = _start_settings(asked["env"])
    os.chdir(asked["cwd"])
    tempfile.tempdir = None  # TMPDIR may be another
    parent, getppid = asked["parent"], os.getppid
    os.getppid = lambda: parent if _alive(parent) else 1
    # What it forks itself (the workers of a run) has it as a parent indeed
    os.register_at_fork(after_in_child=lambda: setattr(os, "getppid", getppid))
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        by_line = mode == "w" and (number == 2 or os.isatty(number))
        stream = open(  # noqa: SIM115
            number, mode, 1 if by_line else -1, "utf-8", errors="backslashreplace" if number == 2 else None, closefd=False
        )  # fmt: skip
        if mode == "w" and os.environ.get("PYTHONUNBUFFERED"):
            stream.reconfigure(write_through=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    if os.environ.get("PYTHONWARNINGS") == "ignore":
        warnings.simplefilter("ignore")
    extra = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.path[:] = [asked["cwd"], *extra, *path]
    sys.argv = asked["args"][1:]
    import numpy as np

    np.random.seed()
    install()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def main() -> None:
    """Import the large libraries and serve; each forked process continues below."""
    import importlib

    path = sys.path[1:]
    for module in PRELOADED:
        importlib.import_module(module)
    from retune.models import load_base
    from retune.study import load

    # What transformers prepares when it reads its first base takes as long as reading three
    load_base(load(Path(__file__).parents[1] / "examples/01-first-study/study.yaml").model)
    os.environ.pop(ADDRESS, None)
    threads = {task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()}
    threads.discard("jemalloc_bg_thd")  # pyarrow's; jemalloc starts it anew after a fork
    assert len(threads) == 1, f"a process with threads cannot be forked safely: {threads}"
    gc.collect()
    gc.freeze()
    asked = _serve(sys.argv[1])
    sys.modules["tests.forked"] = sys.modules.pop("__main__")
    _become(asked, path)
    runpy.run_module(asked["args"][1], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if sys.argv[1] == "retune":
        _stand_in()
    else:
        main()
