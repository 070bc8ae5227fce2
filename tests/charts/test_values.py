"""values.yaml, values.schema.json and README.md have the same keys, and the schema accepts no others."""

import functools
import json
import subprocess
import sys

import pytest
import yaml

from tests.charts.helm import CHART, SETS
from tests.conftest import ROOT

pytest_plugins = ["tests.charts.helm"]
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())


@pytest.fixture(scope="module")
def readme():
    """The module charts/readme.py."""
    sys.path.insert(0, str(ROOT / "charts"))
    import readme

    yield readme
    sys.path.remove(str(ROOT / "charts"))


OF_A_PARENT = {"global", "enabled"}
"""What a chart that contains this one passes to it; it has no value of its own for them."""


def objects(schema, path=""):
    """Every schema of an object inside a schema, with its path."""
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield path, schema
        for key, value in schema.items():
            yield from objects(value, f"{path}/{key}")
    elif isinstance(schema, list):
        for number, value in enumerate(schema):
            yield from objects(value, f"{path}/{number}")


def keys(schema, above=""):
    """The keys that a schema lists, to the depth that it lists them."""
    for name, value in schema.get("properties", {}).items():
        if "properties" in value:
            yield from keys(value, f"{above}{name}.")
        else:
            yield f"{above}{name}"


def test_the_schema_holds_the_keys_of_values_and_no_other(readme):
    documented = [value.key for value in readme.values((CHART / "values.yaml").read_text())]
    assert sorted(keys(SCHEMA)) == sorted([*documented, *OF_A_PARENT])


def test_the_readme_is_what_values_say():
    found = subprocess.run(
        [sys.executable, "charts/readme.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr


def test_a_key_without_a_comment_is_found(readme):
    text = (CHART / "values.yaml").read_text()
    with pytest.raises(ValueError, match=r"\['images.new'\]"):
        readme.values(text.replace("images:\n", "images:\n  new: 1\n", 1))


def test_an_undocumented_key_changes_the_readme(readme):
    text = (CHART / "values.yaml").read_text()
    more = readme.values(text.replace("images:\n", "images:\n  # -- New\n  new: [1]\n", 1))
    assert "| `images.new` | `[1]` | New |" in readme.table(more)
    assert readme.table(more) not in (CHART / "README.md").read_text()


def test_every_object_of_the_schema_is_closed():
    """Except Kubernetes' own objects (NetworkPolicy rules, affinity, topology spread), studies, which `retune` checks, and a parent's."""
    open_ = {path for path, schema in objects(SCHEMA) if "additionalProperties" not in schema}
    kubernetes = {
        "networkPolicy/properties/benchmarkEgress/items",
        "trainJob/properties/topologySpreadConstraints/items",
    }
    kubernetes |= {f"{part}/properties/affinity" for part in ("trainJob", "mlflow", "watch", "postgresql")}
    assert open_ == {f"/properties/{path}" for path in kubernetes | {"global"}}
    assert {schema["additionalProperties"] for _, schema in objects(SCHEMA) if "properties" in schema} == {
        False
    }


@pytest.mark.parametrize(
    "section",
    [".".join(path) for path in [[], *[[k] for k, v in VALUES.items() if v and isinstance(v, dict)]]],
)
def test_a_misspelt_key_is_refused(helm, section):
    key = f"{section}.misspelt" if section else "misspelt"
    found = helm.template("--set", f"{key}=1")
    assert "Additional property misspelt is not allowed" in found.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "word",
    [
        "images.pullPolicy=Sometimes", "images.registry=a/", "storage.uri=/tmp", "storage.endpoint=minio:9000", "katib.namespace=Kubeflow",
        "study.serviceAccount.name=a_b", "trainJob.memory=32GB", "trainJob.gpus=-1", "trainJob.volumes[0].claim=a", "mlflow.workers=0",
        "mlflow.externalUri=mlflow", "mlflow.service.type=ExternalName", "mlflow.service.port=70000", "mlflow.podDisruptionBudget.maxUnavailable=2",
        "mlflow.resources.limit.memory=1Gi", "postgresql.user=0", "networkPolicy.storage.cidrs={10.0.0.1}", "networkPolicy.storage.ports={https}",
        "networkPolicy.storage.ports=", "schedules.studies[0].name=a", "schedules.host=ml-pipeline", "commonLabels.a=1",
        "commonLabels.helm\\.sh/chart=mine", "mlflow.allowedHosts={a b}", "models.persistence.accessModes={RWX}",
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused(helm, word):
    found = helm.template("--set", word)
    assert "values don't meet the specifications of the schema" in found.stderr


@pytest.mark.parametrize("cron", ["0 3 * * 1", "@weekly", "*/5 0-6 1,15 * MON"])
def test_times_of_cron_are_taken(helm, cron):
    study = ["--set", "schedules.studies[0].name=a,schedules.studies[0].study.name=b"]
    assert helm.render(*study, "--set-string", "schedules.studies[0].cron=" + cron.replace(",", "\\,"))
    assert helm.template(*study, "--set-string", "schedules.studies[0].cron=0 3 * *").returncode


# For `test_every_value_changes_what_is_rendered`: values under which each other value plays a part, …
BASE = {
    "trainJob": {"enabled": True}, "models": {"persistence": {"enabled": True}}, "resourceQuota": {"enabled": True},
    "kueue": {"queue": "q", "clusterQueue": "c"}, "networkPolicy": {"apiServerCidrs": ["10.0.0.1/32"]}, "postgresql": {"existingSecret": "p"},
    "schedules": {"studies": [{"name": "a", "cron": "@daily", "study": {"name": "a"}}]}, "storage": {"accessKeyId": "a", "secretAccessKey": "b"},
}  # fmt: skip
# … what some need besides, …
BESIDES = {
    "storage.existingSecret": {"storage": {"accessKeyId": "", "secretAccessKey": ""}},
    "mlflow.externalUri": {"mlflow": {"enabled": False}},
    **{
        f"mlflow.ingress.{key}": {"mlflow": {"ingress": {"enabled": True, "host": "a.example"}}}
        for key in ("className", "host", "annotations", "tlsSecret")
    },
    "mlflow.ingress.enabled": {"mlflow": {"ingress": {"host": "a.example"}}},
    **{
        f"mlflow.httpRoute.{key}": {
            "mlflow": {
                "httpRoute": {
                    "enabled": key != "enabled",
                    "parentRefs": [{"name": "a"}],
                    "hostnames": ["a.example"],
                }
            }
        }
        for key in ("enabled", "parentRefs", "hostnames")
    },
    **{
        f"watch.{key}": {"watch": {"enabled": True}}
        for key in (
            "resources",
            "service.type",
            "service.port",
            "nodeSelector",
            "tolerations",
            "affinity",
            "priorityClassName",
        )
    },
    "networkPolicy.watchFrom": {"watch": {"enabled": True}},
    **{
        f"watch.ingress.{key}": {
            "watch": {"enabled": True, "ingress": {"enabled": key != "enabled", "host": "a.example"}}
        }
        for key in ("enabled", "className", "host", "annotations", "tlsSecret")
    },
    **{
        f"watch.httpRoute.{key}": {
            "watch": {
                "enabled": True,
                "httpRoute": {
                    "enabled": key != "enabled",
                    "parentRefs": [{"name": "a"}],
                    "hostnames": ["a.example"],
                },
            }
        }
        for key in ("enabled", "parentRefs", "hostnames")
    },
    **{
        f"monitoring.serviceMonitor.{key}": {
            "watch": {"enabled": True},
            "monitoring": {"serviceMonitor": {"enabled": key != "enabled"}},
        }
        for key in ("enabled", "labels", "interval", "prometheusNamespace")
    },
    "monitoring.dashboard.labels": {"monitoring": {"dashboard": {"enabled": True}}},
    **{
        f"monitoring.podMonitor.{key}": {"monitoring": {"podMonitor": {"enabled": True}}}
        for key in ("labels", "interval", "prometheusNamespace")
    },
    "katib.register.unregister": {"katib": {"register": {"unregister": "always"}}},
    "caBundle.key": {"caBundle": {"configMap": "a"}},
    "mlflow.database.key": {"mlflow": {"database": {"existingSecret": "d"}}},
}
# … and another value for those whose kind a simple one does not fit.
OTHER = {
    "images.pullSecrets": ["x"], "images.pullPolicy": "Always", "storage.uri": "s3://x", "storage.endpoint": "http://x",
    "models.persistence.accessModes": ["ReadOnlyMany"], "trainJob.volumes": [{"claim": "x", "mount": "/x"}],
    "mlflow.externalUri": "http://x", "mlflow.allowedHosts": ["x"], "mlflow.service.type": "NodePort",
    "networkPolicy.storage.cidrs": ["10.0.0.0/8"], "networkPolicy.storage.ports": [1], "networkPolicy.apiServerCidrs": ["10.0.0.0/8"],
    "networkPolicy.apiServerPorts": [1], "networkPolicy.mlflowFrom": ["x"], "networkPolicy.benchmarkEgress": [{"to": [{"podSelector": {}}]}],
    "schedules.host": "http://x", "schedules.studies": [], "resourceQuota.hard": {"pods": "1"},
    **{key: {"limits": {"memory": "9Gi"}} for key in ("schedules.resources", "mlflow.resources", "postgresql.resources", "watch.resources")},
    "watch.service.type": "NodePort", "watch.ingress.host": "b.example", "watch.httpRoute.parentRefs": [{"name": "b"}],
    "watch.httpRoute.hostnames": ["b.example"], "networkPolicy.watchFrom": ["x"], "monitoring.serviceMonitor.interval": "1m",
    "trainJob.gpuResource": "amd.com/gpu", "podSecurity.runAsUser": 1, "postgresql.user": 1, "katib.register.except": ["gp"], "katib.register.unregister": "auto",
    "networkPolicy.dns.ports": [1], "networkPolicy.dns.cidrs": ["10.0.0.0/8"], "mlflow.ingress.host": "b.example",
    "mlflow.httpRoute.parentRefs": [{"name": "b"}], "mlflow.httpRoute.hostnames": ["b.example"], "monitoring.podMonitor.interval": "1m",
    **{f"{part}.affinity": {"nodeAffinity": {}} for part in ("trainJob", "mlflow", "watch", "postgresql")},
    **{f"images.digests.{image}": "sha256:" + "a" * 64 for image in ("train", "eval", "suggestion")},
    **dict.fromkeys(["mlflow.podDisruptionBudget.maxUnavailable", "postgresql.podDisruptionBudget.maxUnavailable"], 0),
}  # fmt: skip


def another(key, default):
    """A value other than the one in effect."""
    match default:
        case _ if key in OTHER:
            return OTHER[key]
        case bool():
            return not at(merged(VALUES, BASE), key)
        case int():
            return default + 1
        case dict():
            return {"x": "y"}
        case list():
            return [{"key": "x"}]
    return "9Gi" if key.endswith(("size", "emory", "cpu")) else "other"


def merged(one, two):
    return {**one, **{k: merged(one.get(k, {}), v) if isinstance(v, dict) else v for k, v in two.items()}}


def at(content, key):
    for part in key.split("."):
        content = content[part]
    return content


@pytest.mark.slow
def test_every_value_changes_what_is_rendered(helm, readme, tmp_path):
    """A value without an effect would mislead whoever sets it."""

    @functools.cache  # most keys start from the same values
    def rendered(text):
        (tmp_path / "values.json").write_text(text)
        found = helm.template("--values", str(tmp_path / "values.json"))
        assert found.returncode == 0, (text, found.stderr)
        return found.stdout

    idle = []
    for key, default, _ in readme.values((CHART / "values.yaml").read_text()):
        start, change = merged(BASE, BESIDES.get(key, {})), another(key, default)
        for part in reversed(key.split(".")):
            change = {part: change}
        if rendered(json.dumps(merged(start, change))) == rendered(json.dumps(start)):
            idle.append(key)
    assert idle == []


def test_the_examples_are_a_start_for_everyone():
    assert {"small", "production"} <= set(SETS)
    assert {path.stem for path in (ROOT / "charts/examples").iterdir()} == {"small", "production"}
