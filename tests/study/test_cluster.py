"""The section `cluster`: values that Kubernetes would refuse are refused first, and each value reaches every kind of pod."""

import json

import pytest
import yaml

from retune.engines.katib import manifest
from retune.engines.katib.pods import CA_ENV, CA_FOLDER
from retune.errors import InputError
from retune.launch import package as packages
from retune.launch.package import package
from retune.study.kubernetes import number
from tests.engines.katib.test_manifest import PLACE
from tests.engines.katib.test_manifest import study as katib_study
from tests.kubernetes_schemas import VERSIONS, problems
from tests.launch.test_package import CLUSTER

REQUIRED, PREFERRED = (
    "requiredDuringSchedulingIgnoredDuringExecution",
    "preferredDuringSchedulingIgnoredDuringExecution",
)
NODES = {"matchExpressions": [{"key": "gpu", "operator": "In", "values": ["h100"]}]}
OTHERS = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "db"}}}
AFFINITY = {
    "nodeAffinity": {
        REQUIRED: {"nodeSelectorTerms": [NODES]},
        PREFERRED: [{"weight": 5, "preference": NODES}],
    },
    "podAffinity": {PREFERRED: [{"weight": 7, "podAffinityTerm": OTHERS}]},
    "podAntiAffinity": {REQUIRED: [OTHERS]},
}
EVERYTHING = [
    "cluster.env={HF_ENDPOINT: 'https://hub.example', HF_HUB_OFFLINE: 1}", "cluster.secret_keys=[TEAM_TOKEN]",
    "cluster.ca_bundle={config_map: company-ca, key: bundle.pem}", f"cluster.affinity={json.dumps(AFFINITY)}",
    "cluster.service_account=team-a.tuner", "cluster.pull_secrets=[registry]", "cluster.run_as_user=null",
    "cluster.cpu=4", "cluster.memory=1.5Gi",
]  # fmt: skip
TRIALS_ONLY = [
    "cluster.priority_class=batch-low", "cluster.runtime_class=nvidia",
    "cluster.topology_spread=[{topologyKey: topology.kubernetes.io/zone}]",
]  # fmt: skip


def objects():
    """The three kinds that hold a trial's pod."""
    wanted = katib_study(*EVERYTHING, *TRIALS_ONLY)
    train = katib_study(*EVERYTHING, *TRIALS_ONLY, "cluster.katib.trial=TrainJob")
    return (
        manifest.experiment(wanted, PLACE, 10),
        manifest.experiment(train, PLACE, 10),
        manifest.runtime(train),
    )


def test_everything_reaches_the_pods_of_trials():
    experiment, train, runtime = objects()
    job = experiment["spec"]["trialTemplate"]["trialSpec"]
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    for pod in (job["spec"]["template"]["spec"], node["template"]["spec"]["template"]["spec"]):
        assert (pod["priorityClassName"], pod["runtimeClassName"]) == ("batch-low", "nvidia")
        assert pod["serviceAccountName"] == "team-a.tuner"
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        assert pod["affinity"] == AFFINITY
        assert pod["topologySpreadConstraints"] == [
            {
                "maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "retune", "app.kubernetes.io/managed-by": "retune"}},
            }
        ]  # fmt: skip
        assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        (container,) = pod["containers"]
        env = {entry["name"]: entry["value"] for entry in container["env"]}
        assert (env["HF_ENDPOINT"], env["HF_HUB_OFFLINE"]) == ("https://hub.example", "1")
        assert {env[name] for name in CA_ENV} == {f"{CA_FOLDER}/bundle.pem"}
        assert {"name": "ca", "mountPath": CA_FOLDER, "readOnly": True} in container["volumeMounts"]
        assert {"name": "ca", "configMap": {"name": "company-ca"}} in pod["volumes"]
    env = {
        e["name"]: e["value"] for e in train["spec"]["trialTemplate"]["trialSpec"]["spec"]["trainer"]["env"]
    }
    assert env["HF_ENDPOINT"] == "https://hub.example"
    assert env["RETUNE_HP_RANK"] == "${trialParameters.rank}"


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: "{}.{}".format(*version))
def test_kubernetes_takes_it(version):
    assert [problem for made in objects() for problem in problems(made, version)] == []


@pytest.mark.slow
def test_everything_that_kfp_knows_reaches_the_steps(small):
    spec, platform = yaml.safe_load_all(package("search", small(*CLUSTER, *EVERYTHING)))
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for label, executor in spec["deploymentSpec"]["executors"].items():
        env = {entry["name"]: entry["value"] for entry in executor["container"]["env"]}
        assert (env["HF_ENDPOINT"], env["SSL_CERT_FILE"]) == (
            "https://hub.example",
            f"{CA_FOLDER}/bundle.pem",
        )
        pod = pods[label]
        assert pod["configMapAsVolume"] == [
            {"configMapName": "company-ca", "configMapNameParameter": {"runtimeValue": {"constant": "company-ca"}},
             "mountPath": CA_FOLDER, "optional": False}
        ]  # fmt: skip
        assert pod["imagePullSecret"][0]["secretName"] == "registry"
        assert pod["securityContext"] == {"runAsNonRoot": True}
        named = {entry["secretKey"] for entry in pod["secretAsEnv"][0]["keyToEnv"]}
        assert {"HF_ENDPOINT", "HTTPS_PROXY", "no_proxy", "TEAM_TOKEN", "AWS_ACCESS_KEY_ID"} <= named
    (nodes,) = pods["exec-benchmark"]["nodeAffinity"]
    assert nodes["nodeAffinityJson"]["runtimeValue"]["constant"] == AFFINITY["nodeAffinity"]
    assert pods["exec-benchmark"]["podAffinity"] == [
        {"topologyKey": "kubernetes.io/hostname", "matchPodLabels": {"app": "db"}, "weight": 7},
        {"topologyKey": "kubernetes.io/hostname", "matchPodLabels": {"app": "db"}, "anti": True},
    ]
    resources = spec["deploymentSpec"]["executors"]["exec-benchmark"]["container"]["resources"]
    assert (resources["resourceCpuRequest"], resources["resourceMemoryLimit"]) == ("4000m", str(3 << 29))


@pytest.mark.slow
def test_what_kfp_cannot_give_to_a_step_is_refused_or_said(small):
    wanted = small(*CLUSTER, *TRIALS_ONLY)
    with pytest.raises(InputError, match=r"no field for \['cluster.priority_class', 'cluster.runtime_class'"):
        package("search", wanted)
    under_katib = small(*CLUSTER, *TRIALS_ONLY, "engine.kind=katib")
    assert package("search", under_katib)
    assert packages.trials_only(under_katib) == [
        "cluster.priority_class", "cluster.runtime_class", "cluster.topology_spread",
    ]  # fmt: skip
    assert packages.trials_only(small(*CLUSTER)) == []
    mount = small().model.base.rpartition("/examples/")[0]
    for volumes, message in {
        f"[{{claim: a, mount: {mount}, read_only: true}}]": "read_only: trials",
        f"[{{claim: a.b, mount: {mount}}}]": "no dots",
        f"[{{claim: a, mount: {mount}}}, {{claim: a, mount: /b}}]": "mounted twice",
    }.items():
        with pytest.raises(InputError, match=message):
            package("search", small(*CLUSTER, f"cluster.volumes={volumes}"))
    assert package(
        "search", small(*CLUSTER, f"cluster.volumes=[{{claim: a, mount: {mount}, read_only: trials}}]")
    )


REFUSED = {
    "namespace=Team": "namespace: must be lower-case letters",
    "namespace=a.b": "namespace: must be lower-case letters",
    "queue=a_b": "queue: must be lower-case",
    "service_account=Team": "service_account: must be",
    "secrets=[S3]": "secrets.0: must be",
    "secrets=[a, a]": "`secrets` must differ",
    "pull_secrets=[a_b]": "pull_secrets.0: must be",
    "images.train=Registry/Retune": "images.train: must be an image",
    "images.train=''": "images.train: must be an image",
    "images.eval='a b'": "images.eval: must be an image",
    "gpu_resource=gpu": "gpu_resource: must be an extended resource",
    "gpu_resource=kubernetes.io/gpu": "gpu_resource: must be an extended resource",
    "gpus=-1": "gpus: ",
    "cpu=0": "cpu: must be above 0",
    "cpu=four": "cpu: must be a quantity",
    "cpu=-1": "cpu: must be a quantity",
    "cpu_limit=3500m": "`cpu_limit` must be at least `cpu`, 4, but is 3500m",
    "cpu_limit=0": "cpu_limit: must be above 0",
    "memory=32": "memory: must be 6Mi or more",
    "memory=32GB": "memory: must be a quantity",
    "shared_memory=0": "shared_memory: must be above 0",
    "volumes=[{claim: A, mount: /a}]": "volumes.0.claim: must be",
    "volumes=[{claim: a, mount: a}]": "volumes.0.mount: must be an absolute path",
    "volumes=[{claim: a, mount: '/a:b'}]": "volumes.0.mount: must be an absolute path",
    "volumes=[{claim: a, mount: /a/../b}]": "volumes.0.mount: must be an absolute path",
    "volumes=[{claim: a, mount: /}]": "volumes.0.mount: must be a folder of its own",
    "volumes=[{claim: a, mount: /tmp/}]": "volumes.0.mount: must be a folder of its own",
    "volumes=[{claim: a, mount: /dev/shm}]": "volumes.0.mount: must be a folder of its own",
    "volumes=[{claim: a, mount: /opt/venv/lib}]": "volumes.0.mount: must be a folder of its own",
    "volumes=[{claim: a, mount: /m}, {claim: b, mount: /m/}]": "`volumes.*.mount` must differ",
    "node_selector={gpu type: a}": "node_selector.gpu type: must be a label's key",
    "node_selector={gpu: 'a b'}": "node_selector.gpu: must be a label's value",
    "node_selector={/a: b}": "must be a label's key",
    "tolerations=[{key: gpu, operator: Exists, value: a}]": "tolerations.0: `operator: Exists` takes no `value`",
    "tolerations=[{operator: Equal}]": "tolerations.0: `operator: Equal` needs a `key`",
    "tolerations=[{value: a}]": "tolerations.0: `operator: Equal` needs a `key`",
    "tolerations=[{key: a b}]": "tolerations.0.key: must be a label's key",
    "tolerations=[{key: a, value: 'b c'}]": "tolerations.0.value: must be a label's value",
    "tolerations=[{key: a, effect: Never}]": "tolerations.0.effect: ",
    "priority_class=High_Priority": "priority_class: must be",
    "runtime_class='a b'": "runtime_class: must be",
    "run_as_user=0": "run_as_user: ",
    "secret_keys=['1A']": "secret_keys.0: must be an environment variable",
    "env={1A: b}": "must be an environment variable",
    "env={A=B: b}": "must be an environment variable",
    "env={A: true}": "env.A: ",
    "env={AWS_SECRET_ACCESS_KEY: b}": "belong in a Secret",
    "env={RETUNE_HP_RANK: '8'}": "must not set what the pods set",
    "env={A: '${trialParameters.rank}'}": "Katib would replace",
    "ca_bundle={config_map: A}": "ca_bundle.config_map: must be",
    "ca_bundle={config_map: a, key: a/b}": "ca_bundle.key: must be a key",
    "katib.runtime=A": "katib.runtime: must be",
    "topology_spread=[{topologyKey: a b}]": "topology_spread.0.topologyKey: must be",
    "topology_spread=[{topologyKey: a, maxSkew: 2147483648}]": "topology_spread.0.maxSkew: ",
    "topology_spread=[{topologyKey: a, whenUnsatisfiable: DoNotSchedule, minDomains: 2147483648}]": "topology_spread.0.minDomains: ",
    "affinity={nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: "
    "[{key: a, operator: In, values: [b c]}]}]}}}": "`values` must be a label's value",
    "topology_spread=[{topologyKey: a, maxSkew: 0}]": "topology_spread.0.maxSkew: ",
    "topology_spread=[{topologyKey: a, minDomains: 2}]": "`minDomains` needs",
    "topology_spread=[{topologyKey: a}, {topologyKey: a}]": "must differ",
    "affinity={nodeAffinty: {}}": "affinity.nodeAffinty: unknown key",
    f"affinity={{nodeAffinity: {{{REQUIRED}: {{nodeSelectorTerms: []}}}}}}": "nodeSelectorTerms: ",
    f"affinity={{nodeAffinity: {{{PREFERRED}: [{{weight: 0, preference: {json.dumps(NODES)}}}]}}}}": "weight: ",
    f"affinity={{nodeAffinity: {{{PREFERRED}: [{{weight: 1, preference: {{matchExpressions: [{{key: a, operator: In}}]}}}}]}}}}": "needs `values`",
    f"affinity={{podAffinity: {{{REQUIRED}: [{{labelSelector: {{}}}}]}}}}": "topologyKey: this key is required",
}  # fmt: skip


@pytest.mark.parametrize("override", REFUSED)
def test_what_kubernetes_would_refuse_is_refused_first(small, override):
    with pytest.raises(InputError) as caught:
        small(f"cluster.{override}")
    assert REFUSED[override] in "\n".join(caught.value.problems)
    assert all("pydantic" not in problem for problem in caught.value.problems)


def test_the_shorthand_of_a_toleration_is_one_that_kubernetes_takes(small):
    given = "cluster.tolerations=[{key: gpu, value: a100, effect: NoSchedule}, {key: gpu}, {}]"
    found = [(taint.operator, taint.key, taint.value) for taint in small(given).cluster.tolerations]
    assert found == [("Equal", "gpu", "a100"), ("Exists", "gpu", None), ("Exists", None, None)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("500m", "0.5"),
        ("4", "4"),
        (".5", "0.5"),
        ("1e3", "1000"),
        ("1.5Gi", str(3 << 29)),
        ("2P", "2000000000000000"),
    ],
)
def test_quantities(text, value):
    assert number(text) == type(number(text))(value)


def test_a_deadline_is_a_second_at_least(small):
    wanted = katib_study("search.max_hours=0.0001")
    job = manifest.experiment(wanted, PLACE, 10)["spec"]["trialTemplate"]["trialSpec"]
    assert job["spec"]["activeDeadlineSeconds"] == 1
    with pytest.raises(InputError, match=r"search.max_hours"):
        small("search.max_hours=1e300")
