"""Registration of retune's algorithms in Katib: one entry each in the YAML text of the ConfigMap `katib-config`.

The text is edited, not rewritten, so that other entries, unknown keys, comments and order stay as they are.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import yaml

from retune import extensions
from retune.engines.katib import OURS
from retune.errors import InputError

CONFIG_MAP, KEY = "katib-config", "katib-config.yaml"
COMMAND = ["retune", "serve"]


def entries(
    image: str, service_account: str | None = None, user: int | None = 10001, metrics_port: int | None = None
) -> list[dict[str, Any]]:
    """Return the entries of all our algorithms, including those of packages that are installed here.

    Memory is set because Katib's default of 100Mi is too little for any solver, and the security context because Katib
    sets none, while Pod Security "restricted" requires one.
    """
    return [
        {
            "algorithmName": name,
            "image": image,
            "imagePullPolicy": "IfNotPresent",
            "command": COMMAND + (["--metrics-port", str(metrics_port)] if metrics_port else []),
            "resources": {
                "requests": {"cpu": "100m", "memory": "512Mi"},
                "limits": {"cpu": "2", "memory": "2Gi"},
            },
            "securityContext": {
                "runAsNonRoot": True,
                **({"runAsUser": user, "runAsGroup": user} if user is not None else {}),
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            **({"serviceAccountName": service_account} if service_account else {}),
        }
        for name in (*OURS, *extensions.names("algorithms"))
    ]


def registered(text: str, wanted: Sequence[dict[str, Any]]) -> str:
    """Return the configuration with `wanted` in place of our entries; the same text if nothing changes.

    Raises:
        InputError: if the text is not Katib's configuration, or has foreign entries under our names.

    """
    existing = suggestions(text)
    names = {entry["algorithmName"] for entry in wanted}
    others = [e for e in existing if e.get("algorithmName") in names and not is_ours(e)]
    if others:
        raise InputError(
            [
                f"an algorithm has one entry, but {e['algorithmName']!r} exists already, with the image {e.get('image')!r}: "
                f"rename or remove it, or leave ours out by --except {e['algorithmName']}"
                for e in others
            ],
            CONFIG_MAP,
        )
    if [entry for entry in existing if is_ours(entry)] == list(wanted):
        return text
    return _edited(text, wanted)


def unregistered(text: str) -> str:
    """Return the configuration without our entries.

    Raises:
        InputError: if the text is not Katib's configuration.

    """
    return _edited(text, []) if any(map(is_ours, suggestions(text))) else text


def registered_names(text: str) -> set[str]:
    """Return the names under which our algorithms are registered, including those of installed packages.

    Raises:
        InputError: if the text is not Katib's configuration.

    """
    return {entry["algorithmName"] for entry in suggestions(text) if is_ours(entry)}


def is_ours(entry: dict[str, Any]) -> bool:
    """Return whether an entry was made by `entries`, by its command; the image may be any."""
    return (entry.get("command") or [])[:2] == COMMAND


def suggestions(text: str) -> list[dict[str, Any]]:
    """Return the entries of all algorithms, ours and others.

    Raises:
        InputError: if the text is not Katib's configuration.

    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{KEY} is not valid YAML: {error}", CONFIG_MAP) from error
    if not isinstance(content, dict) or not isinstance(content.get("runtime"), dict):
        raise InputError(
            f"{KEY} must have a section `runtime`, as Katib 0.16 and later write it, but it has "
            f"{sorted(content) if isinstance(content, dict) else type(content).__name__}",
            CONFIG_MAP,
        )
    listed: list[dict[str, Any]] = content["runtime"].get("suggestions") or []
    return listed


def _edited(text: str, wanted: Sequence[dict[str, Any]]) -> str:
    """Replace our entries; rewrite the text if it cannot be edited in place (an empty list, or one in flow style)."""
    content = yaml.safe_load(text)
    content["runtime"]["suggestions"] = [e for e in suggestions(text) if not is_ours(e)] + list(wanted)
    edited = _in_place(text, wanted)
    if edited is not None and yaml.safe_load(edited) == content:
        return edited
    return yaml.safe_dump(content, sort_keys=False)


def _in_place(text: str, wanted: Sequence[dict[str, Any]]) -> str | None:
    """Return the text without the lines of our entries, and with the new ones after the last other entry; None if it cannot."""
    sequence = _node(_node(yaml.compose(text, Loader=yaml.SafeLoader), "runtime"), "suggestions")
    if not isinstance(sequence, yaml.SequenceNode) or sequence.flow_style or not sequence.value:
        return None
    lines, indent = text.splitlines(keepends=True), sequence.start_mark.column
    end = line = sequence.start_mark.line
    kept = lines[:end]
    for item, entry in zip(sequence.value, suggestions(text), strict=True):
        begin, over = item.start_mark.line, _last_line(item) + 1
        kept += lines[end : begin if is_ours(entry) else over]
        end, line = over, line if is_ours(entry) else len(kept)
    if all(map(is_ours, suggestions(text))):
        return None
    new = textwrap.indent(yaml.safe_dump(list(wanted), sort_keys=False), " " * indent) if wanted else ""
    if new and not kept[line - 1].endswith("\n"):
        kept[line - 1] += "\n"
    return "".join([*kept[:line], new, *kept[line:], *lines[end:]])


def _node(node: yaml.Node | None, key: str) -> yaml.Node | None:
    """Return the node of a key in a mapping."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((value for name, value in pairs if name.value == key), None)


def _last_line(node: yaml.Node) -> int:
    """Return the number of the node's last line; PyYAML's end mark includes the comments that follow."""
    if isinstance(node, yaml.ScalarNode):
        return node.end_mark.line - (node.end_mark.column == 0 and node.end_mark.line > node.start_mark.line)
    if not isinstance(node, yaml.CollectionNode) or node.flow_style or not node.value:
        return int(node.end_mark.line)
    pairs = isinstance(node, yaml.MappingNode)
    return max(_last_line(part) for each in node.value for part in (each if pairs else [each]))
