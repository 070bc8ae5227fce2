"""Jobs and their pods: Katib's pod webhook, and a container's command run for real in `sh`.

After pkg/webhook/v1beta1/pod of kubeflow/katib v0.19.0 (references: katib.md §3.4). A container has no mounts here:
paths are those of this machine, and `/var/log/katib` is a folder of the pod's own.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.katib_simulator import collector
from tests.katib_simulator.objects import Refused, now

EARLY_STOP = (
    "if test -f {dir}/$$$$.pid && [ $(head -n 1 {dir}/$$.pid) = early-stopped ]; then echo Training Container was Early "
    "Stopped; else echo Training Container was Failed; exit 1; fi"
)
TRIAL = ("kubeflow.org/v1beta1", "Trial")


class Denied(Exception):
    """The pod webhook refuses the pod; the Job never gets one."""


class Pods:
    """Runs the Jobs and TrainJobs of a cluster, each in a thread of its own."""

    def __init__(self, objects, folder):
        self.objects, self.folder = objects, Path(folder)
        self.istio = True  # injects a proxy that never ends into each pod that does not forbid it
        self.evicted, self.stopping, self.running, self.denied, self.logs = set(), set(), {}, {}, {}
        self.made = {}  # by Job: labels and command of its last pod
        self.path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.env = {}
        self._closed = False
        objects.deleted.append(self._forget)

    def close(self):
        self._closed = True
        for name in list(self.running):
            self._kill(name)

    def start(self, plural, job):
        """Begin to run a Job."""
        threading.Thread(target=self._run, args=(plural, job), daemon=True).start()

    def evict(self, name):
        """Drain the node: the pod is killed with the condition DisruptionTarget."""
        self.evicted.add(name)
        self._kill(name)

    def kill(self, name):
        """Delete the pod of a Job."""
        self._kill(name)

    def _kill(self, name):
        process = self.running.get(name)
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)

    def _forget(self, plural, gone):
        if plural in ("jobs", "trainjobs"):
            self._kill(gone["metadata"]["name"])

    def _run(self, plural, job):
        name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
        try:
            spec = job["spec"] if plural == "jobs" else self._from_runtime(job)
        except Denied as error:
            self.denied[name] = str(error)
            return
        trial = self._trial(job)
        tries = spec.get("backoffLimit", 6) + 1
        while tries and not self._closed:
            try:
                ended = self._pod(name, namespace, spec["template"], trial)
            except Denied as error:  # the Job controller tries for ever
                self.denied[name] = str(error)
                return
            if ended is None:  # killed with its Job, or it never ends
                return
            if ended != 0 and name in self.evicted:
                self.evicted.discard(name)
                rules = spec.get("podFailurePolicy", {}).get("rules", [])
                if any(
                    r["action"] == "Ignore" and r["onPodConditions"][0]["type"] == "DisruptionTarget"
                    for r in rules
                ):
                    continue
            tries = 0 if ended == 0 else tries - 1
        self._settle(plural, namespace, name, ended, _policy(spec, namespace, name, ended))

    def _settle(self, plural, namespace, name, code, policy):
        done = {"type": "Complete" if code == 0 else "Failed", "status": "True", "lastTransitionTime": now()}
        if code == 0:
            done |= {"reason": "CompletionsReached", "message": "Reached expected number of succeeded pods"}
        else:
            done |= policy or {
                "reason": "BackoffLimitExceeded",
                "message": "Job has reached the specified backoff limit",
            }
        job = self.objects.find(plural, namespace, name)
        if job is not None and not self._closed:
            job["status"] = {"conditions": [done]}
            try:
                self.objects.replace(plural, job, status_only=True)
            except Refused:
                self._settle(plural, namespace, name, code, policy)

    def _trial(self, job):
        for owner in job["metadata"].get("ownerReferences", []):
            if (owner["apiVersion"], owner["kind"]) == TRIAL:
                return self.objects.find("trials", job["metadata"]["namespace"], owner["name"])
        return None

    def _from_runtime(self, job):
        """The one job `node` of the TrainJob's runtime, with the TrainJob's own image, command and env."""
        trainer, runtime = job["spec"]["trainer"], job["spec"]["runtimeRef"]
        found = self.objects.get("trainingruntimes", job["metadata"]["namespace"], runtime["name"])
        jobs = found["spec"]["template"]["spec"]["replicatedJobs"]
        spec = next(j["template"]["spec"] for j in jobs if j["name"] == "node")
        node = spec["template"]["spec"]["containers"][0]
        node |= {
            "image": trainer["image"],
            "command": trainer["command"],
            "env": node.get("env", []) + trainer["env"],
        }
        others = [j["name"] for j in jobs if j["name"] != "node"]
        if others:  # trap 16: an initializer's pod has no container `node`, and Katib's webhook sees every pod of a trial
            raise Denied(f"Unable to find primary container node in mutated pod containers of {others}")
        return spec

    def _pod(self, name, namespace, template, trial):
        """Run one pod; return its exit code."""
        container = self._primary(template["spec"]["containers"], trial)
        folder = self.folder / namespace / f"{name}-{len(list(self.folder.rglob(f'{name}-*')))}"
        folder.mkdir(parents=True)
        env = {"PATH": self.path, "HOME": str(folder), **self.env, **self._env(namespace, container)}
        log, command = (
            folder / "metrics.log",
            list(container.get("command", [])) + list(container.get("args", [])),
        )
        if trial is not None:
            env["KATIB_TRIAL_NAME"] = name
            if not container.get("command"):  # trap 15
                raise Denied(
                    f"Failed to get container command: image {container['image']} is on no registry here"
                )
            command = _wrapped(command, log, bool(trial["spec"].get("earlyStoppingRules")))
        labels = dict(template.get("metadata", {}).get("labels", {}))
        if trial is not None:
            labels |= {"katib.kubeflow.org/trial": name, **trial["metadata"]["labels"]}
        self.made[name] = {
            "labels": labels,
            "command": [word.replace(str(log.parent), "/var/log/katib") for word in command],
        }
        command = [_expanded(word, env) for word in command]
        if trial is not None and self.istio and labels.get("sidecar.istio.io/inject") != "false":
            self.denied[name] = (
                "running for ever: istio-proxy does not end, and the collector waits for all processes"
            )
            return None
        code = self._execute(name, command, env, folder, trial, log)
        if trial is not None and code == 0:
            return self._collect(name, trial, folder, log)
        self._forget_process(name)
        return code

    def _primary(self, containers, trial):
        wanted = trial["spec"]["primaryContainerName"] if trial else containers[0]["name"]
        found = [container for container in containers if container["name"] == wanted]
        if not found:
            raise Denied(f"Unable to find primary container {wanted} in mutated pod containers")
        return found[0]

    def _env(self, namespace, container):
        found = {}
        for source in container.get("envFrom", []):
            secret = self.objects.get("secrets", namespace, source["secretRef"]["name"])
            found |= secret["stringData"]
        return found | {
            entry["name"]: entry["value"] for entry in container.get("env", []) if entry["name"] != "HOME"
        }

    def _execute(self, name, command, env, folder, trial, log):
        with (folder / "container.log").open("w") as output:
            process = subprocess.Popen(
                command, cwd=folder, env=env, stdout=output, stderr=output, start_new_session=True
            )
        self.running[name], self.logs[name] = process, folder
        (folder / "pid").write_text(str(process.pid))
        rules = list(trial["spec"].get("earlyStoppingRules", [])) if trial else []
        while process.poll() is None:
            if rules and log.exists() and _broken(rules, log.read_text(), trial):
                rules = []
                self._stop_early(process, folder)
                self.stopping.add(name)
            time.sleep(0.005)
        return None if self._closed else process.returncode

    def _stop_early(self, process, folder):
        (folder / f"{process.pid}.pid").write_text("early-stopped")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 1, f"Multiple children processes are not supported: {children}"
        os.kill(int(children[0]), signal.SIGTERM)

    def _collect(self, name, trial, folder, log):
        """Report the metrics; if the main process left no mark, the collector fails, and so does the pod."""
        mark = folder / f"{(folder / 'pid').read_text()}.pid"
        state = mark.read_text().strip() if mark.exists() else ""
        if state not in ("completed", "early-stopped"):
            return 1
        spec = trial["spec"]["objective"]
        metrics = [spec["objectiveMetricName"], *spec.get("additionalMetricNames", [])]
        text = log.read_text(errors="replace") if log.exists() else ""
        self.objects.reported[trial["metadata"]["namespace"], name] = collector.observation_log(text, metrics)
        if name in self.stopping:  # the shell has since written "completed" over the mark
            self.objects.stopped_early.add((trial["metadata"]["namespace"], name))
        self._forget_process(name)
        return 0

    def _forget_process(self, name):
        self.running.pop(name, None)


def _policy(spec, namespace, name, code):
    """Return the Job controller's message if a rule of the Job's failure policy matches an exit code."""
    code = 128 - code if code < 0 else code  # a process that a signal ended
    for number, rule in enumerate(spec.get("podFailurePolicy", {}).get("rules", [])):
        codes = rule.get("onExitCodes")
        if codes and rule["action"] == "FailJob" and code in codes["values"]:
            said = f"Container {codes['containerName']} for pod {namespace}/{name}-x failed with exit code {code} matching FailJob rule at index {number}"
            return {"reason": "PodFailurePolicy", "message": said}
    return None


def _wrapped(words, log, early_stopping):
    """The command as the webhook rewrites it, for the StdOut collector."""
    shell, words = (
        (words[:2], words[2:]) if words[:2] in (["sh", "-c"], ["bash", "-c"]) else (["sh", "-c"], words)
    )
    words = [*words, f"1>{log} 2>&1"]
    if early_stopping:
        words += ["||", EARLY_STOP.format(dir=log.parent)]
    words += ["&&", f"echo completed > {log.parent}/$$$$.pid"]
    return [*shell, " ".join(words)]


def _expanded(word, env):
    """Kubernetes' own expansion of command and args: $(NAME), and $$ for a dollar."""
    return re.sub(r"\$\$|\$\(([^)]*)\)", lambda m: "$" if m[0] == "$$" else env.get(m[1], m[0]), word)


def _broken(rules, text, trial):
    """Return whether the log so far meets all early-stopping rules, by the best value so far."""
    spec = trial["spec"]["objective"]
    found = [
        float(m[2]) for m in collector.FILTER.finditer(text) if m[1] == spec["objectiveMetricName"] and m[2]
    ]
    better = min if spec["type"] == "minimize" else max
    for rule in rules:
        enough = len(found) >= max(int(rule.get("startStep", 0)), 1)
        best = better(found[: int(rule.get("startStep", 0)) or None]) if enough else None
        if best is None or not (
            best > float(rule["value"]) if rule["comparison"] == "greater" else best < float(rule["value"])
        ):
            return False
    return True
