"""The schema refuses, before anything is created, the values that the API server of Kubernetes 1.34 refused.

The values were found by a sweep: each key of the chart with many values, rendered, and sent to a real API server by
`kubectl create --dry-run=server`. A release whose last object is refused is left half installed.
"""

import copy
import json
import re

import jsonschema
import pytest
import yaml

from retune.engines.katib import OURS
from tests.charts.helm import CHART

pytest_plugins = ["tests.charts.helm"]
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
CHECKER = jsonschema.Draft7Validator(SCHEMA)

LONG = "a" * 254
NAMES = ["A", "a_b", "-a", "a-", "a..b", "a-.b", "a/b", "a b", "é", LONG]
NAMES_OF_64 = ["a" * 64]
KEYS = ["bad key", "a/b/c", "x" * 64, "é", "", "/a", f"ex.io/{'x' * 64}", "a/"]
ANNOTATIONS = [{key: "v"} for key in KEYS]
LABELS = [*ANNOTATIONS, {"A.io/x": "v"}, *[{"a": value} for value in ("b c", "x" * 64, "é", "-b", "b.")]]
TOLERATIONS = [
    [each]
    for each in (
        {},
        {"value": "b"},
        {"operator": "Equal"},
        {"operator": "Equal", "key": "", "value": "b"},
        {"operator": "Exists", "key": "a", "value": "b"},
        {"operator": "Exists", "key": "a b"},
        {"operator": "Equal", "key": "a", "value": "b c"},
        {"operator": "Exists", "key": "a", "effect": "NoSchedule", "tolerationSeconds": 5},
        {"operator": "Exists", "key": "a", "tolerationSeconds": 5},
    )
]
RESOURCES = [
    {"limits": each}
    for each in (
        {"bad name": "1"},
        {"gpu": "1"},
        {"nvidia.com/gpu": "1.5"},
        {"nvidia.com/gpu": "500m"},
        {"memory": "0.5"},
        {"memory": "100m"},
        {"memory": 0},
    )
]
BYTES = ["0", 0, "00", 1.5, "0.5", "100m", "-1Gi", "32GB", "0Gi"]
HUGE = [2**31, 2**63]
CIDRS = [
    [each]
    for each in ("999.0.0.0/8", "10.0.0.1/33", "::1/129", "010.0.0.0/8", "10.0.0.0/08", "1.2.3/8", "a/1", "10.0.0.1", "abcd/8")
]  # fmt: skip
CRONS = [
    "99 * * * *",
    "a b c d e",
    "@reboot",
    "0 3 * * 7",
    "0 24 * * *",
    "*/0 * * * *",
    "0 0 0 * *",
    "0 0 * 13 *",
    "0 3 * *",
]
IMAGES = ["a b", " a", "a:", "a@sha256:1"]
SECRET_KEYS = ["a b", "..", ".", "..a", "é", "a/b", LONG]
HOSTS = ["a..b", "1.2.3.4", "x.y-.z", "a_b", "*", "A.b"]
WRONG = {
    "images.registry": ["a b", "https://a", "a//b", "a/", "A/B"],
    "images.tag": ["a b", "-a", "a/b", "a:b", "a" * 129],
    "images.pullSecrets": [["a", "a"], *([name] for name in NAMES)],
    "podSecurity.runAsUser": HUGE,
    "study.serviceAccount.annotations": ANNOTATIONS,
    "storage.existingSecret": NAMES,
    "models.persistence.size": BYTES,
    "models.persistence.storageClass": NAMES,
    "models.persistence.accessModes": [["ReadWriteOncePod", "ReadWriteMany"], ["ReadWriteMany"] * 2],
    "katib.register.except": [["nope"], ["tpe"]],
    "katib.register.timeoutSeconds": HUGE,
    "katib.register.ttlSeconds": HUGE,
    "trainJob.memory": BYTES,
    "trainJob.sharedMemory": BYTES,
    "trainJob.gpus": HUGE,
    "trainJob.gpuResource": ["gpu", "a b", "nvidia.com/", "cpu"],
    "trainJob.env": [{key: "v"} for key in ("a b", "1A", "", "A=B", "é")],
    "caBundle.configMap": NAMES,
    "caBundle.key": SECRET_KEYS,
    "trainJob.runtimeClassName": NAMES,
    "trainJob.volumes": [[{"claim": "a", "mount": mount}] for mount in ("/", "/a:b", "a")],
    "mlflow.image": IMAGES,
    "mlflow.login.existingSecret": NAMES,
    "mlflow.database.existingSecret": NAMES,
    "mlflow.database.key": SECRET_KEYS,
    "postgresql.image": [*IMAGES, ""],
    "postgresql.user": HUGE,
    "postgresql.existingSecret": NAMES,
    "postgresql.key": SECRET_KEYS,
    "postgresql.persistence.size": BYTES,
    "postgresql.persistence.storageClass": NAMES,
    "networkPolicy.storage.cidrs": CIDRS,
    "networkPolicy.apiServerCidrs": CIDRS,
    "networkPolicy.dns.cidrs": CIDRS,
    "networkPolicy.storage.ports": [[443, 443], [0], [65536]],
    "networkPolicy.storage.namespace": [*NAMES, *NAMES_OF_64],
    "schedules.namespace": [*NAMES, *NAMES_OF_64],
    "schedules.webhook.existingSecret": NAMES,
    "schedules.webhook.key": SECRET_KEYS,
    "schedules.resources": RESOURCES,
    "schedules.studies": [
        *[[{"name": "a", "study": "name: b", "cron": cron}] for cron in CRONS],
        *[[{"name": "a", "study": "name: b", "cron": "@daily", "timeZone": zone}] for zone in ("", "Local", "local", "europe/berlin")],
        *[[{"name": "a", "study": "name: b", "cron": "@daily", "timeoutSeconds": number}] for number in HUGE],
    ],
    "monitoring.dashboard.labels": LABELS,
    "kueue.queue": [*NAMES, *NAMES_OF_64],
    "kueue.clusterQueue": NAMES,
    "resourceQuota.hard": [{key: "1"} for key in ("bad name", "requests.gpu", "nonsense")] + [{"pods": "1.5"}],
    "commonLabels": LABELS,
    **{f"{part}.nodeSelector": LABELS for part in ("mlflow", "watch", "postgresql", "trainJob")},
    **{f"{part}.tolerations": TOLERATIONS for part in ("mlflow", "watch", "postgresql", "trainJob")},
    **{f"{part}.priorityClassName": NAMES for part in ("mlflow", "watch", "postgresql", "trainJob")},
    **{f"{part}.resources": RESOURCES for part in ("mlflow", "watch", "postgresql")},
    **{f"{part}.ingress.host": HOSTS for part in ("mlflow", "watch")},
    **{f"{part}.ingress.annotations": ANNOTATIONS for part in ("mlflow", "watch")},
    **{f"{part}.ingress.{key}": NAMES for part in ("mlflow", "watch") for key in ("className", "tlsSecret")},
}  # fmt: skip

# What the API server took, and what people write.
RIGHT = {
    "katib.register.except": [list(OURS)],
    "images.registry": ["", "localhost", "localhost:5000", "registry.example:5000/ml/team_a", "10.0.0.1:5000/a", "Registry.example/a"],
    "images.tag": ["", "0.1.0", "v2", "2026_11-A"],
    "podSecurity.runAsUser": [None, 1, 2**31 - 1],
    "study.serviceAccount.annotations": [{"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/a b"}, {"A.io/x": ""}],
    "models.persistence.size": ["1.5Gi", "500Gi", 1073741824, "1Ti", "2Pi", "0.5Gi"],
    "models.persistence.storageClass": ["", "a.b", "fast-ssd"],
    "trainJob.gpuResource": ["nvidia.com/gpu", "nvidia.com/mig-1g.5gb", "amd.com/gpu"],
    "trainJob.volumes": [[{"claim": "a", "mount": mount}] for mount in ("/models", "/models/", "/a b/c")],
    "trainJob.env": [{"HF_ENDPOINT": "https://a", "a.b-c": ""}],
    "mlflow.image": ["", "docker.io/library/postgres:17.6-bookworm", "localhost:5000/a:b", f"a@sha256:{'a' * 64}", "mlflow"],
    "networkPolicy.storage.cidrs": [["0.0.0.0/0", "10.0.32.0/24", "::/0", "2001:db8::/32", "::ffff:10.0.0.0/128"]],
    "mlflow.ingress.host": ["", "a.example", "*.a.example", "localhost", "1.example"],
    "mlflow.tolerations": [
        [{"operator": "Exists"}, {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}, {"key": "a"},
         {"key": "a", "operator": "Equal", "value": "b"}, {"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}],
    ],
    "mlflow.resources": [
        {"requests": {"cpu": "0.5", "memory": "1.5Gi", "ephemeral-storage": "1Gi"}, "limits": {"nvidia.com/gpu": "1", "hugepages-2Mi": "4Mi"}},
        {"requests": {"cpu": 1, "memory": 1073741824}, "limits": {"nvidia.com/gpu": 1}},
    ],
    "mlflow.nodeSelector": [{"kubernetes.io/arch": "amd64", "a": "", "B_c": "d.E-f"}],
    "postgresql.key": ["password", "tls.key", ".hidden"],
    "schedules.studies": [
        [{"name": "a", "study": "name: b", "cron": cron}]
        for cron in ("0 3 * * 1", "*/5 0-6 1,15 * MON", "@daily", "@every 1h", "5/10 * * jan-mar sun,Sat", "00 03 01 01 0", "0-30/5 * ? * *")
    ] + [[{"name": "a", "study": "name: b", "cron": "@daily", "timeZone": zone}] for zone in ("UTC", "Europe/Berlin", "America/Argentina/Ushuaia", "Etc/GMT+5")],
    "resourceQuota.hard": [
        {"requests.nvidia.com/gpu": "4", "requests.cpu": "32", "limits.memory": "1Gi", "pods": 10, "count/jobs.batch": "5",
         "fast.storageclass.storage.k8s.io/requests.storage": "1Gi", "persistentvolumeclaims": "10", "requests.storage": "1Ti"},
    ],
}  # fmt: skip


def with_value(path, value):
    """The chart's values with one of them changed."""
    changed = copy.deepcopy(VALUES)
    place = changed
    *above, last = path.split(".")
    for key in above:
        place = place[key]
    assert last in place, path
    place[last] = value
    return changed


def problems(values):
    return [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in CHECKER.iter_errors(values)
    ]


def test_the_values_of_the_chart_itself_are_right():
    assert problems(VALUES) == []


@pytest.mark.parametrize("path", WRONG)
def test_what_kubernetes_refuses_is_refused_before(path):
    taken = [value for value in WRONG[path] if not problems(with_value(path, value))]
    assert taken == []


@pytest.mark.parametrize("path", RIGHT)
def test_what_kubernetes_takes_is_taken(path):
    refused = [(value, problems(with_value(path, value))) for value in RIGHT[path]]
    assert [each for each in refused if each[1]] == []


def test_helm_reads_the_schema_as_these_tests_do(helm, tmp_path):
    """One value of each kind: Helm is written in Go, whose regular expressions differ from Python's."""
    file = tmp_path / "values.yaml"
    for table, code in ((WRONG, 1), (RIGHT, 0)):
        for path in ("images.registry", "mlflow.tolerations", "mlflow.nodeSelector", "mlflow.ingress.host", "schedules.studies",
                     "networkPolicy.storage.cidrs", "resourceQuota.hard", "models.persistence.size"):  # fmt: skip
            if path in table:
                file.write_text(yaml.safe_dump(with_value(path, table[path][0])))
                found = helm.template("--values", str(file))
                assert found.returncode == code, (path, table[path][0], found.stderr[-500:])


def test_every_text_of_the_schema_has_a_rule():
    """A new key of free text could again produce an object that is refused. The list has the keys that may be any text."""
    free = {
        "storage.accessKeyId",
        "storage.secretAccessKey",
        "trainJob.env.*",
        "schedules.tokenAudience",
        "storage.region",
    }
    free |= {f"{part}.httpRoute.parentRefs.{key}" for part in ("mlflow", "watch") for key in ("group", "kind", "name", "namespace", "sectionName")}  # fmt: skip
    free |= {f"{part}.annotations.*" for part in ("study.serviceAccount", "mlflow.ingress", "watch.ingress")}
    free |= {"schedules.studies.study"}
    assert set(_texts(SCHEMA)) == free


def _texts(schema, path=""):
    """Paths of the strings that neither pattern nor enumeration limits."""
    if "$ref" in schema:
        schema = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]]
    for part in schema.get("allOf", ()):
        if "$ref" in part:
            return
    if "string" in schema.get("type", ()) and not {"pattern", "enum", "const"} & set(schema):
        yield path
    for key, value in schema.get("properties", {}).items():
        yield from _texts(value, f"{path}.{key}".lstrip("."))
    if isinstance(schema.get("items"), dict):
        yield from _texts(schema["items"], path)
    if isinstance(schema.get("additionalProperties"), dict):
        yield from _texts(schema["additionalProperties"], f"{path}.*")
    for value in schema.get("patternProperties", {}).values():
        yield from _texts(value, f"{path}.*")


def test_patterns_are_ones_that_go_and_editors_read():
    text = json.dumps(SCHEMA)
    assert not re.search(r"\(\?[^:i]", text), "no looking ahead in Go"


@pytest.mark.parametrize("section", ["mlflow", "watch", "postgresql", "schedules"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("limits.memory=64Mi", "requests.memory` must not be above its limit, but got"),
        ("requests.memory=3G", "requests.memory` must not be above its limit, but got 3G and"),
        ("limits.cpu=50m", "requests.cpu` must not be above its limit"),
        ("requests.nvidia\\.com/gpu=1", "requests.nvidia.com/gpu` needs the same under `limits`"),
        ("limits.memory=1.5Gi", None),
    ],
)  # fmt: skip
def test_a_request_above_its_limit_is_refused(helm, section, words, said):
    """Users often set only one of the two; the other is then the chart's default."""
    study = "watch.enabled=true,schedules.studies[0].name=a,schedules.studies[0].cron=@daily,schedules.studies[0].study.name=b"
    found = helm.template("--set", study, "--set", f"{section}.resources.{words}")
    assert (found.returncode == 0) == (said is None), found.stderr
    assert said is None or f"`{section}.resources.{said}" in found.stderr
