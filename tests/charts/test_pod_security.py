"""Every pod of the chart keeps to Pod Security "restricted", and has a token only where it needs one."""

import copy

import pytest

from retune.engines.katib import registration
from tests.charts.helm import SETS, find, pods
from tests.charts.pod_security import violations

pytest_plugins = ["tests.charts.helm"]


@pytest.mark.parametrize("name", SETS)
def test_restricted(rendered, name):
    found = [(d["metadata"]["name"], violations(spec)) for d, _, spec in pods(rendered[name])]
    assert [(pod, broken) for pod, broken in found if broken] == []


def test_every_kind_of_pod_was_looked_at(rendered):
    kinds = {document["kind"] for documents in rendered.values() for document, _, _ in pods(documents)}
    assert kinds == {"Pod", "Job", "CronJob", "Deployment", "StatefulSet", "TrainingRuntime"}
    others = {
        d["kind"] for documents in rendered.values() for d in documents if "containers:" in str(d)
    } - kinds
    assert others == set()


def test_the_suggestion_container_keeps_to_it_in_a_pod_of_katibs():
    """Katib sets nothing on the pod, so the container says it all."""
    for entry in registration.entries("registry.example/retune-suggestion:1"):
        assert violations({"containers": [{**entry, "name": "suggestion"}]}) == []


@pytest.mark.parametrize(
    ("where", "change", "rule"),
    [
        ("pod", {"runAsNonRoot": None}, "runAsNonRoot"),
        ("pod", {"runAsUser": 0}, "runAsUser"),
        ("pod", {"seccompProfile": {"type": "Unconfined"}}, "seccompProfile"),
        ("pod", {"sysctls": [{"name": "a", "value": "b"}]}, "sysctls"),
        ("container", {"allowPrivilegeEscalation": None}, "allowPrivilegeEscalation"),
        ("container", {"capabilities": {"drop": ["NET_RAW"]}}, "capabilities.drop"),
        ("container", {"capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}}, "capabilities.add"),
        ("container", {"privileged": True}, "privileged"),
        ("container", {"runAsUser": 0}, "runAsUser"),
        ("container", {"runAsNonRoot": False}, "runAsNonRoot"),
        ("container", {"procMount": "Unmasked"}, "procMount"),
        ("spec", {"hostNetwork": True}, "hostNetwork"),
        ("spec", {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}, "volume v"),
        ("ports", [{"containerPort": 1, "hostPort": 1}], "hostPort"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_rule_is_looked_at(rendered, where, change, rule):
    """A template that breaks a rule, in the main or the init container, is found."""
    for place in ("containers", "initContainers"):
        spec = copy.deepcopy(
            find(rendered["small"], "Deployment", "retune-mlflow")["spec"]["template"]["spec"]
        )
        container = spec[place][0]
        match where:
            case "pod":
                spec["securityContext"].update(change)
            case "container":
                container["securityContext"].update(change)
            case "spec":
                spec.update(change)
            case "ports":
                container["ports"] = change
        assert any(rule in violation for violation in violations(spec))


def test_nothing_is_written_but_to_volumes_and_memory_is_bounded(rendered):
    for documents in rendered.values():
        for _, _, spec in pods(documents):
            for container in [*spec.get("initContainers", []), *spec["containers"]]:
                assert container["securityContext"]["readOnlyRootFilesystem"] is True
                assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}
                assert container["resources"]["limits"]["memory"]
                assert container["resources"]["requests"]["cpu"]


def test_a_token_of_the_kubernetes_api_only_where_it_is_used(rendered):
    """Trials, MLflow, its database and the schedules call no Kubernetes API."""
    with_token = {
        document["metadata"]["name"]
        for documents in rendered.values()
        for document, _, spec in pods(documents)
        if spec["automountServiceAccountToken"]
    }
    assert with_token == {"retune-register", "retune-unregister", "retune-test-katib"}


def test_secrets_are_referred_to_and_never_written_out(helm):
    words = ["--set", "storage.accessKeyId=KEY-ID,storage.secretAccessKey=SECRET-KEY"]
    for document in helm.render(*SETS["small"], *words):
        assert document["kind"] == "Secret" or not any(
            word in str(document) for word in ("KEY-ID", "SECRET-KEY")
        )
