"""A stand-in for the Kubernetes API, used by Helm itself: discovery, storage of objects, and hooks that are run.

A Job or Pod runs as a process when it is created (see `kubelet`), and has ended when the response is sent.
"""

import json
from urllib.parse import urlsplit

import yaml

from tests.charts import kubelet
from tests.katib_simulator.objects import ApiServer, Objects, _send

# group/version -> plural -> (kind, whether it lies in a namespace)
RESOURCES = {
    "v1": {
        "configmaps": ("ConfigMap", True), "namespaces": ("Namespace", False), "persistentvolumeclaims": ("PersistentVolumeClaim", True),
        "pods": ("Pod", True), "resourcequotas": ("ResourceQuota", True), "secrets": ("Secret", True), "serviceaccounts": ("ServiceAccount", True),
        "services": ("Service", True),
    },
    "apps/v1": {"deployments": ("Deployment", True), "statefulsets": ("StatefulSet", True)},
    "batch/v1": {"cronjobs": ("CronJob", True), "jobs": ("Job", True)},
    "discovery.k8s.io/v1": {"endpointslices": ("EndpointSlice", True)},
    "kueue.x-k8s.io/v1beta1": {"localqueues": ("LocalQueue", True)},
    "monitoring.coreos.com/v1": {"servicemonitors": ("ServiceMonitor", True)},
    "networking.k8s.io/v1": {"networkpolicies": ("NetworkPolicy", True)},
    "policy/v1": {"poddisruptionbudgets": ("PodDisruptionBudget", True)},
    "rbac.authorization.k8s.io/v1": {
        "clusterrolebindings": ("ClusterRoleBinding", False), "clusterroles": ("ClusterRole", False), "rolebindings": ("RoleBinding", True),
        "roles": ("Role", True),
    },
    "trainer.kubeflow.org/v1alpha1": {"trainingruntimes": ("TrainingRuntime", True)},
}  # fmt: skip
_RAN = {
    True: {"jobs": {"conditions": [{"type": "Complete", "status": "True"}]}, "pods": {"phase": "Succeeded"}},
    False: {"jobs": {"conditions": [{"type": "Failed", "status": "True"}]}, "pods": {"phase": "Failed"}},
}


class Kubernetes(ApiServer):
    """The API of a cluster that has Katib's configuration and nothing else; `ran` is what hooks printed, by name."""

    def __init__(self, folder, config):
        super().__init__(Objects())
        self.folder, self.ran = folder, {}
        self._make("v1", "configmaps", "kubeflow", "katib-config", data={"katib-config.yaml": config})
        self._make("v1", "services", "default", "kubernetes", spec={"clusterIPs": ["10.96.0.1"]})
        addresses = [{"addresses": ["172.18.0.2"]}]
        self._make("discovery.k8s.io/v1", "endpointslices", "default", "kubernetes", endpoints=addresses)
        self.kubeconfig = str(folder / "kubeconfig")
        (folder / "kubeconfig").touch(mode=0o600)
        (folder / "kubeconfig").write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1", "kind": "Config", "current-context": "here", "users": [{"name": "me", "user": {}}],
                    "clusters": [{"name": "here", "cluster": {"server": self.url}}],
                    "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "team-a"}}],
                }
            )
        )  # fmt: skip

    def _make(self, api, plural, namespace, name, **content):
        kind, _ = RESOURCES[api][plural]
        meta = {"metadata": {"name": name}}
        self.objects.create(plural, namespace, {"apiVersion": api, "kind": kind, **meta, **content})

    def there(self):
        """Return the keys (plural, namespace, name) of all stored objects except Helm's own records."""
        return {
            key for key, found in self.objects._stored.items() if found.get("type") != "helm.sh/release.v1"
        }

    def _answer(self, handler):
        path = urlsplit(handler.path).path.strip("/")
        if path == "openapi/v2":  # an empty document: nothing is validated here
            handler.send_response(200)
            handler.send_header("Content-Length", "0")
            return handler.end_headers()
        found = self._discovery(path)
        if found is None:
            return super()._answer(handler)
        return _send(handler, 200, found)

    def _discovery(self, path):
        if path == "version":
            return {"major": "1", "minor": "31", "gitVersion": "v1.31.0"}
        if path == "api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "apis":
            groups = []
            for api in list(RESOURCES)[1:]:
                version = {"groupVersion": api, "version": api.partition("/")[2]}
                groups.append(
                    {"name": api.partition("/")[0], "versions": [version], "preferredVersion": version}
                )
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        api = path.removeprefix("apis/").removeprefix("api/")
        if api in RESOURCES and path.startswith("api"):
            verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
            listed = [
                {"name": plural, "singularName": "", "namespaced": inside, "kind": kind, "verbs": verbs}
                for plural, (kind, inside) in RESOURCES[api].items()
            ]
            return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api, "resources": listed}
        return None

    def _carry_out(self, method, match, query, body):
        if method == "POST" and match["plural"] in ("jobs", "pods"):
            body["status"] = self._run(match["plural"], body)
        if method == "PUT":  # what the client may leave out stays
            old = self.objects.get(match["plural"], match["namespace"], match["name"])["metadata"]
            kept = {key: old[key] for key in ("uid", "creationTimestamp", "namespace")}
            body["metadata"] = {**body["metadata"], **kept}
        code, reply = super()._carry_out(method, match, query, body)
        if method == "GET" and not match["name"]:
            kind, _ = RESOURCES.get(reply["apiVersion"], {}).get(match["plural"], ("", True))
            reply["kind"] = f"{kind}List"
        if method == "GET" and "fieldSelector" in query:
            name = query["fieldSelector"][0].removeprefix("metadata.name=")
            reply["items"] = [item for item in reply["items"] if item["metadata"]["name"] == name]
        return code, reply

    def _run(self, plural, body):
        spec = body["spec"] if plural == "pods" else body["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        secrets = [{**found, "kind": "Secret"} for found in self.objects.list("secrets")]
        folder = self.folder / body["metadata"]["name"]
        folder.mkdir(exist_ok=True)
        code, output = kubelet.run(spec, container, secrets, folder, KUBECONFIG=self.kubeconfig)
        self.ran.setdefault(body["metadata"]["name"], []).append(output)
        return json.loads(json.dumps(_RAN[code == 0][plural]))
