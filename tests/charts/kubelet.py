"""A container of a pod as a process here: its env and command resolved as the kubelet does, its volumes as folders."""

import base64
import os
import re
import subprocess
import sys

_PROGRAMS = {
    "retune": [sys.executable, "-m", "retune"],
    "python3": [sys.executable],
    "mlflow": [sys.executable, "-m", "mlflow"],
}


def environment(container, documents):
    """Return a container's env: `envFrom` first, then `env`, where `$(NAME)` stands for what was set before."""
    secrets = {d["metadata"]["name"]: d["data"] for d in documents if d["kind"] == "Secret"}
    env = {}
    for source in container.get("envFrom", []):
        for key, value in secrets[source["secretRef"]["name"]].items():
            env[key] = base64.b64decode(value).decode()
    for entry in container.get("env", []):
        if "fieldRef" in (source := entry.get("valueFrom", {})):
            assert source["fieldRef"] == {"fieldPath": "status.podIP"}
            env[entry["name"]] = "127.0.0.1"
        elif source:
            ref = source["secretKeyRef"]
            env[entry["name"]] = base64.b64decode(secrets[ref["name"]][ref["key"]]).decode()
        else:
            env[entry["name"]] = expand(entry["value"], env)
    return env


def account(documents):
    """Return user and password of the chart's MLflow."""
    (found,) = [
        d["data"]
        for d in documents
        if d["kind"] == "Secret" and d["metadata"]["name"] == "retune-mlflow-login"
    ]
    return [base64.b64decode(found[f"MLFLOW_TRACKING_{key}"]).decode() for key in ("USERNAME", "PASSWORD")]


def expand(text, env):
    """Replace `$(NAME)`; a name that is not set stays as it is written."""
    return re.sub(r"\$\((\w+)\)", lambda found: env.get(found[1], found[0]), text)


def start(pod, container, documents, folder, replaced=(), **more):
    """Start a container; its volumes are folders in `folder`.

    Args:
        pod: its spec. container: one of the pod's. documents: the release, for its Secrets and ConfigMaps.
        replaced: pairs of words of the command and their replacements here. more: further environment variables.

    """
    env = environment(container, documents)
    words = [expand(word, env) for word in container["command"]]
    places = {mount["mountPath"]: folder / mount["name"] for mount in container["volumeMounts"]}
    for mount in container["volumeMounts"]:
        (volume,) = [v for v in pod["volumes"] if v["name"] == mount["name"]]
        _fill(places[mount["mountPath"]], volume, documents)
    below = re.compile(f"(^|=)({'|'.join(map(re.escape, places))})(?=/|$)")
    words = [below.sub(lambda found: f"{found[1]}{places[found[2]]}", word) for word in words]
    env = {key: below.sub(lambda found: f"{found[1]}{places[found[2]]}", value) for key, value in env.items()}
    for old, new in replaced:
        words = [new if word == old else word for word in words]
    assert words[0] in _PROGRAMS, words[0]
    work = {key: os.environ[key] for key in ("PATH", "LANG", "SSL_CERT_FILE") if key in os.environ}
    return subprocess.Popen(
        [*_PROGRAMS[words[0]], *words[1:]], cwd=folder, env={**work, "OMP_NUM_THREADS": "1", **env, **more},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def _fill(place, volume, documents):
    place.mkdir(exist_ok=True)
    if "configMap" in volume:
        name = volume["configMap"]["name"]
        (found,) = [d for d in documents if d["kind"] == "ConfigMap" and d["metadata"]["name"] == name]
        for key, text in found["data"].items():
            (place / key).write_text(text)
    for source in volume.get("projected", {}).get("sources", []):
        token = source["serviceAccountToken"]
        (place / token["path"]).write_text("token for " + token["audience"])


def run(pod, container, documents, folder, replaced=(), **more):
    """Run a container to its end; return its exit code and what it printed."""
    process = start(pod, container, documents, folder, replaced, **more)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output
