"""Versions of a registered model for tests that only ask which one is champion."""

import json

from retune.records import TrialRecord
from retune.registry import versions


def register_version(database, folder, name, model="m"):
    """Register an adapter called `name`, made in `folder`, and return its version."""
    made = folder / name
    made.mkdir()
    (made / "adapter_config.json").write_text(json.dumps({"of": name}))
    (made / "adapter_model.safetensors").write_bytes(name.encode())
    record = TrialRecord(trial="trial-002", number=2, role="search", assignment={}, seed=0, status="completed",
                         values={"validation_loss": 1.0}, adapter_digest=name, base="b")  # fmt: skip
    return versions.register(database, model, record, made, study="s", objective="validation_loss")
