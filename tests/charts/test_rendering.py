"""The chart renders the golden manifests, and Kubernetes accepts them.

After an intended change: RETUNE_GOLDEN=write pytest tests/charts/test_rendering.py
"""

import copy
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml

import retune
from retune.engines.katib.pods import CA_ENV, CA_FOLDER
from retune.study import load
from tests.charts.helm import CHART, SETS, find, pods
from tests.conftest import ROOT
from tests.kubernetes_schemas import VERSIONS, problems

pytest_plugins = ["tests.charts.helm"]
GOLDEN = Path(__file__).with_name("golden")
KATIBS = sorted((ROOT / "tests/engines/katib/golden").glob("*.yaml"))


@pytest.mark.parametrize("name", SETS)
def test_lint(helm, name):
    found = helm.run("lint", "--strict", str(CHART), *SETS[name])
    assert found.returncode == 0, found.stdout
    assert "[WARNING]" not in found.stdout


@pytest.mark.parametrize("name", ["small", "production"])
def test_golden(rendered, name):
    documents = copy.deepcopy(rendered[name])
    for document in documents:
        for key in {"password", "MLFLOW_TRACKING_PASSWORD"} & set(document.get("data", ())):
            document["data"][key] = "another one each time"
    documents.sort(key=lambda d: (d["kind"], d["metadata"].get("namespace", ""), d["metadata"]["name"]))
    text = yaml.safe_dump_all(documents, width=100)
    file = GOLDEN / f"{name}.yaml"
    if os.environ.get("RETUNE_GOLDEN") == "write":
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: "{}.{}".format(*version))
def test_kubernetes_takes_every_object(rendered, version):
    found = {
        f"{name}: {document['kind']} {document['metadata']['name']}: {problem}"
        for name, documents in rendered.items()
        for document in documents
        for problem in problems(document, version)
    }
    assert found == set()


def test_the_versions_are_those_from_the_charts_on(helm):
    oldest = yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"]
    assert oldest == ">={}.{}.0-0".format(*VERSIONS[0])
    assert len(VERSIONS) >= 9
    assert "incompatible with Kubernetes v1.28.3" in helm.template(version="1.28.3").stderr
    assert helm.render(version="1.29.0-eks-1")


def test_the_images_are_those_of_this_version():
    """`make images` tags them with it, and the chart asks for its appVersion."""
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == retune.__version__


@pytest.mark.parametrize("path", KATIBS, ids=lambda path: path.stem)
def test_what_the_engine_makes_is_taken_too(path):
    """The same strict models accept the Experiments, TrainJobs and the TrainingRuntime that `retune render` prints."""
    assert problems(yaml.safe_load(path.read_text()), VERSIONS[-1]) == []


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("experiment-job", ["spec", "trialTemplate"]),
        ("experiment-job", ["spec", "objective"]),
        ("experiment-job", ["spec", "parameters", 0, "feasibleSpace"]),
        ("experiment-job", ["spec", "trialTemplate", "trialSpec", "spec", "template", "spec"]),
        ("experiment-trainjob", ["spec", "trialTemplate", "trialSpec", "spec", "trainer"]),
        ("runtime", ["spec", "mlPolicy"]),
        ("runtime", ["spec", "template", "spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0]),
    ],
)  # fmt: skip
def test_a_misspelt_field_is_found(name, path):
    document = yaml.safe_load((ROOT / f"tests/engines/katib/golden/{name}.yaml").read_text())
    node = document
    for key in path:
        node = node[key]
    node["misspelt"] = "x"
    assert problems(document, VERSIONS[-1])


def test_an_unknown_kind_is_a_problem():
    assert problems({"apiVersion": "example.org/v1", "kind": "Thing", "metadata": {}}, VERSIONS[0])


def test_names_fit_whatever_the_release_is_called(helm):
    """63 characters for a Service, a Job and a StatefulSet's pods, 52 for a CronJob."""
    longest = helm.render(*SETS["production"], release="r" * 53, namespace="n" * 63)
    longest += helm.render(*SETS["small"], release="r" * 53, namespace="n" * 63)
    limits = {
        "CronJob": 52,
        "StatefulSet": 52,
        "Role": 253,
        "RoleBinding": 253,
        "ClusterRole": 253,
        "ClusterRoleBinding": 253,
    }
    for document in longest:
        name, kind = document["metadata"]["name"], document["kind"]
        assert len(name) <= limits.get(kind, 63), (kind, name)
        labels = document["metadata"].get("labels", {})
        assert all(len(value) <= 63 for value in labels.values()), (kind, name, labels)


@pytest.mark.parametrize("release", ["3.1-tuning", "7b-retune", "2024", "null"])
def test_any_name_of_a_release_makes_names_of_services(helm, release):
    """A release's name may have dots and begin with a digit, a Service's (DNS-1035) may not."""
    documents = helm.render(*SETS["small"], "--set", "watch.enabled=true", release=release)
    names = {d["metadata"]["name"] for d in documents if d["kind"] == "Service"}
    assert {name.rpartition("-")[2] for name in names} == {"mlflow", "postgresql", "watch"}
    assert all(re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name) and "retune" in name for name in names), names
    assert [p for d in documents for p in problems(d, VERSIONS[-1])] == []


@pytest.mark.parametrize(("word", "other"), [("2024", "007"), ("true", "no")])
def test_names_that_yaml_reads_as_something_else_stay_text(helm, tmp_path, word, other):
    """A namespace may be called `2024`, and a Secret `true`."""
    placed = {"priorityClassName": word, "nodeSelector": {word: word}}
    page = {
        "ingress": {"enabled": True, "host": "a.example", "className": word, "tlsSecret": word},
        "httpRoute": {"enabled": True, "hostnames": ["a.example"], "parentRefs": [{"name": word}]},
    }
    volume, key = {"claim": word, "mount": "/a"}, {"existingSecret": word, "key": word}
    study = {"name": word, "cron": "@daily", "study": {"cluster": {"volumes": [volume]}}}
    values = {
        "images": {"pullSecrets": [word]},
        "caBundle": {"configMap": word, "key": word},
        "study": {"serviceAccount": {"name": word}},
        "storage": {"existingSecret": word},
        "models": {"persistence": {"enabled": True, "storageClass": word}},
        "katib": {"namespace": word},
        "trainJob": {
            "enabled": True, "name": word, "volumes": [volume], "env": {"NO": word},
            "runtimeClassName": word, **placed,
        },
        "mlflow": {"login": {"existingSecret": other}, **page, **placed},
        "watch": {"enabled": True, **page, **placed},
        "postgresql": {"key": word, "persistence": {"storageClass": word}, **placed},
        "networkPolicy": {
            "storage": {"namespace": word}, "pipelinesNamespace": word, "mlflowFrom": [word], "watchFrom": [word],
        },
        "schedules": {"studies": [study], "webhook": key, "tokenAudience": word, "namespace": word},
        "kueue": {"queue": word, "clusterQueue": word},
        "monitoring": {kind: {"enabled": True, "prometheusNamespace": word} for kind in ("podMonitor", "serviceMonitor")},
        "commonLabels": {word: word},
    }  # fmt: skip
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    documents = helm.render("--values", str(tmp_path / "values.yaml"), release=word, namespace=word)
    assert [p for d in documents for p in problems(d, VERSIONS[-1])] == []
    elsewhere = helm.render(
        "--set-string", f"mlflow.database.existingSecret={word},mlflow.database.key={word}"
    )
    assert [p for d in elsewhere for p in problems(d, VERSIONS[-1])] == []
    cluster = load(ROOT / "studies/davouse2024.yaml", overrides(documents)).cluster
    assert {cluster.namespace, cluster.service_account, cluster.queue, cluster.katib.runtime} == {word}
    assert (cluster.secrets[1:], cluster.pull_secrets) == ([word, other], [word])
    assert (cluster.ca_bundle.config_map, cluster.ca_bundle.key) == (word, word)


def test_two_releases_do_not_share_an_object_but_the_studies_account(helm):
    """Studies name their account, so a second release in the namespace leaves it to the first."""

    def names(release, *words):
        return {
            (d["kind"], d["metadata"].get("namespace"), d["metadata"]["name"])
            for d in helm.render(*words, release=release)
        }

    one, other = names("one"), names("two", "--set", "study.serviceAccount.create=false")
    assert one & other == set()
    assert names("one") & names("two") == {("ServiceAccount", None, "retune")}


def test_what_belongs_to_a_pod_is_selected_and_nothing_else(rendered):
    """Services, disruption budgets and workloads select by labels that their own pods have and no other pod has."""
    for documents in rendered.values():
        templates = [(d["metadata"]["name"], meta["labels"]) for d, meta, _ in pods(documents)]
        for document in documents:
            selector = document.get("spec", {}).get("selector")
            if document["kind"] not in ("Service", "PodDisruptionBudget", "Deployment", "StatefulSet"):
                continue
            wanted = selector.get("matchLabels", selector)
            chosen = {name for name, labels in templates if wanted.items() <= labels.items()}
            assert chosen == {document["metadata"]["name"]}


def test_ports_by_name_and_mounts_are_there(rendered):
    for documents in rendered.values():
        for document, _, spec in pods(documents):
            volumes = {volume["name"] for volume in spec.get("volumes", [])}
            volumes |= {
                claim["metadata"]["name"]
                for claim in document.get("spec", {}).get("volumeClaimTemplates", [])
            }
            for container in [*spec.get("initContainers", []), *spec["containers"]]:
                assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
                ports = {port["name"] for port in container.get("ports", [])}
                for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                    if "httpGet" in container.get(probe, {}):
                        assert container[probe]["httpGet"]["port"] in ports
        for service in (d for d in documents if d["kind"] == "Service"):
            (spec,) = [
                s for d, _, s in pods(documents) if d["metadata"]["name"] == service["metadata"]["name"]
            ]
            ports = {port["name"] for container in spec["containers"] for port in container["ports"]}
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_other_storage_keys_make_a_new_mlflow_pod(helm):
    def template(*words):
        return find(helm.render(*words), "Deployment", "retune-mlflow")["spec"]["template"]

    assert template() == template()
    assert template() != template("--set", "storage.accessKeyId=a,storage.secretAccessKey=b")
    assert template("--set", "katib.register.ttlSeconds=1") == template()


def test_the_runtime_is_the_one_that_retune_render_prints(helm):
    """For a study with the same pods; the chart adds labels of ownership and `images.pullPolicy`."""
    golden = yaml.safe_load((ROOT / "tests/engines/katib/golden/runtime.yaml").read_text())
    words = [
        "images.pullSecrets={registry}", "images.registry=registry.example", "images.tag=1.0", "trainJob.enabled=true",
        "trainJob.gpus=2", "trainJob.volumes[0].claim=models", "trainJob.volumes[0].mount=/models",
        "trainJob.volumes[0].readOnly=true", "trainJob.nodeSelector.gpu=h100", "storage.existingSecret=storage",
        "trainJob.tolerations[0].key=nvidia.com/gpu", "trainJob.tolerations[0].operator=Exists", "trainJob.tolerations[0].effect=NoSchedule",
    ]  # fmt: skip
    made = find(helm.render(*[w for word in words for w in ("--set", word)]), "TrainingRuntime", "retune")
    del made["metadata"]["labels"], golden["metadata"]["namespace"]
    (container,) = made["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"][
        "spec"
    ]["containers"]
    del container["imagePullPolicy"]
    assert container["envFrom"].pop(0) == {"secretRef": {"name": "retune-storage"}}
    assert container["envFrom"].pop() == {"secretRef": {"name": "retune-mlflow-login"}}
    assert made == golden


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "storage.accessKeyId=a"], "belong together"),
        (["--set", "storage.secretAccessKey=a"], "belong together"),
        (["--set", "storage.existingSecret=a,storage.accessKeyId=b,storage.secretAccessKey=c"], "must be empty"),
        (["--set", "kueue.clusterQueue=gpus"], "needs `kueue.queue`"),
        (["--set", f"schedules.studies[0].name={'x' * 60},schedules.studies[0].cron=@daily,schedules.studies[0].study=a"], "shorten"),
        (["--set", "schedules.studies[0].name=s,schedules.studies[0].cron=@daily,schedules.studies[0].study=name: ["], 'the study of "s" must be'),
        (["--set-json", 'schedules.studies=[{"name": "s", "cron": "@daily", "study": "name: s\\ncluster:\\n"}]'], 'the study of "s" must have keys'),
        (["--set-json", 'schedules.studies=[{"name": "s", "cron": "@daily", "study": {"cluster": "a"}}]'], 'the study of "s" must have keys'),
    ],
    ids=["access key", "secret key", "two sources", "queue", "long name", "no YAML", "no keys", "no section"],
)  # fmt: skip
def test_what_cannot_work_is_refused(helm, words, message):
    found = helm.template(*words)
    assert found.returncode
    assert message in found.stderr


def test_a_runtime_needs_trainer(helm):
    found = helm.template("--set", "trainJob.enabled=true", apis=())
    assert found.returncode
    assert "install Trainer first" in found.stderr


def test_kueues_newer_version_is_used_where_it_is(helm):
    words = ["--set", "kueue.queue=a,kueue.clusterQueue=b"]
    for apis, version in [
        (("kueue.x-k8s.io/v1beta1", "kueue.x-k8s.io/v1beta2"), "v1beta2"),
        (("kueue.x-k8s.io/v1beta1",), "v1beta1"),
    ]:
        queue = find(helm.render(*words, apis=apis), "LocalQueue", "a")
        assert queue["apiVersion"] == f"kueue.x-k8s.io/{version}"


def test_the_password_of_the_database_is_in_no_argument(rendered):
    for documents in rendered.values():
        for _, _, spec in pods(documents):
            for container in [*spec.get("initContainers", []), *spec["containers"]]:
                words = " ".join([*container.get("command", []), *container.get("args", [])])
                assert "$(MLFLOW_BACKEND_STORE_URI)" not in words
                assert "$(DATABASE_PASSWORD)" not in words


@pytest.mark.parametrize("name", SETS)
def test_a_second_rendering_is_equal_once_the_passwords_are_given(helm, rendered, name):
    """Argo CD compares each rendering with what is in the cluster, and can look up nothing."""
    words = [*SETS[name], "--set", "postgresql.existingSecret=db,mlflow.login.existingSecret=account"]
    assert helm.template(*words).stdout == helm.template(*words).stdout


def test_the_cluster_may_choose_users_and_a_digest_goes_before_the_tag(rendered):
    for _, _, spec in pods(rendered["other clusters"]):
        assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        images = {c["image"] for c in spec["containers"] if "retune-train" in c["image"]}
        assert all(image.endswith(f"@sha256:{'a' * 64}") for image in images)


@pytest.mark.parametrize(("written", "user"), [("null", None), ("1000680000", 1000680000), ("10001", 10001)])
def test_the_pods_of_a_scheduled_study_run_as_the_charts_do(helm, written, user):
    """OpenShift refuses pods that name a user outside of the namespace's range."""
    words = [
        "--set", "schedules.studies[0].name=a,schedules.studies[0].cron=@daily,schedules.studies[0].study.name=a",
        "--set", f"podSecurity.runAsUser={written},trainJob.enabled=true,trainJob.gpuResource=amd.com/gpu",
    ]  # fmt: skip
    cluster = load(ROOT / "studies/davouse2024.yaml", overrides(helm.render(*words))).cluster
    assert (cluster.run_as_user, cluster.gpu_resource) == (user, "amd.com/gpu")


def overrides(documents):
    """Return the keys of the study that the one schedule sets."""
    (job,) = [d for d in documents if d["kind"] == "CronJob"]
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    return [word for word in container["command"] if "=" in word and not word.startswith("-")]


def test_certificates_of_a_private_authority_reach_every_pod_that_calls_a_server(rendered):
    """As in a study's pods: MLflow calls storage and database, the watch page the storage, a schedule Kubeflow Pipelines too."""
    documents, seen = rendered["other clusters"], set()
    for document, _, spec in pods(documents):
        name = document["metadata"]["name"]
        if name in ("retune-postgresql", "retune-register", "retune-unregister"):
            continue  # these call nobody, and the Kubernetes API with its own certificate
        seen.add(name)
        assert {"name": "ca", "configMap": {"name": "company-ca"}} in spec["volumes"], name
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            env = {entry["name"]: entry.get("value") for entry in container["env"]}
            assert {env.get(key) for key in CA_ENV} == {f"{CA_FOLDER}/ca.crt"}, name
            assert {"name": "ca", "mountPath": CA_FOLDER, "readOnly": True} in container["volumeMounts"], name
    assert {"retune-mlflow", "retune-watch", "retune-a", "retune-test-storage", "retune-test-mlflow"} < seen
    (command,) = [s["containers"][0]["command"] for d, _, s in pods(documents) if d["kind"] == "CronJob"]
    assert f"--ca={CA_FOLDER}/ca.crt" in command
    cluster = load(ROOT / "studies/davouse2024.yaml", overrides(documents)).cluster
    assert (cluster.ca_bundle.config_map, cluster.ca_bundle.key) == ("company-ca", "ca.crt")


def test_an_environment_of_the_trials_has_each_variable_once(helm):
    """The API server's merge of a list by names fails where one is there twice."""
    made = helm.render(
        "--set", "trainJob.enabled=true,caBundle.configMap=ca,trainJob.env.HOME=/h,trainJob.env.SSL_CERT_FILE=/own",
        "--set-string", "trainJob.env.RETUNE_CORES=2",
    )  # fmt: skip
    ((_, _, pod),) = [found for found in pods(made) if found[0]["kind"] == "TrainingRuntime"]
    env = [(entry["name"], entry["value"]) for entry in pod["containers"][0]["env"]]
    assert {("HOME", "/h"), ("SSL_CERT_FILE", "/own"), ("RETUNE_CORES", "2")} < set(env)
    assert len(dict(env)) == len(env)


def test_no_address_names_the_domain_of_a_cluster(rendered):
    """It need not be `cluster.local`; without it the pods' search list completes a name. MLflow answers to that name too."""
    for name, documents in rendered.items():
        text = "\n".join(
            line for line in yaml.safe_dump_all(documents, width=10**6).splitlines()
            if not line.strip().startswith(("- --allowed-hosts=", "- --cors-allowed-origins="))
        )  # fmt: skip
        assert "cluster.local" not in text, name
    named = [
        path for path in (ROOT / "k8s").rglob("*") if path.is_file() and "cluster.local" in path.read_text()
    ]
    assert named == []


def test_a_chart_of_ones_own_may_contain_it(helm, tmp_path):
    """Helm passes such a chart's `global` values on, and the one by which it turns this chart on."""
    (tmp_path / "Chart.yaml").write_text(
        "apiVersion: v2\nname: platform\nversion: 1.0.0\n"
        "dependencies: [{name: retune, version: '*', condition: retune.enabled}]\n"
    )
    shutil.copytree(CHART, tmp_path / "charts/retune")
    values = {
        "retune": yaml.safe_load(Path(__file__).with_name("hooks.yaml").read_text()),
        "global": {"domain": "example.org"},
    }
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    words = ["--namespace", "team-a", "--kube-version", "1.31.0"]

    def names(enabled):
        found = helm.run("template", "retune", str(tmp_path), *words, "--set", f"retune.enabled={enabled}")
        assert found.returncode == 0, found.stderr
        return {(d["kind"], d["metadata"]["name"]) for d in yaml.safe_load_all(found.stdout) if d}

    alone = {(d["kind"], d["metadata"]["name"]) for d in helm.render(apis=())}
    assert names("true") == alone
    assert names("false") == set()


def test_helm_template_does_not_take_out_what_it_puts_in(helm):
    """`helm template | kubectl apply` runs every Job at once; Helm itself finds the cluster's Service `kubernetes`."""
    made = helm.render("--set", "katib.register.unregister=auto")
    assert [d["metadata"]["name"] for d in made if d["kind"] == "Job"] == ["retune-register"]
    never = helm.render("--set", "katib.register.unregister=never")
    assert [d["metadata"]["name"] for d in never if d["kind"] == "Job"] == ["retune-register"]


def test_browsers_reach_mlflow_by_ingress_and_route(rendered, helm):
    documents = rendered["other clusters"]
    (rule,) = find(documents, "Ingress", "retune-mlflow")["spec"]["rules"]
    assert rule["host"] == "mlflow.example"
    route = find(documents, "HTTPRoute", "retune-mlflow")["spec"]
    assert (route["hostnames"], route["parentRefs"]) == (["m.example"], [{"name": "gateway"}])
    (container,) = find(documents, "Deployment", "retune-mlflow")["spec"]["template"]["spec"]["containers"]
    (allowed,) = [word for word in container["command"] if word.startswith("--allowed-hosts=")]
    assert {"mlflow.example", "m.example"} <= set(allowed.removeprefix("--allowed-hosts=").split(","))
    assert "needs `mlflow.ingress.host`" in helm.template("--set", "mlflow.ingress.enabled=true").stderr
    assert "needs `parentRefs`" in helm.template("--set", "mlflow.httpRoute.enabled=true").stderr


def test_placement_reaches_server_database_and_trials(rendered):
    documents = rendered["other clusters"]
    server = find(documents, "Deployment", "retune-mlflow")["spec"]["template"]["spec"]
    assert server["priorityClassName"] == "high"
    assert (
        server["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0]["weight"]
        == 1
    )
    assert (
        find(documents, "StatefulSet", "retune-postgresql")["spec"]["template"]["spec"]["priorityClassName"]
        == "high"
    )
    (node,) = find(documents, "TrainingRuntime", "retune")["spec"]["template"]["spec"]["replicatedJobs"]
    job = node["template"]["spec"]
    assert job["activeDeadlineSeconds"] == 1
    pod = job["template"]["spec"]
    assert (pod["priorityClassName"], pod["runtimeClassName"]) == ("low", "nvidia")
    env = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}
    assert env["HF_ENDPOINT"] == "https://hub.example"
    assert env["SSL_CERT_FILE"] == "/etc/retune/ca/ca.crt"
