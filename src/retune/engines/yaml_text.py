"""YAML that kubectl, Kubeflow Pipelines and PyYAML read as the same values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

# Kubernetes' Go parser (sigs.k8s.io/yaml) reads more unquoted texts as numbers and booleans than PyYAML, which would write
# `1e-05`, `0o17` and `y` without quotes. So everything that looks like a number is quoted, and the one-letter booleans.
_AMBIGUOUS = re.compile(r"[-+]?(\.?[0-9][0-9_.eE+-]*|0[xXoObB][0-9a-fA-F_]*)|[yYnN]")


class _Dumper(yaml.SafeDumper):
    """Writes no anchors, and quotes texts that another parser would read as something else."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = '"' if _AMBIGUOUS.fullmatch(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def as_yaml(documents: Sequence[dict[str, Any]], sort_keys: bool = False) -> str:
    """Return objects as YAML, one document each."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=sort_keys, width=1000)
