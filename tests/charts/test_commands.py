"""What the chart's containers run, run here: hooks and checks on the simulated cluster, schedules, and MLflow."""

import base64
import json
import os
import signal
import socket
import threading
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
import yaml

from retune import store
from retune.retuning.lease import Retunings
from tests.charts import kubelet
from tests.charts.helm import EXAMPLES, SETS, find
from tests.charts.rights import grants, hold
from tests.conftest import ROOT, wait_for
from tests.katib_simulator.admission import suggestion_config
from tests.launch.kubeflow_server import serve

pytest_plugins = [
    "tests.charts.helm",
    "tests.katib_simulator.runs",
    "tests.postgres_server",
    "tests.retuning.servers",
    "tests.s3_server",
]


def secret(name, **data):
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    return {"kind": "Secret", "metadata": {"name": name}, "data": encoded}


@pytest.fixture
def run(tmp_path):
    """Return a function that runs the only container of a rendered Pod or Job."""

    def run(documents, kind, name, *replaced, **more):
        spec = find(documents, kind, name)["spec"]
        spec = spec if kind == "Pod" else spec["template"]["spec"]
        (container,) = spec["containers"]
        return kubelet.run(spec, container, documents, tmp_path, replaced, **more)

    return run


# Katib's configuration


@pytest.mark.slow
def test_the_hooks_put_our_algorithms_into_katib_and_take_them_out(rendered, cluster, run):
    """Under the account's own rights, and twice, as an upgrade does."""
    documents, config = rendered["production"], cluster.kubeconfig()
    granted = grants(documents, "retune-katib-config", "kubeflow")
    hold(cluster.api, granted)
    code, output = run(documents, "Pod", "retune-test-katib", KUBECONFIG=config)
    assert (code, "does not have our algorithms with the image" in output) == (1, True)
    for said in ("changed kubeflow/katib-config", "nothing to change"):
        code, output = run(documents, "Job", "retune-register", KUBECONFIG=config)
        assert (code, said in output) == (0, True), output
    entry = suggestion_config(cluster.objects, "nomad")
    assert entry["image"] == "registry.example/ml/retune-suggestion:0.1.0"
    assert entry["serviceAccountName"] == "retune-suggestion"
    assert find(documents, "ServiceAccount", "retune-suggestion")["imagePullSecrets"] == [
        {"name": "registry"}
    ]
    code, output = run(documents, "Pod", "retune-test-katib", KUBECONFIG=config)
    assert code == 0, output
    code, output = run(documents, "Job", "retune-unregister", KUBECONFIG=config)
    assert code == 0, output
    assert suggestion_config(cluster.objects, "nomad") is None
    assert suggestion_config(cluster.objects, "tpe")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("written", "user"), [("10001", 10001), ("1000680000", 1000680000), ("null", None)], ids=str
)
def test_katibs_suggestion_pods_run_as_the_charts_do(helm, cluster, run, written, user):
    documents = helm.render("--set", f"podSecurity.runAsUser={written}")
    code, output = run(documents, "Job", "retune-register", KUBECONFIG=cluster.kubeconfig())
    assert code == 0, output
    security = suggestion_config(cluster.objects, "nomad")["securityContext"]
    assert (security.get("runAsUser"), security.get("runAsGroup")) == (user, user)


@pytest.mark.slow
def test_removal_is_refused_while_an_experiment_of_any_namespace_uses_them(
    rendered, cluster, on_katib, run, tmp_path
):
    from retune.engines.katib import manifest

    documents = rendered["small"]
    hold(cluster.api, grants(documents, "retune-katib-config", "kubeflow"))
    place = manifest.Place(str(tmp_path / "search-1"), str(tmp_path / "data"))
    made = manifest.experiment(on_katib(), place, 1000)  # it still runs when the hook looks
    cluster.objects.create(
        "experiments", "team-b", {**made, "metadata": {**made["metadata"], "namespace": "team-b"}}
    )
    code, output = run(documents, "Job", "retune-unregister", KUBECONFIG=cluster.kubeconfig())
    assert (code, "--namespace team-b" in output) == (2, True), output
    assert suggestion_config(cluster.objects, "lhs")


def test_hooks_come_when_the_account_is_there_and_leave_when_done(rendered):
    for name, when in [("register", "post-install,post-upgrade,post-rollback"), ("unregister", "pre-delete")]:
        annotations = find(rendered["small"], "Job", f"retune-{name}")["metadata"]["annotations"]
        assert annotations == {
            "helm.sh/hook": when,
            "helm.sh/hook-delete-policy": "before-hook-creation,hook-succeeded",
        }
    for document in rendered["small"]:
        if document["kind"] in ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"):
            assert "annotations" not in document["metadata"]


# Studies on a schedule


@pytest.fixture
def pipelines(tmp_path):
    """A stand-in for Kubeflow Pipelines whose runs do not begin."""
    folder = tmp_path / "kubeflow"
    folder.mkdir()
    server, known, known.address = (found := serve(folder))[0], found[1], found[2]
    yield known
    server.shutdown()
    server.server_close()


@pytest.fixture
def scheduled(helm, pipelines, server, s3, tmp_path):
    """A function that does what the CronJob of production.yaml does, with its base and data in the bucket, and more values."""
    store.upload(ROOT / "examples/base/tiny", f"{s3}/bases/llama-2-7b")
    store.upload(ROOT / "examples/data/alpaca-demo.json", f"{s3}/data/tickets.json")
    example = yaml.safe_load((EXAMPLES / "production.yaml").read_text())["schedules"]["studies"][0]
    study = json.loads(json.dumps(example["study"]).replace("s3://ml-retune", s3))

    def run(how, **values):
        written = {
            **example,
            "study": study,
            "overrides": ["search.trials=50", "data.train=400", "data.validation=40"],
            **values,
        }
        if how == "text":
            written["study"] = "# as it is\n" + yaml.safe_dump(study)
        (tmp_path / "values.yaml").write_text(
            yaml.safe_dump({"schedules": {"host": pipelines.address, "studies": [written]}})
        )
        words = ["--values", str(tmp_path / "values.yaml"), "--set", f"storage.uri={s3}/team-a"]
        secrets = [
            secret("retune-s3", **{key: os.environ[key] for key in os.environ if key.startswith("AWS_")}),
            secret("retune-webhook", url=f"{server.url}/hook/secret"),
        ]
        documents = [*helm.render(*SETS["production"], *words), *secrets]
        pod = find(documents, "CronJob", "retune-weekly")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        code, output = kubelet.run(
            pod, pod["containers"][0], documents, tmp_path, AWS_EC2_METADATA_DISABLED="true"
        )
        return code, output, documents

    return run


@pytest.mark.slow
@pytest.mark.parametrize("how", ["keys", "text"])
def test_a_schedule_submits_the_study_with_this_clusters_settings_and_its_budget(
    scheduled, pipelines, server, s3, how
):
    """The run is terminated when the budget is used up; lock and account are in the bucket, the webhook is told."""
    code, output, documents = scheduled(how, gpuHours=0.002, days=7)
    assert code == 75, output
    assert "the budget of 0.002 GPU hours in 7 days is used up" in output
    (started,) = pipelines.runs.values()
    assert started["state"] == "CANCELED"
    (entry,) = Retunings(f"{s3}/team-a/support-bot").entries()
    assert (entry.state, entry.reasons, entry.gpu_hours > 0) == ("stopped", ["never retuned before"], True)
    assert server.texts()[0] == "support-bot: retuning 1 starts: never retuned before"
    assert "secret" not in output
    ran = json.loads(started["runtime_config"]["parameters"]["study"])
    assert started["service_account"] == "retune"
    assert (ran["name"], ran["search"]["trials"], ran["engine"]["kind"]) == ("support-bot", 50, "katib")
    assert ran["artifacts"]["uri"] == f"{s3}/team-a"
    assert ran["tracking"]["uri"] == "http://retune-mlflow.team-a.svc:5000"
    assert ran["cluster"]["secrets"] == ["retune-storage", "retune-s3", "retune-mlflow-login"]
    assert ran["cluster"]["pull_secrets"] == ["registry"]
    assert ran["cluster"]["images"] == {f: f"registry.example/ml/retune-{f}:0.1.0" for f in ("train", "eval")}
    assert (ran["cluster"]["namespace"], ran["cluster"]["queue"]) == ("team-a", "team-a")
    assert ran["cluster"]["katib"]["trial"] == "TrainJob"
    assert find(documents, "TrainingRuntime", ran["cluster"]["katib"]["runtime"])


@pytest.mark.slow
def test_a_schedule_can_be_a_dry_run_and_one_at_work_is_not_disturbed(scheduled, pipelines, s3):
    code, output, _ = scheduled("keys", dryRun=True)
    assert code == 0, output
    assert "support-bot: would start: mix, search" in output
    assert "never retuned before" in output
    retunings = Retunings(f"{s3}/team-a/support-bot", beat_seconds=0.5)
    assert retunings.entries() == []
    with retunings.acquire(1, {}, ["by hand"]):
        code, output, _ = scheduled("keys")
    assert (code, "retuning 1 has been running since" in output) == (75, True), output
    assert not pipelines.runs


def test_the_pod_of_a_schedule_mounts_what_its_study_mounts(helm, tmp_path):
    study = {
        "name": "a",
        "cluster": {"volumes": [{"claim": "bases", "mount": "/models", "read_only": "trials"}]},
    }
    for written in (study, yaml.safe_dump(study)):
        (tmp_path / "values.yaml").write_text(
            yaml.safe_dump({"schedules": {"studies": [{"name": "a", "cron": "@daily", "study": written}]}})
        )
        job = find(helm.render("--values", str(tmp_path / "values.yaml")), "CronJob", "retune-a")
        pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        assert {"name": "volume-0", "mountPath": "/models", "readOnly": True} in pod["containers"][0][
            "volumeMounts"
        ]
        assert {"name": "volume-0", "persistentVolumeClaim": {"claimName": "bases", "readOnly": True}} in pod[
            "volumes"
        ]


@pytest.mark.parametrize("text", ["  # by the team\nname: a\n", "\n\n    # ü\n\nname: a\ndata:\n  train: 10"])
def test_the_text_of_a_study_is_taken_as_it_is(helm, tmp_path, text):
    (tmp_path / "study.yaml").write_text(text)
    words = [
        "--set", "schedules.studies[0].name=a,schedules.studies[0].cron=@daily",
        "--set-file", f"schedules.studies[0].study={tmp_path}/study.yaml",
    ]  # fmt: skip
    assert (
        find(helm.render(*words), "ConfigMap", "retune-a")["data"]["study.yaml"] == text.rstrip("\n") + "\n"
    )


# MLflow


def test_the_servers_address_of_the_database_in_the_chart(rendered):
    """User, database, host and port are those of the StatefulSet and its Service; the password is the Secret's."""
    documents = rendered["small"]
    from sqlalchemy import make_url

    server = find(documents, "Deployment", "retune-mlflow")["spec"]["template"]["spec"]
    database = find(documents, "StatefulSet", "retune-postgresql")["spec"]["template"]["spec"]["containers"][
        0
    ]
    service = find(documents, "Service", "retune-postgresql")["spec"]
    made = kubelet.environment(database, documents)
    for container in [*server["initContainers"], *server["containers"]]:
        url = make_url(kubelet.environment(container, documents)["MLFLOW_BACKEND_STORE_URI"])
        assert (url.username, url.password, url.database) == tuple(
            made[f"POSTGRES_{key}"] for key in ("USER", "PASSWORD", "DB")
        )
        assert (url.drivername, url.host, url.port) == (
            "postgresql+psycopg",
            "retune-postgresql",
            service["ports"][0]["port"],
        )
    assert len(url.password) == 32


@pytest.mark.slow
def test_mlflow_serves_on_postgresql_and_s3_as_the_chart_starts_it(helm, postgres, s3, run, tmp_path):
    """All containers of the Deployment, then the checks of `helm test` as they are. Who has no account is not let in."""
    documents = helm.render(
        "--set", f"storage.uri={s3}/team,storage.endpoint={os.environ['AWS_ENDPOINT_URL']}",
        "--set", "storage.accessKeyId=test,storage.secretAccessKey=test,mlflow.database.existingSecret=db,mlflow.workers=1",
        "--set", "mlflow.allowedHosts={mlflow.team-a.example},mlflow.ingress.enabled=true,mlflow.ingress.host=m.example",
    )  # fmt: skip
    documents.append(secret("db", uri=postgres))
    pod = find(documents, "Deployment", "retune-mlflow")["spec"]["template"]["spec"]
    assert [container["name"] for container in pod["initContainers"]] == ["migrate", "login"]
    for container in pod["initContainers"]:
        code, output = kubelet.run(pod, container, documents, tmp_path)
        assert code == 0, output
    (server,) = pod["containers"]
    account = base64.b64encode(":".join(kubelet.account(documents)).encode()).decode()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert f"--port={server['ports'][0]['containerPort']}" in server["command"]
    process = kubelet.start(pod, server, documents, tmp_path, [("--port=5000", f"--port={port}")])
    try:
        address = f"http://127.0.0.1:{port}"
        probe = server["startupProbe"]["httpGet"]["path"]
        wait_for(lambda: process.poll() is not None or answers(address + probe, "10.1.2.3:5000") == 200, 300)
        assert process.poll() is None, process.stdout.read()
        api = address + "/api/2.0/mlflow/experiments/search?max_results=1"
        for host in (
            "retune-mlflow",
            "retune-mlflow:5000",
            "retune-mlflow.team-a.svc:5000",
            "retune-mlflow.team-a.svc.cluster.local:5000",
            "localhost:5000",
            "mlflow.team-a.example",
        ):
            assert answers(api, host, Authorization=f"Basic {account}") == 200, host
            assert answers(api, host) == 401, host
        assert answers(api, "evil.example", Authorization=f"Basic {account}") == 403
        # What MLflow's page asks for has this header in browsers, since it is a POST
        ajax = address + "/ajax-api/2.0/mlflow/runs/search"
        for host, origin, status in (
            ("mlflow.team-a.example", "https://mlflow.team-a.example", 200),
            ("m.example", "https://m.example", 200),
            ("m.example:8080", "http://m.example:8080", 200),
            ("m.example", "https://evil.example", 403),
            ("m.example", "https://m.example.evil.example", 403),
        ):
            asked = {
                "Authorization": f"Basic {account}",
                "Origin": origin,
                "Content-Type": "application/json",
            }
            assert answers(ajax, host, b'{"experiment_ids": ["0"]}', **asked) == status, origin
        uri = "http://retune-mlflow.team-a.svc:5000"
        code, output = run(documents, "Pod", "retune-test-mlflow", (uri, address))
        assert (code, "keeps metrics and artifacts" in output) == (0, True), output
        code, output = run(documents, "Pod", "retune-test-storage")
        assert (code, f"removed {s3}/team/helm-test-1/hello" in output) == (0, True), output
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    from retune import store

    assert [name.rpartition("/")[2] for name in store.listing(f"{s3}/team")] == ["hello.txt"]


@pytest.mark.slow
def test_mlflow_serves_in_a_cluster_of_ipv6_alone(helm, tmp_path):
    documents = helm.render("--set", "mlflow.database.existingSecret=db,mlflow.login.enabled=false")
    documents.append(secret("db", uri=f"sqlite:///{tmp_path}/mlflow.db"))
    pod = find(documents, "Deployment", "retune-mlflow")["spec"]["template"]["spec"]
    try:
        with socket.socket(socket.AF_INET6) as free:
            free.bind(("::1", 0))
            port = free.getsockname()[1]
    except OSError:
        pytest.skip("this machine has no IPv6")
    replaced = [("--port=5000", f"--port={port}")]
    process = kubelet.start(pod, pod["containers"][0], documents, tmp_path, replaced, POD_IP="fd00::7")
    try:
        page = f"http://[::1]:{port}/health"
        wait_for(lambda: process.poll() is not None or answers(page, "[fd00::7]:5000") == 200, 300)
        assert process.poll() is None, process.stdout.read()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def answers(address, host, body=None, **headers):
    try:
        request = urllib.request.Request(address, body, headers={"Host": host, **headers})
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retune-test-mlflow", "retune-test-storage"])
def test_a_check_fails_where_there_is_nothing(helm, run, name):
    documents = helm.render(
        "--set", "storage.endpoint=http://127.0.0.1:9,storage.accessKeyId=a,storage.secretAccessKey=b"
    )
    uri = "http://retune-mlflow.team-a.svc:5000"
    code, output = run(
        documents,
        "Pod",
        name,
        (uri, "http://127.0.0.1:9"),
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
        AWS_MAX_ATTEMPTS="1",
    )
    assert code == 1, output


@pytest.fixture
def private_s3(moto_server, s3, tmp_path):
    """The address of the same S3 server behind TLS, and the certificate of the authority that nobody else knows."""
    from werkzeug.serving import make_server

    key, certificate = certificate_of("127.0.0.1")
    (tmp_path / "server.key").write_bytes(key)
    (tmp_path / "server.crt").write_bytes(certificate)
    found = make_server(
        "127.0.0.1", 0, moto_server._app, threaded=True,
        ssl_context=(str(tmp_path / "server.crt"), str(tmp_path / "server.key")),
    )  # fmt: skip
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield f"https://127.0.0.1:{found.server_port}", certificate.decode()
    found.shutdown()
    thread.join()
    found.server_close()


def certificate_of(address):
    """Return a key and a certificate for a server, signed by itself, both as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "company")])
    begin = datetime.now(UTC) - timedelta(days=1)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(begin).not_valid_after(begin + timedelta(days=9))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return private, made.public_bytes(serialization.Encoding.PEM)


@pytest.mark.slow
def test_a_storage_of_a_private_authority_is_reached_with_its_certificate_alone(helm, private_s3, s3, run):
    address, certificate = private_s3
    bundle = {"kind": "ConfigMap", "metadata": {"name": "company-ca"}, "data": {"ca.crt": certificate}}
    words = [
        "--set",
        f"storage.uri={s3}/team,storage.endpoint={address},storage.accessKeyId=a,storage.secretAccessKey=b",
    ]
    for more, code in (([], 1), (["--set", "caBundle.configMap=company-ca"], 0)):
        documents = [*helm.render(*words, *more), bundle]
        found, output = run(documents, "Pod", "retune-test-storage", AWS_MAX_ATTEMPTS="1")
        assert found == code, output
        assert ("CERTIFICATE_VERIFY_FAILED" in output) == bool(code), output


def test_the_checks_are_those_that_can_be_made(rendered):
    checks = {
        name: {d["metadata"]["name"] for d in documents if d["kind"] == "Pod"}
        for name, documents in rendered.items()
    }
    assert checks["small"] == {"retune-test-storage", "retune-test-mlflow", "retune-test-katib"}
    assert checks["everything off"] == {"retune-test-storage"}
    assert (
        "https://mlflow.example"
        in find(rendered["MLflow elsewhere"], "Pod", "retune-test-mlflow")["spec"]["containers"][0]["command"]
    )
    for documents in rendered.values():
        for document in documents:
            if document["kind"] == "Pod":
                code = document["spec"]["containers"][0]["command"][2]
                assert (
                    code
                    == (
                        ROOT
                        / f"charts/retune/files/check_{document['metadata']['name'].rpartition('-')[2]}.py"
                    ).read_text()
                )
