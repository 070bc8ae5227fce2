"""A release's life, by real Helm on a stand-in for the Kubernetes API that carries out its hooks."""

import base64
import shlex

import pytest
import yaml
from click.testing import CliRunner

from retune.cli import cli
from retune.engines.katib import OURS
from tests.charts.api_server import Kubernetes
from tests.charts.helm import CHART, EXAMPLES, SETS

pytest_plugins = ["tests.charts.helm"]
pytestmark = pytest.mark.slow
CONFIG = "runtime:\n  suggestions:\n    - algorithmName: random\n      image: theirs:1\n"


@pytest.fixture
def kubernetes(tmp_path):
    server = Kubernetes(tmp_path, CONFIG)
    yield server
    server.close()


@pytest.fixture
def release(helm, kubernetes):
    """Return a function that runs Helm on the release `retune` in the namespace team-a."""

    def release(verb, *words, succeeds=True):
        more = [str(CHART), "--disable-openapi-validation"] if verb in ("install", "upgrade") else []
        found = helm.run(
            verb, "retune", *more, "--namespace", "team-a", *words, KUBECONFIG=kubernetes.kubeconfig
        )
        assert (found.returncode == 0) == succeeds, (found.stdout, found.stderr)
        return found.stdout + found.stderr

    return release


def images(kubernetes):
    text = kubernetes.objects.get("configmaps", "kubeflow", "katib-config")["data"]["katib-config.yaml"]
    return {
        entry["algorithmName"]: entry["image"] for entry in yaml.safe_load(text)["runtime"]["suggestions"]
    }


def password(kubernetes):
    data = kubernetes.objects.get("secrets", "team-a", "retune-postgresql")["data"]
    return base64.b64decode(data["password"]).decode()


def experiment(kubernetes, namespace, name, how=None):
    """Create an Experiment; `how` is the condition with which it ended, if it did."""
    content = {
        "kind": "Experiment",
        "metadata": {"name": name},
        "spec": {"algorithm": {"algorithmName": "nomad"}},
        "status": {"conditions": [{"type": how or "Running", "status": "True"}]},
    }
    kubernetes.objects.create("experiments", namespace, content)


def test_install_check_upgrade_roll_back_remove_and_install_again(kubernetes, release):
    before = kubernetes.there()
    release("install", *SETS["small"])
    assert images(kubernetes) == {"random": "theirs:1", **dict.fromkeys(OURS, "retune-suggestion:0.1.0")}
    first = password(kubernetes)
    assert "jobs" not in {plural for plural, _, _ in kubernetes.there()}  # the hook's Job has gone
    release("test", "--filter", "name=retune-test-katib")
    assert "Katib has our algorithms" in kubernetes.ran["retune-test-katib"][-1]

    release("upgrade", *SETS["small"], "--set", "images.tag=v2")
    assert images(kubernetes)["nomad"] == "retune-suggestion:v2"
    assert password(kubernetes) == first
    release("rollback", "1")
    assert images(kubernetes)["nomad"] == "retune-suggestion:0.1.0"
    assert password(kubernetes) == first

    experiment(kubernetes, "team-b", "e")
    experiment(kubernetes, "team-c", "done", "Succeeded")
    release("uninstall", succeeds=False)
    said = kubernetes.ran["retune-unregister"][-1]
    assert "e (nomad, running): kubectl delete experiments --namespace team-b e" in said
    assert "done (nomad, succeeded): kubectl delete experiments --namespace team-c done" in said
    assert "nomad" in images(kubernetes)
    # The refused removal is undone by a rollback, as docs/install.md says: the release can be used again.
    release("rollback")
    release("upgrade", *SETS["small"], "--set", "katib.register.deleteFinished=true")
    release("uninstall", succeeds=False)
    assert "there is 1" in kubernetes.ran["retune-unregister"][-1]
    assert [e["metadata"]["name"] for e in kubernetes.objects.list("experiments")] == ["e"]
    kubernetes.objects.delete("experiments", "team-b", "e")
    kubernetes.ran.clear()
    release("uninstall")
    assert images(kubernetes) == {"random": "theirs:1"}
    # The check's pod stays for its log: `helm test --logs` reads it afterwards.
    left = {("secrets", "team-a", name) for name in ("retune-postgresql", "retune-mlflow-login")}
    left.add(("pods", "team-a", "retune-test-katib"))
    assert kubernetes.there() - before == left

    release("install", *SETS["small"])
    assert password(kubernetes) == first


def test_the_login_that_running_studies_name_outlasts_another_one(kubernetes, release):
    """Katib makes a trial's pod at any time, and a pod whose Secret is gone does not start."""

    def login():
        return kubernetes.objects.get("secrets", "team-a", "retune-mlflow-login")["data"]

    release("install", "--no-hooks")
    first = login()
    for words in (
        ["mlflow.login.existingSecret=account"],
        ["mlflow.login.enabled=false"],
        ["mlflow.login.existingSecret="],
    ):
        release("upgrade", "--no-hooks", "--reset-values", "--set", *words)
        assert login() == first


def test_the_address_of_the_kubernetes_api_is_looked_up(kubernetes, release):
    release("install", "--no-hooks", *SETS["small"])
    for name in ("retune-benchmark", "retune-suggestion"):
        rules = kubernetes.objects.get("networkpolicies", "team-a", name)["spec"]["egress"]
        blocks = [to["ipBlock"]["cidr"] for rule in rules for to in rule["to"] if "ipBlock" in to]
        assert blocks == ["169.254.20.10/32", "172.18.0.2/32", "10.96.0.1/32"]


def test_a_registration_that_fails_fails_the_installation(kubernetes, release):
    kubernetes.objects.delete("configmaps", "kubeflow", "katib-config")
    assert "post-install" in release("install", *SETS["small"], succeeds=False)
    assert "katib-config" in kubernetes.ran["retune-register"][-1]


def test_keys_that_were_taken_out_are_gone_after_an_upgrade(kubernetes, release):
    def keys():
        return set(kubernetes.objects.get("secrets", "team-a", "retune-storage")["data"])

    release(
        "install",
        "--no-hooks",
        "--set",
        "storage.accessKeyId=a,storage.secretAccessKey=b,storage.endpoint=http://s3",
    )
    assert keys() == {"AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    release("upgrade", "--no-hooks", "--set", "storage.existingSecret=theirs")
    assert keys() == {"AWS_DEFAULT_REGION"}


@pytest.mark.parametrize("name", ["small", "production"])
def test_the_notes_name_a_next_command_that_works(release, name, tmp_path):
    """With a study file that has nothing of the cluster in it."""
    notes = release("install", "--no-hooks", *SETS[name]).partition("NOTES:\n")[2]
    study = yaml.safe_load((EXAMPLES / "production.yaml").read_text())["schedules"]["studies"][0]["study"]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    command = notes.replace("\\\n", " ").partition("retune submit")[2].partition("\n")[0]
    words = [str(tmp_path / "study.yaml") if word == "study.yaml" else word for word in shlex.split(command)]
    result = CliRunner().invoke(cli, ["submit", *words, "--dry-run"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    spec, platform = yaml.safe_load_all(result.output)
    registry = {"small": "retune-train:0.1.0", "production": "registry.example/ml/retune-train:0.1.0"}[name]
    assert spec["deploymentSpec"]["executors"]["exec-mix"]["container"]["image"] == registry
    pod = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-search"]
    secrets = {"small": ["retune-storage"], "production": ["retune-storage", "retune-s3"]}[name]
    secrets.append("retune-mlflow-login")
    assert [entry["secretName"] for entry in pod["secretAsEnv"]] == secrets
    assert "kubectl label namespace team-a katib.kubeflow.org/metrics-collector-injection=enabled" in notes
    assert "helm test retune --namespace team-a --logs" in notes
    assert ("cronjob/retune-weekly" in notes) == (name == "production")
    assert "NOTE:" not in notes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "networkPolicy.storage.cidrs"),
        (["--set", "mlflow.enabled=false,storage.endpoint=http://s3"], "there is no MLflow server"),
        (
            ["--set", "mlflow.enabled=false,storage.endpoint=http://s3,mlflow.externalUri=https://m"],
            "networkPolicy.benchmarkEgress",
        ),
    ],
    ids=["storage", "no MLflow", "MLflow elsewhere"],
)
def test_the_notes_say_what_benchmarks_would_miss(release, words, said):
    notes = release("install", "--no-hooks", *words).partition("NOTES:\n")[2]
    assert [line for line in notes.splitlines() if line.startswith("NOTE:") and said in line]
    assert notes.count("NOTE:") == 1
