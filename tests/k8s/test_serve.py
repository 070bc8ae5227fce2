"""Serving the champion: the manifests, and `retune rollout` against an API that keeps objects as Kubernetes does."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from retune.errors import InputError, RetuneError
from retune.launch.rollout import rollout
from retune.registry import promotion
from tests.charts.helm import find
from tests.charts.pod_security import violations
from tests.conftest import ROOT
from tests.kubernetes_schemas import VERSIONS, problems
from tests.registry.versions import register_version
from tests.test_docs import unknown

pytest_plugins = ["tests.k8s.kubectl", "tests.mlflow_server"]
SERVE = ROOT / "k8s/serve"
KINDS = {"vllm": ("Deployment", "apps/v1", "deployments"), "kserve": ("InferenceService", "serving.kserve.io/v1beta1", "inferenceservices")}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def built(request, kustomize):
    return request.param, kustomize(SERVE / request.param)


def pod_of(kind, document):
    return document["spec"]["template"]["spec"] if kind == "vllm" else document["spec"]["predictor"]


def test_the_rollout_may_read_and_change_what_it_names_and_nothing_else(built):
    kind, documents = built
    name, version, plural = KINDS[kind]
    served = find(documents, name, "support-bot")
    assert served["apiVersion"] == version
    (rule,) = find(documents, "Role", "retune-rollout")["rules"]
    assert rule == {
        "apiGroups": [version.split("/")[0]],
        "resources": [plural],
        "resourceNames": ["support-bot"],
        "verbs": ["get", "update"],
    }
    pod = find(documents, "CronJob", "retune-rollout")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert violations(pod) == []
    (container,) = pod["containers"]
    assert unknown(container["command"]) == []
    assert f"{name.lower()}/support-bot" in container["command"]
    assert container["image"] == "registry.example/ml/retune-train:0.1.0"


def test_the_variable_of_the_rollout_is_one_of_the_server(built):
    kind, documents = built
    pod = pod_of(kind, find(documents, KINDS[kind][0], "support-bot"))
    containers = [*pod.get("initContainers", []), *pod["containers"]]
    command = find(documents, "CronJob", "retune-rollout")["spec"]["jobTemplate"]["spec"]["template"]["spec"][
        "containers"
    ][0]["command"]
    (setting,) = [word.removeprefix("--set=") for word in command if word.startswith("--set=")]
    name, _, value = setting.partition("=")
    assert [entry for c in containers for entry in c["env"] if entry["name"] == name]
    assert "{version}" in value
    assert all("docker.io/vllm/" in c["image"] or "registry.example" in c["image"] for c in containers)
    assert (
        violations({**pod, "securityContext": pod.get("securityContext") or containers[0]["securityContext"]})
        == []
        or kind == "kserve"
    )
    mounts = {mount["mountPath"] for c in pod["containers"] for mount in c["volumeMounts"]}
    (modules,) = [word for word in pod["containers"][0]["args"] if word.startswith("--lora-modules=")]
    place = modules.split("=")[2]
    assert (
        place == "/mnt/models" if kind == "kserve" else any(place.startswith(f"{mount}/") for mount in mounts)
    )


def test_the_step_that_fetches_the_adapter_is_a_command_that_there_is(kustomize):
    pod = find(kustomize(SERVE / "vllm"), "Deployment", "support-bot")["spec"]["template"]["spec"]
    (_, _, script) = pod["initContainers"][0]["command"]
    subprocess.run(["sh", "-n", "-c", script], check=True)
    assert unknown(script.partition("exec ")[2].split()) == []


@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1]], ids=lambda version: "{}.{}".format(*version))
def test_kubernetes_takes_the_predictor_as_a_pod(kustomize, version):
    """KServe makes a pod of it; the field names of the service itself were checked against its CRD (v0.16)."""
    predictor = find(kustomize(SERVE / "kserve"), "InferenceService", "support-bot")["spec"]["predictor"]
    pod = {key: value for key, value in predictor.items() if key != "minReplicas"}
    assert (
        problems({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}, version) == []
    )


class Api:
    """Objects by path; replacing one requires its current resource version."""

    def __init__(self, folder):
        self.objects, self.changes = {}, 0
        api = self

        class Handler(BaseHTTPRequestHandler):
            def _send(self, status, content):
                text = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def do_GET(self):
                found = api.objects.get(self.path)
                self._send(200 if found else 404, found or {"message": "not found"})

            def do_PUT(self):
                given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if (
                    given["metadata"]["resourceVersion"]
                    != api.objects[self.path]["metadata"]["resourceVersion"]
                ):
                    return self._send(409, {"message": "the object has been modified"})
                given["metadata"]["resourceVersion"] = str(int(given["metadata"]["resourceVersion"]) + 1)
                api.objects[self.path] = given
                api.changes += 1
                return self._send(200, given)

            def log_message(self, *words):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{self._server.server_port}"
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(
            yaml.safe_dump({
                "apiVersion": "v1", "kind": "Config", "current-context": "here", "users": [{"name": "me", "user": {}}],
                "clusters": [{"name": "here", "cluster": {"server": url}}],
                "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "retune"}}],
            })
        )  # fmt: skip

    def put(self, document, plural):
        path = f"/apis/{document['apiVersion']}/namespaces/retune/{plural}/{document['metadata']['name']}"
        document["metadata"]["resourceVersion"] = "1"
        self.objects[path] = document
        return path

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def api(tmp_path, monkeypatch):
    found = Api(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(found.kubeconfig))
    yield found
    found.close()


@pytest.fixture
def versions(database, tmp_path):
    """Two registered versions of `support-bot`."""
    for name in ("one", "two"):
        register_version(database, tmp_path, name, "support-bot")
    return database


@pytest.mark.slow
def test_a_promotion_is_rolled_out_and_its_rollback_rolled_back(built, api, versions):
    kind, documents = built
    name, _, plural = KINDS[kind]
    path = api.put(json.loads(json.dumps(find(documents, name, "support-bot"))), plural)
    command = find(documents, "CronJob", "retune-rollout")["spec"]["jobTemplate"]["spec"]["template"]["spec"][
        "containers"
    ][0]["command"]
    words = [sys.executable, "-m", "retune", *command[1:], "--tracking", versions]

    def run():
        done = subprocess.run(words, capture_output=True, text=True)
        pod = pod_of(kind, api.objects[path])
        env = [
            e["value"]
            for c in [*pod.get("initContainers", []), *pod["containers"]]
            for e in c["env"]
            if e["name"] in ("ADAPTER", "STORAGE_URI")
        ]
        return done.returncode, done.stdout + done.stderr, env[0]

    before = json.loads(json.dumps(api.objects[path]))
    code, said, _ = run()
    assert (code, api.objects[path]) == (1, before), said
    assert "has no champion" in said
    promotion.promote(versions, "support-bot", "1", None)
    promotion.promote(versions, "support-bot", "2", "1")
    code, said, value = run()
    assert (code, value[-1]) == (0, "2"), said
    count = api.changes
    code, said, value = run()
    assert (code, api.changes) == (0, count)  # nothing changed: no rolling update every two minutes
    assert "already" in said
    promotion.rollback(versions, "support-bot")
    code, said, value = run()
    assert (code, value[-1]) == (0, "1"), said


def test_what_is_wrong_is_told_and_nothing_changed(kustomize, api, versions):
    promotion.promote(versions, "support-bot", "1", None)
    document = find(kustomize(SERVE / "vllm"), "Deployment", "support-bot")
    path = api.put(document, "deployments")

    def call(target="deployment/support-bot", variable="ADAPTER", template="support-bot@{version}"):
        return rollout(versions, "support-bot", target, variable, template)

    with pytest.raises(InputError, match="must have the environment variable ADAPTR"):
        call(variable="ADAPTR")
    with pytest.raises(InputError, match=r"there is no deployments\.apps other in namespace retune"):
        call("deployment/other")
    with pytest.raises(InputError, match="2 problems") as both:
        call("pod/x", template="support-bot@7")
    assert "inferenceservice/NAME" in str(both.value)
    assert api.changes == 0
    real = api.objects[path]
    api.objects[path] = {**real, "metadata": {**real["metadata"], "resourceVersion": "9"}}

    class Stale(dict):
        def get(self, key, default=None):  # what a reader got, before somebody else changed the object
            return real if key == path else super().get(key, default)

    api.objects = Stale(api.objects)
    with pytest.raises(RetuneError, match="answered 409"):
        call()
    assert api.changes == 0
