"""Writes a folder as an OCI image layout, for container registries and clusters."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any


def to_oci(folder: Path, layout: Path, name: str) -> str:
    """Write a folder as an OCI image layout with one layer below ``/models``; return the manifest's digest.

    ``skopeo copy oci:<layout>:latest docker://…`` pushes it; KServe mounts it as ``oci://…``, and vLLM reads the folder.
    The same files give the same bytes: entries have no times and owners.
    """
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        top = tarfile.TarInfo("models")
        top.type, top.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(top)
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            entry = tarfile.TarInfo(f"models/{path.relative_to(folder).as_posix()}")
            entry.size, entry.mode = path.stat().st_size, 0o644
            with path.open("rb") as content:
                tar.addfile(entry, content)
    layer = blob(raw.getvalue())
    labels = {"Labels": {"org.opencontainers.image.title": name}}
    layers = {"type": "layers", "diff_ids": [layer["digest"]]}
    config = blob(_json({"architecture": "amd64", "os": "linux", "config": labels, "rootfs": layers}))
    media = "application/vnd.oci.image"
    parts = {
        "config": {"mediaType": f"{media}.config.v1+json", **config},
        "layers": [{"mediaType": f"{media}.layer.v1.tar", **layer}],
    }
    manifest = blob(_json({"schemaVersion": 2, "mediaType": f"{media}.manifest.v1+json", **parts}))
    (layout / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    entry_of = {"mediaType": f"{media}.manifest.v1+json", **manifest,
                "annotations": {"org.opencontainers.image.ref.name": "latest"}}  # fmt: skip
    (layout / "index.json").write_bytes(_json({"schemaVersion": 2, "manifests": [entry_of]}))
    return str(manifest["digest"])


def _json(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True).encode()
