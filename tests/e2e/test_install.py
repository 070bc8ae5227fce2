"""docs/install.md as a new user follows it: from the namespace to a search by Katib, and its removal.

What pushes images and submits to Kubeflow Pipelines is left out: this cluster has no registry, and test_schedule.py submits. So is
the way without Helm, of which tests/k8s tests what it renders.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from retune import study
from tests.conftest import ROOT
from tests.e2e.cluster import until
from tests.e2e.install_page import block, filled, run
from tests.e2e.objects import KEYS, STUDY, TRIALS, overrides

pytestmark = pytest.mark.cluster


@pytest.fixture
def shell(namespace, images, tmp_path):
    """A namespace with a storage, as the user's cluster has one, and a shell with the page's names filled in.

    The storage is called by its Service's address, which is the same for pods and for the user's own machine.
    """
    place = namespace("page", empty=True)
    place.kubectl("create", "namespace", place.namespace, namespaced=False)
    place.store()
    endpoint = f"http://{place.get('service', 'seaweedfs')['spec']['clusterIP']}:9000"
    registry, tag = images
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, program in place.programs.items():
        (programs / name).symlink_to(program)
    (programs / "retune").symlink_to(Path(sys.executable).with_name("retune"))
    (tmp_path / "charts").symlink_to(ROOT / "charts")
    env = {**os.environ, **KEYS, "AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1"}
    env["PATH"] = f"{programs}:{os.environ['PATH']}"
    names = {
        "kubectl create namespace team-a\n": "", "team-a": place.namespace, "registry.example/ml": registry,
        "s3://my-bucket/retune": "s3://retune",
        "--timeout 30m": f"--timeout 30m --set-string images.tag={tag} --set storage.endpoint={endpoint},mlflow.workers=1 "
        f"--set networkPolicy.storage.namespace={place.namespace}",
    }  # fmt: skip

    def shell(*beginnings, **more):
        return run("".join(filled(block(b), names | more, KEYS) for b in beginnings), tmp_path, env)

    place.shell = shell
    place.folder = tmp_path
    return place


def test_a_new_user_gets_from_the_page_to_a_search_and_back(shell, images):
    shell.shell("kubectl create namespace")
    (label,) = [
        v
        for k, v in shell.get("namespace", shell.namespace)["metadata"]["labels"].items()
        if k.startswith("katib")
    ]
    assert label == "enabled"
    printed = shell.shell("kubectl create secret generic retune-s3")
    assert "retune submit study.yaml" in printed
    assert "Katib has our algorithms" in printed

    more = [
        "search.algorithm=lhs",
        "search.trials=2",
        "cluster.secrets=[retune-storage,retune-s3,retune-mlflow-login]",
    ]
    given = study.load(STUDY, overrides(shell.namespace, *images, "page", *more))
    (shell.folder / "study.yaml").write_text(
        yaml.safe_dump(given.model_dump(mode="json", exclude_unset=True))
    )
    shell.shell("for key in USERNAME", "retune mix study.yaml")
    (experiment,) = shell.get("experiments")
    name = experiment["metadata"]["name"]
    (pod, *_) = until(lambda: shell.pods(TRIALS), 600, "a trial")
    printed = shell.shell("kubectl describe experiment NAME", NAME=name, POD=pod)
    assert "Kind:         Experiment" in printed
    assert "Kind:         Suggestion" in printed

    until(lambda: shell.trials(name, "Succeeded") == 2, 900, "the end of two trials")
    (shell.folder / "my-values.yaml").write_text(shell.helm("get", "values", "retune", "--output", "yaml"))
    shell.shell("helm upgrade retune")
    assert json.loads(shell.helm("status", "retune", "--output", "json"))["version"] == 2
    shell.kubectl("delete", "experiment", name)
    shell.shell("helm uninstall retune")
    left = shell.get(
        "deployments,statefulsets,persistentvolumeclaims,jobs", selector="app.kubernetes.io/instance=retune"
    )
    assert [found for found in left if "deletionTimestamp" not in found["metadata"]] == []
