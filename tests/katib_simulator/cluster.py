"""A simulated cluster with Katib 0.19, in this process: start one with `Cluster(folder)`, point $KUBECONFIG at `kubeconfig()`."""

import stat
import sys
import threading
from pathlib import Path
from typing import ClassVar

import yaml

from retune.engines.katib import registration
from tests import forked
from tests.katib_simulator import admission, fast_trial, services
from tests.katib_simulator.controller import Controller
from tests.katib_simulator.objects import ApiServer, Objects
from tests.katib_simulator.pods import Pods

NAMESPACE = "team-a"


class Cluster:
    """Kubernetes' API, Katib's webhooks and controllers, and what may go wrong around them.

    Args:
        folder: for the files of pods.
        real: trials run the installed `retune`; by default a stand-in that takes milliseconds.

    What may go wrong: `lose` holds the numbers of the replies that get lost, `kill_before` and `kill_under` after how
    many calls the suggestion pod is killed before the next one or while it answers that, `api.faults` what happens to
    requests of the Kubernetes API.
    """

    ours: ClassVar = {}  # running services of ours, shared by the clusters of a test process: starting one takes seconds

    def __init__(self, folder, real=False, seed=0):
        self.folder, self.seed = Path(folder), seed
        self.objects = Objects(seed)
        self.objects.reported, self.objects.stopped_early = {}, set()
        self.objects.admit = self._admit
        self.api = ApiServer(self.objects)
        self.pods = Pods(self.objects, self.folder / "pods")
        self.calls, self.answered = 0, 0
        self.lose, self.kill_before, self.kill_under = set(), set(), set()
        self.controller = Controller(self.objects, self.pods, self)
        self.restarts = 0
        if real:
            self.pods.env |= forked.Popen.program(self.folder / "bin")
            self.pods.path = f"{self.folder / 'bin'}:{self.pods.path}"
        else:
            self._install_fast_trial()
        self._config()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._reconcile, daemon=True)
        self._thread.start()

    def close(self):
        self._closed.set()
        self._thread.join()
        self.pods.close()
        for container in list(self.controller.services.values()):
            self.give_back(container)
        self.api.close()

    def kubeconfig(self):
        """Write a kubeconfig and return its path."""
        content = {
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": self.api.url}}],
            "users": [{"name": "me", "user": {}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": NAMESPACE}}],
        }  # fmt: skip
        path = self.folder / "kubeconfig"
        path.write_text(yaml.safe_dump(content))
        return str(path)

    def trials(self):
        """Katib's trials by their setting's condition, as (name, condition)."""
        from tests.katib_simulator.controller import over

        return {t["metadata"]["name"]: over(t) for t in self.objects.list("trials", NAMESPACE)}

    # What happens to the controllers.

    def before_call(self, running, key):
        if self._due(self.kill_before):
            self.restart(running, key, kill=True)
            raise ConnectionError("the suggestion pod was killed")
        if self._due(self.kill_under):
            threading.Thread(target=running[key].kill).start()

    def _due(self, numbers):
        """Return whether this number of calls has been reached; true once for each number."""
        due = [number for number in numbers if number <= self.calls]
        numbers -= set(due[:1])
        return bool(due)

    def loses_reply(self):
        self.answered += 1
        lost = self.answered in self.lose
        self.lose.discard(self.answered)
        return lost

    def restart(self, running, key, kill=False):
        """Replace a pod that is dead, or kill it first."""
        container = running.pop(key)
        self.restarts += 1
        if kill or container.alive:
            container.kill()
        self.ours.pop(getattr(container, "key", None), None)

    def container(self, entry):
        if entry["algorithmName"] in services.KATIBS:
            return services.Katibs(entry)
        if entry["command"][:2] == ["python3", "-c"]:
            return services.Script(entry, self.folder / f"{entry['algorithmName']}.log")
        key = str(entry.get("resources"))
        found = self.ours.get(key)
        if found is None or not found.alive:
            found = services.Ours(entry)
            found.key = key
            self.ours[key] = found
        return found

    def give_back(self, container):
        """End a service of Katib's; ours keep running, since they have no state."""
        if not isinstance(container, services.Ours):
            container.kill()

    def _reconcile(self):
        while not self._closed.is_set():
            version = self._version()
            self.controller.step()
            with self.objects.changed:
                if self._version() == version:
                    self.objects.changed.wait(0.05)

    def _version(self):
        with self.objects.lock:
            return max(
                (int(o["metadata"]["resourceVersion"]) for o in self.objects._stored.values()), default=0
            )

    def _admit(self, plural, new, old):
        if plural == "experiments":
            admission.admit(self.objects, new, old)

    def _config(self):
        """The `katib-config` of a fresh install, and ours registered as `retune katib register` does."""
        entries = [
            {"algorithmName": name, "image": f"ghcr.io/kubeflow/katib/suggestion-{name}"}
            for name in services.KATIBS
        ]
        stopping = [
            {"algorithmName": "medianstop", "image": "ghcr.io/kubeflow/katib/earlystopping-medianstop"}
        ]
        text = yaml.safe_dump({"runtime": {"suggestions": entries, "earlyStoppings": stopping}})
        text = registration.registered(text, registration.entries("registry.example/retune-suggestion:1"))
        self.objects.create(
            "configmaps",
            "kubeflow",
            {"metadata": {"name": "katib-config"}, "data": {"katib-config.yaml": text}},
        )

    def _install_fast_trial(self):
        """Put a `retune` before the installed one on the pods' PATH."""
        path = self.folder / "bin" / "retune"
        path.parent.mkdir(parents=True)
        path.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {fast_trial.__file__} "$@"\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        self.pods.path = f"{path.parent}:{self.pods.path}"
