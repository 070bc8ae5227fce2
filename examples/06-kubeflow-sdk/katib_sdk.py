"""Katib's older SDK (`pip install 'kubeflow-katib==0.19.*' 'kubernetes<31'`): send an Experiment of ours, and read how it stands.

    retune render experiment study.yaml > experiment.yaml
    python katib_sdk.py experiment.yaml

It pins protobuf<5, which excludes the pipelines' SDK, so it has an environment of its own. With `kubernetes` 37 it cannot read
an Experiment back.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml
from kubeflow.katib import KatibClient

if __name__ == "__main__":
    content = yaml.safe_load(Path(sys.argv[1]).read_text())
    namespace = content["metadata"]["namespace"]
    client = KatibClient(namespace=namespace)
    made = client.custom_api.create_namespaced_custom_object(
        "kubeflow.org", "v1beta1", namespace, "experiments", content
    )
    experiment = client.get_experiment(made["metadata"]["name"], namespace)
    print(experiment.metadata.name, experiment.spec.algorithm.algorithm_name)
