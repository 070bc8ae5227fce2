"""The compiled pipelines and their YAML files."""

from __future__ import annotations

from pathlib import Path

PIPELINES = ("search", "tune")


def compiled(name: str) -> Path:
    """Return the YAML file of the pipeline `name`.

    In a wheel it lies beside this module, in a checkout in the folder `pipelines`, where `make pipelines` writes it.
    """
    in_wheel = Path(__file__).with_name(f"{name}.yaml")
    return in_wheel if in_wheel.is_file() else Path(__file__).parents[3] / "pipelines" / f"{name}.yaml"
