"""Builds the images with `make images` on a base of our own, and runs them as the pods of a restricted namespace.

The base is Debian by debootstrap, cut down to what a slim image holds, since no registry need be reachable. It and all
layers stay in a folder of the user's cache (`rm -r` it to begin anew), so that a second run builds only what changed.
Builds see this machine's pip configuration, and the local folders and certificates that it names, read-only.
"""

import ast
import configparser
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.conftest import ROOT

TOOLS = ("debootstrap", "buildah", "podman", "runc")
TAG, REVISION = "test", "tested"
_DEBIAN = "bookworm"  # as the Dockerfiles' own base
_INCLUDE = "python3,python3-venv,ca-certificates"
_LEFT_OUT = (
    "dev",
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/log",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
)
# Where root may not raise limits, and cgroups are in hybrid mode, the defaults of podman and buildah fail.
_CONTAINERS = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
"""
_STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{graph}"
runroot = "{run}"
"""
RESTRICTED = [
    "--read-only", "--tmpfs", "/tmp", "--user", "10001:10001", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
    "--memory", "2g", "--pids-limit", "512",
]  # fmt: skip


def missing():
    """Return why the images cannot be built here, as a sentence; empty if they can."""
    if os.geteuid() != 0:
        return "building and running images needs root"
    lacking = [tool for tool in (*TOOLS, "make") if shutil.which(tool) is None]
    if lacking:
        return f"{', '.join(lacking)} missing: apt-get install --no-install-recommends {' '.join(lacking)}"
    return ""


@dataclass(frozen=True)
class Containers:
    """The container tools with a storage of their own below `folder`."""

    folder: Path

    @classmethod
    def in_cache(cls):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retune" / "images"
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        (cache / "containers.conf").write_text(_CONTAINERS)
        # What runs is kept where a restart of the machine clears it; podman bears 50 characters there.
        run = f"/run/retune-images-{hashlib.sha256(str(cache).encode()).hexdigest()[:8]}"
        (cache / "storage.conf").write_text(_STORAGE.format(graph=cache / "storage", run=run))
        return cls(cache)

    @property
    def env(self):
        return {
            **os.environ,
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
        }

    def make(self, name, repository=ROOT):
        """Run `make images` for one image and return what it printed. One at a time: they share layers."""
        with self._alone():
            self._call("buildah", "rm", "--all")  # left by a build that was killed
            base = self._base()
            words = [
                "make",
                "images",
                "BUILDER=buildah",
                f"IMAGES={name}",
                f"BASE_IMAGE={base}",
                f"TAG={TAG}",
                f"REVISION={REVISION}",
            ]
            mounts = " ".join(f"--volume {mount}" for mount in self._pip())
            done = subprocess.run(
                [*words, f"BUILD_ARGS=--network host {mounts}"],
                cwd=repository, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
        assert done.returncode == 0, f"make images IMAGES={name} failed:\n{done.stdout[-6000:]}"
        return done.stdout

    def inspect(self, name):
        return json.loads(self._call("podman", "image", "inspect", image(name)))[0]

    def history(self, name):
        """The steps that an image was made by, the newest first, with `size` in bytes."""
        return json.loads(self._call("podman", "history", "--format", "json", image(name)))

    def run(self, name, *words, options=(), timeout=300):
        """Run a restricted container without a network to its end; give the program with `--entrypoint` in options."""
        return subprocess.run(
            ["podman", "run", "--rm", "--network", "none", *RESTRICTED, *options, image(name), *words],
            env=self.env, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip

    def shell(self, name, script):
        """Run a script in a restricted container and return what it printed."""
        done = self.run(name, "-c", script, options=["--entrypoint", "sh"])
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextlib.contextmanager
    def started(self, name, *words):
        """Run a restricted container on this machine's network in the background; yields its id."""
        container = self._call(
            "podman", "run", "--detach", "--network", "host", *RESTRICTED, image(name), *words
        ).strip()
        try:
            yield container
        finally:
            self._call("podman", "rm", "--force", "--time", "2", container)

    def logs(self, container):
        done = subprocess.run(["podman", "logs", container], env=self.env, capture_output=True, text=True)
        return done.stdout + done.stderr

    def _call(self, *words, **more):
        done = subprocess.run(words, env=self.env, capture_output=True, text=True, **more)
        assert done.returncode == 0, f"{' '.join(map(str, words))}: {done.stderr[-3000:]}"
        return done.stdout

    @contextlib.contextmanager
    def _alone(self):
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _base(self):
        """Build the base image if it is missing; return its name, which depends on how it is built."""
        recipe = hashlib.sha256(repr((_DEBIAN, _INCLUDE, _LEFT_OUT)).encode()).hexdigest()[:12]
        name = f"localhost/retune-test-base:{recipe}"
        if self._call("podman", "images", "--quiet", name):
            return name
        root = self.folder / "rootfs"
        shutil.rmtree(root, ignore_errors=True)
        self._call("debootstrap", "--variant=minbase", f"--include={_INCLUDE}", _DEBIAN, root)
        tar = ["tar", "-C", root, *(f"--exclude=./{path}" for path in _LEFT_OUT), "-c", "."]
        with subprocess.Popen(tar, stdout=subprocess.PIPE) as packing:
            self._call("podman", "import", "--quiet", "-", name, stdin=packing.stdout)
        assert packing.returncode == 0, "tar could not pack the base"
        shutil.rmtree(root)
        return name

    def _pip(self):
        """Write this machine's pip configuration as one file; yield mounts for it and for the files that it names."""
        printed = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
        ).stdout
        found = configparser.RawConfigParser()
        for line in sorted(printed.splitlines(), key=lambda line: line.startswith(":env:")):  # env overrides
            key, _, value = line.partition("=")
            section, _, option = key.replace(":env:", "global").rpartition(".")
            if not found.has_section(section):
                found.add_section(section)
            found.set(section, option, " ".join(ast.literal_eval(value).split()))
        file = self.folder / "pip.conf"
        with file.open("w") as out:
            found.write(out)
        yield f"{file}:/etc/pip.conf:ro"
        words = {
            word
            for section in found.sections()
            for _, value in found.items(section)
            for word in value.split()
        }
        for path in sorted({path for word in words for path in _local(word)}):
            yield f"{path}:{path}:ro"


def _local(word):
    """Return the local folder or file that a word of pip's configuration names, if any."""
    address = urlsplit(word)
    path = Path(unquote(address.path))
    if address.scheme == "file":
        path = path.parent  # an index links to files that lie beside it
    elif address.scheme:
        return
    if path.is_absolute() and path.exists() and path != Path("/"):
        yield path


def image(name):
    return f"localhost/retune-{name}:{TAG}"


def main(words):
    """Build images (`build NAME...`), or run a command with the storage that holds them (`run COMMAND...`)."""
    if words[:1] not in (["build"], ["run"]) or len(words) < 2:
        sys.exit("python -m tests.images.containers build NAME... | run COMMAND...")
    if reason := missing():
        sys.exit(reason)
    containers = Containers.in_cache()
    if words[0] == "run":
        os.execvpe(words[1], words[1:], containers.env)
    for name in words[1:]:
        begun = time.monotonic()
        containers.make(name)
        print(f"{image(name)} built in {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
