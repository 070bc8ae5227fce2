"""One installation on the cluster of $KUBECONFIG, for every test here; all of it is removed again. See docs/cluster-tests.md."""

import os
import secrets
import shutil
import subprocess

import pytest

import retune
from tests.charts.helm import _install
from tests.conftest import ROOT
from tests.e2e.cluster import Cluster
from tests.e2e.objects import values
from tests.k8s.kubectl import kubectl  # noqa: F401, a fixture

IMAGES = (
    os.environ.get("RETUNE_E2E_REGISTRY", "localhost"),
    os.environ.get("RETUNE_E2E_TAG", retune.__version__),
)
LAST_RELEASE = "dc50625"  # where there is no tag yet
ORDER = [
    "test_kustomize",
    "test_install",
    "test_katib",
    "test_upgrade",
    "test_network",
    "test_studies",
    "test_trainjob",
    "test_schedule",
    "test_teams",
    "test_uninstall",
]


def pytest_collection_modifyitems(items):
    """Upgrade first and uninstall last, since the tests share one release."""
    for item in items:
        if item.get_closest_marker("cluster"):
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(3600))
            if "KUBECONFIG" not in os.environ:
                reason = "a cluster with Katib is needed: set KUBECONFIG, see docs/cluster-tests.md"
                item.add_marker(pytest.mark.skip(reason=reason))
            elif item.get_closest_marker("own") and not os.environ.get("RETUNE_E2E_OWN"):
                reason = "it changes more than its namespaces: set RETUNE_E2E_OWN=1 where the cluster is the tests' own"
                item.add_marker(pytest.mark.skip(reason=reason))
    place = {name: number for number, name in enumerate(ORDER)}
    if all(item.path.parent.name == "e2e" for item in items):
        items.sort(key=lambda item: place.get(item.path.stem, -1))


@pytest.fixture(scope="session")
def images():
    """Registry and tag of the images."""
    return IMAGES


@pytest.fixture(scope="session")
def namespace(kubectl):  # noqa: F811
    """Return a function that makes a namespace; all are removed at the end."""
    made = []

    def make(name, empty=False):
        helm = shutil.which("helm") or _install()
        made.append(Cluster(kubectl, helm, f"retune-e2e-{name}-{secrets.token_hex(3)}"))
        if not empty:
            made[-1].create()
        return made[-1]

    yield make
    for cluster in made:
        cluster.end_searches()
    for cluster in made:
        cluster.remove()


@pytest.fixture(scope="session")
def last_chart(tmp_path_factory):
    """The folder of the chart that the last release had; None where git knows of none."""
    words = ["git", "describe", "--tags", "--abbrev=0", "--match", "v*"]
    tag = subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout.strip() or LAST_RELEASE
    folder = tmp_path_factory.mktemp("release")
    packed = subprocess.run(["git", "archive", tag, "charts/retune"], cwd=ROOT, capture_output=True)
    if packed.returncode:
        return None
    subprocess.run(["tar", "-x", "-C", folder], input=packed.stdout, check=True)
    return folder / "charts/retune"


@pytest.fixture(scope="session")
def place(namespace):
    """A namespace with storage, and the demo's inputs in it."""
    made = namespace("a")
    made.store()
    return made


@pytest.fixture(scope="session")
def released(place, images, last_chart):
    """The namespace, with the chart of the last release."""
    chart = str(last_chart or ROOT / "charts/retune")
    place.helm("install", "retune", chart, "--wait", "--timeout", "20m", *values(place.namespace, *images))
    return place


@pytest.fixture(scope="session")
def team(request, place, images):
    """The namespace, with this chart: upgraded to where a test of upgrades runs before, else installed."""
    if any("released" in item.fixturenames for item in request.session.items):
        request.getfixturevalue("released")
    words = ["upgrade", "--install", "retune", "charts/retune", "--wait", "--timeout", "20m"]
    place.helm(*words, *values(place.namespace, *images))
    return place
