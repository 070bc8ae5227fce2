"""Objects as YAML that kubectl, Kubeflow Pipelines and PyYAML read alike."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

# Kubernetes' Go reader (sigs.k8s.io/yaml) takes more bare words for numbers and booleans than PyYAML, which leaves `1e-05`,
# `0o17` and `y` bare: whatever looks like a number, and the one-letter booleans of YAML 1.1.
_READ_OTHERWISE = re.compile(r"[-+]?(\.?[0-9][0-9_.eE+-]*|0[xXoObB][0-9a-fA-F_]*)|[yYnN]")


class _Dumper(yaml.SafeDumper):
    """Without anchors, and with quotes around what another reader would not take for text."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = '"' if _READ_OTHERWISE.fullmatch(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def as_yaml(documents: Sequence[dict[str, Any]], sort_keys: bool = False) -> str:
    """Return objects as YAML, one document each."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=sort_keys, width=1000)
