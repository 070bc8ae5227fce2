"""Write the manifests that are the chart's, and the example Experiments.

`python k8s/generate.py` writes them, `--check` fails if they differ; a test calls it. `--helm PATH` names Helm, by
default the one in PATH. What is only in kustomize (namespace, overlays) is written by hand.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner

from retune.cli import cli

HERE = Path(__file__).resolve().parent
STUDIES, KATIB = "retune", "kubeflow"  # namespaces
# File -> study and arguments of `retune render`
EXPERIMENTS = {
    "kind-nomad": ("kind", ["experiment"]),
    "kind-tpe": ("kind", ["experiment", "search.algorithm=tpe"]),
    "gpu-nomad": ("gpu", ["experiment"]),
    "gpu-nomad-trainjob": ("gpu", ["experiment", "cluster.katib.trial=TrainJob"]),
    "gpu-runtime": ("gpu", ["runtime", "cluster.katib.trial=TrainJob"]),
}

Object = dict[str, Any]


def from_chart(helm: str, namespace: str) -> list[Object]:
    """Return the objects of the chart without what is Helm's: its tests, labels and annotations."""
    chart = HERE.parent / "charts/retune"
    oldest = yaml.safe_load((chart / "Chart.yaml").read_text())["kubeVersion"].removeprefix(">=")
    words = [
        helm,
        "template",
        "retune",
        str(chart),
        "--namespace",
        namespace,
        "--skip-tests",
        "--set",
        "katib.register.unregister=always",
        "--kube-version",
        oldest,
    ]
    done = subprocess.run(
        [*words, "--values", str(HERE / "values.yaml")], check=True, stdout=subprocess.PIPE, text=True
    )
    found = [_without_helm(document) for document in yaml.safe_load_all(done.stdout) if document]
    for document in found:
        if not document["kind"].startswith("Cluster"):
            # Explicit, because kustomize only then recognises a binding's account when it moves both to another namespace.
            document["metadata"].setdefault("namespace", namespace)
    return found


def _without_helm(found: Object) -> Object:
    def clean(node: Any) -> Any:
        if isinstance(node, list):
            return [clean(part) for part in node]
        if not isinstance(node, dict):
            return node
        kept = {key: clean(value) for key, value in node.items() if not key.startswith("helm.sh/")}
        if kept.get("app.kubernetes.io/managed-by") == "Helm":
            del kept["app.kubernetes.io/managed-by"]
        if "annotations" in kept and not kept["annotations"]:
            del kept["annotations"]
        return kept

    cleaned: Object = clean(found)
    return cleaned


def manifests(helm: str) -> Iterator[tuple[str, list[Object]]]:
    """Yield each file of objects from the chart: what a namespace of studies needs, and the registration, once a cluster."""

    def component(found: Object) -> str:
        label: str = found["metadata"]["labels"]["app.kubernetes.io/component"]
        return label

    yield (
        "base/retune.yaml",
        [
            found
            for found in from_chart(helm, STUDIES)
            if component(found)
            not in ("katib-config", "storage", "test")  # the Secret of storage is each overlay's
        ],
    )
    registration = [found for found in from_chart(helm, KATIB) if component(found) == "katib-config"]
    yield "katib-config/access/access.yaml", [found for found in registration if found["kind"] != "Job"]
    for verb in ("register", "unregister"):
        jobs = [found for found in registration if found["metadata"]["name"] == f"retune-{verb}"]
        yield f"katib-config/{verb}/job.yaml", jobs


def experiment(study: str, words: list[str]) -> str:
    """Return what `retune render` prints for a study of experiments/."""
    verb, *overrides = words
    arguments = ["render", verb, str(HERE / f"experiments/study-{study}.yaml"), *overrides]
    if verb == "experiment":
        place = f"s3://retune/artifacts/{study}"
        arguments += ["--folder", f"{place}/search-1", "--data", f"{place}/data-1"]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    if result.exit_code:
        raise SystemExit(result.output)
    return result.stdout


def files(helm: str) -> dict[Path, str]:
    """Return every generated file with its content."""
    found = {}
    for name, documents in manifests(helm):
        text = "# Written by `python k8s/generate.py` from the chart.\n"
        found[HERE / name] = text + yaml.safe_dump_all(documents, sort_keys=False, width=110)
    for name, (study, words) in EXPERIMENTS.items():
        line = f"retune render {words[0]} k8s/experiments/study-{study}.yaml {' '.join(words[1:])}".rstrip()
        text = f"# Written by `python k8s/generate.py` with `{line}`.\n"
        found[HERE / f"experiments/{name}.yaml"] = text + experiment(study, words)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only say which files differ")
    parser.add_argument("--helm", default="helm", help="the program")
    given = parser.parse_args()
    wanted = files(given.helm)
    stale = [file for file, text in wanted.items() if not file.exists() or file.read_text() != text]
    if given.check:
        names = [str(file.relative_to(HERE)) for file in stale]
        sys.exit(f"run `python k8s/generate.py`: {names} differ" if stale else 0)
    for file in stale:
        file.write_text(wanted[file])
