"""The pod of a trial: image, GPUs, volumes, secrets, and the security context that Pod Security "restricted" requires."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kubernetes import client

from retune import cores
from retune.study import Cluster, Study
from retune.study.kubernetes import canonical_bytes, number
from retune.study.placement import Spread

CONTAINER = "training-container"
KILLED = 137
"""The exit code of a container that was ended by SIGKILL, as the kernel does when it exceeds its memory limit."""
CA_FOLDER = "/etc/retune/ca"
CA_ENV = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE")
"""Variables from which OpenSSL, requests (MLflow, hub), curl and boto3 read the file with trusted certificates."""
LABELS = {"app.kubernetes.io/name": "retune", "app.kubernetes.io/managed-by": "retune"}


def job_spec(
    study: Study, words: Sequence[str], env: Mapping[str, str], container: str = CONTAINER
) -> client.V1JobSpec:
    """Return the spec of a Job that runs a trial once.

    A pod that crashes is not started again: Katib would not notice, and a failed setting is a result. One that was
    evicted (preemption, a drained node) is, and resumes from its checkpoint. The rule for `KILLED` makes the Job's
    message name the exit code, which Katib passes on: the container mostly exceeded its memory.
    """
    hours = study.search.max_hours
    evicted = client.V1PodFailurePolicyRule(
        action="Ignore",
        on_pod_conditions=[
            client.V1PodFailurePolicyOnPodConditionsPattern(type="DisruptionTarget", status="True")
        ],
    )
    killed = client.V1PodFailurePolicyRule(
        action="FailJob",
        on_exit_codes=client.V1PodFailurePolicyOnExitCodesRequirement(
            container_name=container, operator="In", values=[KILLED]
        ),
    )
    return client.V1JobSpec(
        backoff_limit=0,
        active_deadline_seconds=math.ceil(hours * 3600) if hours else None,
        pod_failure_policy=client.V1PodFailurePolicy(rules=[evicted, killed]),
        template=client.V1PodTemplateSpec(
            # Istio's sidecar never ends, while Katib's metrics collector waits for all processes of the pod
            metadata=client.V1ObjectMeta(labels={**LABELS, "sidecar.istio.io/inject": "false"}),
            spec=_pod(study, words, env, container),
        ),
    )


def _pod(study: Study, words: Sequence[str], env: Mapping[str, str], container: str) -> client.V1PodSpec:
    cluster = study.cluster
    volumes = [
        client.V1Volume(name="tmp", empty_dir=client.V1EmptyDirVolumeSource()),
        client.V1Volume(
            name="shm",
            empty_dir=client.V1EmptyDirVolumeSource(
                medium="Memory", size_limit=canonical_bytes(cluster.shared_memory)
            ),
        ),
    ]
    mounts = [
        client.V1VolumeMount(name="tmp", mount_path="/tmp"),
        client.V1VolumeMount(name="shm", mount_path="/dev/shm"),
    ]
    for index, volume in enumerate(cluster.volumes):
        claim = client.V1PersistentVolumeClaimVolumeSource(
            claim_name=volume.claim, read_only=bool(volume.read_only) or None
        )
        volumes.append(client.V1Volume(name=f"volume-{index}", persistent_volume_claim=claim))
        mounts.append(
            client.V1VolumeMount(
                name=f"volume-{index}", mount_path=volume.mount, read_only=bool(volume.read_only) or None
            )
        )
    if cluster.ca_bundle:
        bundle = client.V1ConfigMapVolumeSource(name=cluster.ca_bundle.config_map)
        volumes.append(client.V1Volume(name="ca", config_map=bundle))
        mounts.append(client.V1VolumeMount(name="ca", mount_path=CA_FOLDER, read_only=True))
    # The root file system is read-only, so home and caches are in /tmp
    fixed = {
        "HOME": "/tmp", "XDG_CACHE_HOME": "/tmp/cache", "PYTHONUNBUFFERED": "1",
        cores.VARIABLE: str(cpu_cores(cluster)), **environment(cluster),
    }  # fmt: skip
    user = cluster.run_as_user
    return client.V1PodSpec(
        restart_policy="Never",
        service_account_name=cluster.service_account,
        automount_service_account_token=False,
        image_pull_secrets=[client.V1LocalObjectReference(name=name) for name in cluster.pull_secrets]
        or None,
        node_selector=cluster.node_selector or None,
        # Empty lists and strings are left out: Kubernetes drops them, and Katib refuses a template that changes by that
        tolerations=[
            client.V1Toleration(**{key: value or None for key, value in taint.model_dump().items()})
            for taint in cluster.tolerations
        ]
        or None,
        affinity=plain(cluster.affinity) if cluster.affinity else None,
        topology_spread_constraints=[_spread(spread) for spread in cluster.topology_spread] or None,
        priority_class_name=cluster.priority_class,
        runtime_class_name=cluster.runtime_class,
        security_context=client.V1PodSecurityContext(
            run_as_non_root=True,
            run_as_user=user,
            run_as_group=user,
            fs_group=user,
            fs_group_change_policy=user and "OnRootMismatch",
            seccomp_profile=client.V1SeccompProfile(type="RuntimeDefault"),
        ),
        containers=[
            client.V1Container(
                name=container,
                image=cluster.images.train,
                command=list(words),
                env=[
                    client.V1EnvVar(name=name, value=value or None)
                    for name, value in {**fixed, **env}.items()
                ],
                env_from=[
                    client.V1EnvFromSource(secret_ref=client.V1SecretEnvSource(name=name))
                    for name in cluster.secrets
                ]
                or None,
                resources=resources(study),
                volume_mounts=mounts,
                security_context=client.V1SecurityContext(
                    allow_privilege_escalation=False,
                    read_only_root_filesystem=True,
                    capabilities=client.V1Capabilities(drop=["ALL"]),
                ),
            )
        ],
        volumes=volumes,
    )


def resources(study: Study) -> client.V1ResourceRequirements:
    """Return a trial's requests and limits; the CPU has none unless the study sets it: it throttles a trial on an idle node."""
    cluster = study.cluster
    gpus = {cluster.gpu_resource: str(cluster.gpus)} if cluster.gpus else {}
    cpu_limit = {"cpu": cluster.cpu_limit} if cluster.cpu_limit else {}
    return client.V1ResourceRequirements(
        requests={"cpu": cluster.cpu, "memory": cluster.memory, **gpus},
        limits={**cpu_limit, "memory": cluster.memory, **gpus},
    )


def cpu_cores(cluster: Cluster) -> int:
    """Return the cores of the CPU that a pod requests. Without a limit, nothing else in the pod says how few they are."""
    return max(1, math.ceil(number(cluster.cpu)))


def environment(cluster: Cluster) -> dict[str, str]:
    """Return the environment of all pods of a study: its `env`, and the path of the certificates of `ca_bundle`."""
    bundle = cluster.ca_bundle
    trusted = dict.fromkeys(CA_ENV, f"{CA_FOLDER}/{bundle.key}") if bundle else {}
    return {**trusted, **cluster.env}


def _spread(spread: Spread) -> dict[str, Any]:
    """Return one of a pod's `topologySpreadConstraints`; without a selector it counts all pods of retune."""
    return {"labelSelector": {"matchLabels": LABELS}, **plain(spread)}


def plain(section: Any) -> dict[str, Any]:
    """Return a section with Kubernetes' own key names as JSON, without empty values."""
    content: dict[str, Any] = _without_empty(section.model_dump(exclude_none=True))
    return content


def _without_empty(node: Any) -> Any:
    if isinstance(node, dict):
        kept = {key: _without_empty(value) for key, value in node.items()}
        return {
            key: value
            for key, value in kept.items()
            if value != [] and (value != {} or key == "labelSelector")
        }
    return [_without_empty(part) for part in node] if isinstance(node, list) else node
