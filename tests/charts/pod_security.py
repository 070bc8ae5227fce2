"""Pod Security "restricted", with "baseline" in it: what the admission plugin would refuse a pod for.

After https://kubernetes.io/docs/concepts/security/pod-security-standards/ (Kubernetes 1.31).
"""

_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
_SECCOMP = ({"type": "RuntimeDefault"},)


def violations(spec):
    """Return what in a pod's spec is against the standard."""
    pod = spec.get("securityContext", {})
    found = [f"spec.{key}" for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    found += [f"volume {v['name']}" for v in spec.get("volumes", []) if set(v) - {"name"} - _VOLUMES]
    found += [f"sysctls {pod['sysctls']}"] if pod.get("sysctls") else []
    for container in [
        *spec.get("initContainers", []),
        *spec["containers"],
        *spec.get("ephemeralContainers", []),
    ]:
        own = container.get("securityContext", {})
        effective = {**pod, **own}
        wrong = {
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is not False,
            "capabilities.drop": "ALL" not in own.get("capabilities", {}).get("drop", []),
            "capabilities.add": bool(set(own.get("capabilities", {}).get("add", [])) - {"NET_BIND_SERVICE"}),
            "privileged": bool(own.get("privileged")),
            "procMount": own.get("procMount", "Default") != "Default",
            "runAsNonRoot": effective.get("runAsNonRoot") is not True,
            "runAsUser": effective.get("runAsUser") == 0,
            "seccompProfile": effective.get("seccompProfile") not in _SECCOMP,
            "hostPort": any(port.get("hostPort") for port in container.get("ports", [])),
        }
        found += [f"{container['name']}: {rule}" for rule, broken in wrong.items() if broken]
    return found
